"""swaks and msmtp as the clients that submit: in clear, pipelined, and with AUTH under STARTTLS.

Exim sends by BDAT. Neither these nor Postfix's client know the command.
"""

import smtplib

import pytest

from tests.support.exim import Exim, NoEximError
from tests.support.relay_process import until


def port_of(relay, listener=0):
    return relay.ready["smtp"][listener].rpartition(":")[2]


@pytest.fixture
def submission(certificate, serve):
    """A relay with a submission listener that insists on TLS."""
    tls = {
        "certificate": str(certificate.certificate),
        "key": str(certificate.key),
        "require": True,
    }
    listener = {"listen": "127.0.0.1:0", "role": "submission", "trusted_networks": [], "tls": tls}
    return serve(config={"smtp": [listener]})


def test_swaks_sends_to_a_mailbox(relay, run):
    for number, way in enumerate([(), ("--pipeline",), ("--protocol", "SMTP")]):
        subject = f"from swaks {number}"
        done = run(
            "swaks",
            "--server",
            "127.0.0.1",
            "--port",
            port_of(relay),
            "--helo",
            "client.test",
            "--from",
            "x@remote.test",
            "--to",
            "alice@example.test,bob@example.test",
            "--header",
            f"Subject: {subject}",
            "--body",
            "one\n.\n..two\n",
            *way,
        )
        assert done.returncode == 0, done.stdout
        assert "250 2.0.0 Ok: queued as" in done.stdout
        for person in ("alice", "bob"):
            until("delivered", lambda who=person, one=subject: one in relay.subjects(who))
    for one in relay.maildir("alice"):
        assert one.get_payload().startswith("one\n.\n..two\n")


def test_msmtp_submits_with_auth_over_starttls(submission, run, certificate, tmp_path):
    config = tmp_path / "msmtprc"
    config.write_text(
        f"account default\nhost localhost\nport {port_of(submission)}\nfrom alice@example.test\n"
        f"auth plain\nuser alice@example.test\npassword alice\n"
        f"tls on\ntls_starttls on\ntls_trust_file {certificate.certificate}\n"
    )
    config.chmod(0o600)
    done = run(
        "msmtp", "-C", str(config), "bob@example.test", text="Subject: from msmtp\n\n.dot\nend\n"
    )

    assert done.returncode == 0, done.stderr
    until("delivered", lambda: submission.subjects("bob") == ["from msmtp"])
    assert submission.maildir("bob")[0].get_payload() == ".dot\nend\n"


def test_exim_sends_by_bdat(relay):
    """A small message, and one in many chunks whose octets over 1 MiB go into a file."""
    lines = "".join(f".line {number}\r\n.\r\n" for number in range(100_000))
    bodies = {"small": "one\r\n.\r\n..two\r\n", "large": lines}
    try:
        smarthost = int(port_of(relay))
        with Exim(domain="example.test", people=["alice"], smarthost=smarthost) as exim:
            with smtplib.SMTP("127.0.0.1", exim.port, timeout=60) as client:
                for subject, body in bodies.items():
                    text = f"Subject: {subject}\r\n\r\n{body}"
                    client.sendmail("x@remote.test", ["alice@example.test"], text)
            until("delivered", lambda: set(relay.subjects("alice")) == {*bodies})
            until("logged", lambda: exim.log.count(" => alice@example.test") == 2)
            sent = [line for line in exim.log.splitlines() if " => alice@example.test" in line]
    except NoEximError as why:
        pytest.skip(str(why))
    assert all(' K C="250 2.0.0 Ok: queued as ' in line for line in sent), sent  # K: by BDAT
    for message in relay.maildir("alice"):
        assert message.get_payload() == bodies[message["Subject"]].replace("\r\n", "\n")
