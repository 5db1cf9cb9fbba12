"""`relay dev` with its options: what it listens to, whose mail it keeps, what leaves it."""

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from email.header import Header
from email.message import EmailMessage
from pathlib import Path
from urllib.request import urlopen

import pytest

from relay.development import option_fields
from relay.development.option_fields import MAIL, OPTIONAL
from tests.support import relay_starts
from tests.support.dev_process import PORTS, DevProcess, run_dev
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import ROOT, until

OTHER_PORTS = [one for one in PORTS if one.partition("=")[0].strip("-") not in OPTIONAL]
# of HTTPS and SMTP; test_dev_imap.py has the others
OF_SERVERS = {name: lacking for name, lacking in OPTIONAL.items() if name not in MAIL}
REJECTING = """
[[rule]]
name = "{name}"
when = {{ subject = ["{subject}"] }}
then = [ {{ reject = "5.7.1 not here" }} ]
"""


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module(own_dir=False)


def test_the_demonstration_leaves_nothing(relay: DevProcess) -> None:
    assert "one message, seven steps" in relay.log
    for name in ("alice", "bob"):
        assert relay.get("/v1.0/me/messages", name).json()["value"] == []
    assert relay.get("/relay/v1/messages", relay.ready["token"]).json()["messages"] == []
    assert relay.queue() == []
    folders = [one.name for one in Path(relay.ready["dir"]).parent.glob("relay-dev-*")]
    assert folders == [f"relay-dev-{os.getuid()}"], "the relay of the demonstration is gone"


def test_a_start_says_where_the_place_of_links_belongs_to_others(tmp_path: Path, dev) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"relay-{os.getuid()}").symlink_to("elsewhere")
    running = dev("--no-demo", HOME=str(tmp_path))
    assert f": only --config {running.config_file} finds this relay\n" in running.log
    assert f"send --config {running.config_file} --to bob" in running.log
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert running.stop() == 0
    assert running.log.endswith(f"relay dev: stopping; {running.folder} is kept\n")


def test_a_second_ctrl_c_leaves_the_folder_and_another_relay_continues_with_it(dev) -> None:
    first = dev("--no-demo", own_dir=False)
    left = first.ready["dir"]
    with first.smtp() as session:
        session.sendmail("a@b.test", ["x@c.test"], "Subject: kept\n\nx")
        session.mail("a@b.test")  # may end while the relay stops
        # the first ones come at once, as from a terminal and from a parent process
        until(
            "the end",
            lambda: first.process.send_signal(signal.SIGINT) or first.process.poll() == 130,
        )
    assert first.log.endswith(
        f"relay dev: stopping; {left} is removed\n"
        f"relay dev: ended at once; {left} stays as it is: relay dev --dir {left} continues "
        "with it; without --dir, the next one may remove it\n"
    )
    assert '"kept"' in dev("--no-demo", "--dir", left, own_dir=False).cli("log").stdout


def test_it_runs_without_what_macos_does_not_have(tmp_path: Path, dev) -> None:
    path = os.pathsep.join((str(ROOT / "tests/support/macos"), str(ROOT)))
    running = dev("--no-demo", PYTHONPATH=path, XDG_DATA_HOME=str(tmp_path))
    running.send("app@example.test", "bob@example.test", "one")
    until("bob has it", lambda: running.inbox("bob") == ["one"])
    running.send("app@example.test", "bob@example.test", "two")
    until("bob has both", lambda: sorted(running.inbox("bob")) == ["one", "two"])
    running.send_captured("ann@customer.example", b"Subject: x\r\n\r\nx\r\n")
    running.send("alice@example.test", "joe+550@gmail.com", "three")  # by a simulated host
    until("alice has the bounce", lambda: "Undeliverable: three" in running.inbox("alice"))


def test_the_address_of_the_pages_is_printed_first(relay: DevProcess) -> None:
    first = next(line for line in relay.log.splitlines() if line.startswith("  "))
    assert first == f"  Pages      {relay.ready['pages']}"
    assert "--config" not in relay.log, "the other commands find it"
    with urlopen(relay.ready["pages"]) as page:
        assert b"<title>Messages" in page.read()


def test_smtp_has_tls_on_ports_of_its_own_with_the_development_certificate(
    relay: DevProcess,
) -> None:
    trust = ssl.create_default_context(cafile=relay.ready["ca"])

    def port(name: str) -> int:
        return int(relay.ready[name][0].rpartition(":")[2])

    assert f", 127.0.0.1:{port('submission')} (STARTTLS), " in relay.log
    with smtplib.SMTP("localhost", relay.smtp_address()[1]) as session:
        session.login("any", "password")
        assert not session.has_extn("starttls")
    with smtplib.SMTP("localhost", port("submission")) as session:
        session.starttls(context=trust)
        session.sendmail("shop@example.test", ["bob@example.test"], "Subject: 1\n\nx")
    until("bob has it", lambda: relay.inbox("bob") == ["1"])
    with smtplib.SMTP_SSL("localhost", port("submissions"), context=trust) as session:
        session.login("apikey", "SG.x")
        session.sendmail("shop@example.test", ["bob@example.test"], "Subject: 2\n\nx")
    until("bob has it", lambda: sorted(relay.inbox("bob")) == ["1", "2"])
    shown = relay.cli("trace", "last")
    assert "login apikey@example.test" in shown.stdout


def test_default_ports_of_tls_in_use_are_left_out(dev) -> None:
    with contextlib.ExitStack() as held:
        for name in OF_SERVERS:
            taken = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # another process has it, which is as good
                taken.bind(("127.0.0.1", option_fields.PORTS[name]))
                taken.listen()
        running = dev("--no-demo", ports=OTHER_PORTS)
    assert [running.ready[name] for name in OF_SERVERS] == [[], [], []]
    for name, lacking in OF_SERVERS.items():
        line = re.compile(
            rf"relay dev: cannot listen on 127\.0\.0\.1:{option_fields.PORTS[name]}: Address "
            r"already in use by (another program|.+ \(pid \d+\)); "
            rf"no {lacking}; --{name} PORT takes another one\n"
        )
        assert len(line.findall(running.log)) == 1
    assert "https://" not in running.log
    with running.smtp() as session:
        assert session.noop()[0] == 250
    other = dev(
        "--no-demo", f"--smtp=127.0.0.2:{option_fields.PORTS['submission']}", ports=["--http=0"]
    )
    assert other.ready["submission"] == []


def test_a_port_in_use_is_an_error_that_says_how_to_pass_others(short_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        smtp = f"--smtp={taken.getsockname()[1]}"
        for variables, others in (
            ({}, "--http 0"),
            ({"MAKELEVEL": "1"}, 'make run ARGS="--http 0'),
        ):
            done = run_dev(short_path, "--no-demo", smtp, **variables)
            assert (done.returncode, f"; try {others}" in done.stderr) == (69, True)


def test_of_relays_that_start_at_once_each_binds_a_default_port_or_does_without(dev) -> None:
    relays = [dev("--no-demo", ports=OTHER_PORTS, start=False) for _ in range(2)]
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(DevProcess.start, relays)
    assert [first.ready[name] for name in OF_SERVERS] != [second.ready[name] for name in OF_SERVERS]


def test_what_was_refused_is_a_line_of_the_terminal(relay: DevProcess) -> None:
    message = EmailMessage()
    message["From"], message["To"] = "app@example.test", "ann@customer.example"
    message["Subject"] = "Setup program"
    message.set_content("Just run it.")
    message.add_attachment(b"MZ", maintype="application", subtype="x", filename="setup.exe")
    with relay.smtp() as session, pytest.raises(smtplib.SMTPDataError):
        session.send_message(message)
    line = (
        'refused 550 5.7.1 app@example.test -> ann@customer.example "Setup program"'
        ' (rule "no executables": Attachments that run as programs are not accepted; s'
        "hare the file in another way)"
    )
    until("the line", lambda: relay.log.splitlines().count(line) == 1)
    (one,) = relay.get("/relay/v1/refused?address=app@example.test").json()["refused"]
    assert (one["rule"], one["subject"]) == ("no executables", "Setup program")


def test_lines_that_end_in_lf_are_taken_and_the_journey_says_so(relay: DevProcess) -> None:
    """As curl and scripts send them."""
    with relay.smtp() as session:
        session.ehlo()
        session.mail("app@b.test")
        session.rcpt("lf@customer.example")
        session.docmd("DATA")
        session.send(b"Subject: lf\n\n..one\ntwo\r\n.\r\n")
        code, reply = session.getreply()
    assert code == 250, reply
    key = reply.decode().rpartition(" ")[2]
    journey = relay.until_state(key, "captured")
    [routed] = [one["detail"] for one in journey["steps"] if one["step"] == 5]
    assert routed["bare_lf"] is True
    says = "lines ended in LF alone, which many servers refuse: Relay made it CRLF"
    assert says in relay.cli("trace", key).stdout
    source = relay.get(f"/relay/v1/messages/{key}/source", OPERATOR).content
    assert source.endswith(b"\r\nSubject: lf\r\n\r\n.one\r\ntwo\r\n")


def test_each_message_is_a_line_of_the_terminal(relay: DevProcess) -> None:
    subject = Header("Reset \x1b]0;x\x07\u202e " + "a" * 60, "utf-8").encode(maxlinelen=0)
    recipients = [f"{one}@customer.example" for one in "abcdefg"]
    with relay.smtp() as session:
        session.sendmail("app@b.test", recipients, f"Subject: {subject}\n\nx")
        session.sendmail("app@b.test", ["x+550@b.test"], "Subject: no\n\nx")
    named = ", ".join(recipients[:5])
    for text in (
        f'  captured   app@b.test -> {named} and 2 more  "Reset  ]0;x ? {"a" * 46}…"',
        '  failed     app@b.test -> x+550@b.test  "no"  550 5.1.1 No such user',
    ):
        line = re.compile(rf"20\S{{8}} \S{{8}}Z  \w{{16}}{re.escape(text)}( \(test recipient.+)?")
        until(text, lambda line=line: [*filter(line.fullmatch, relay.log.splitlines())])
    assert relay.log.count("app@b.test -> ") <= 4, "queued is shown if it lasts"


def test_no_demo_shows_none_and_the_ready_file_is_private(dev) -> None:
    running = dev(RELAY_DEV_NO_DEMO="1", RELAY_DEV_NO_SUCH="1")
    assert "seven steps" not in running.log
    assert "RELAY_DEV_NO_SUCH is ignored" in running.log
    assert Path(running.ready["dir"]).is_dir()
    assert (running.folder / "ready.json").stat().st_mode & 0o777 == 0o600


def test_domains_are_local_and_the_first_is_that_of_alice(dev) -> None:
    running = dev("--no-demo", "--domain", "corp.test", "--domain", "other.test")
    assert running.get("/v1.0/me").json()["mail"] == "alice@corp.test"
    running.send("app@corp.test", "alice@corp.test", "to the first")
    until("alice has it", lambda: running.inbox("alice") == ["to the first"])
    running.send("app@corp.test", "x@example.test", "to another")
    token = running.ready["token"]
    until(
        "the mail for another domain is captured",
        lambda: (
            [one["next_hop"] for one in running.get("/relay/v1/queue", token).json()] == ["capture"]
        ),
    )


def test_strict_users_rejects_mail_for_others(dev) -> None:
    running = dev("--no-demo", "--strict-users")
    running.send("a@b.test", "alice@example.test", "for alice")
    until("alice has it", lambda: running.inbox("alice") == ["for alice"])
    with pytest.raises(smtplib.SMTPRecipientsRefused, match=r"5\.1\.1"):
        running.send("a@b.test", "carol@example.test", "for nobody")
    with running.smtp() as session:
        session.login("alice", "any")
    refused = pytest.raises(smtplib.SMTPAuthenticationError, match=r"carol@example\.test is no")
    with running.smtp() as session, refused:
        session.login("carol", "any")
    paths = [f"/users/{user}/messages" for user in ("alice", "carol")]
    answers = [running.graph("GET", path, token=OPERATOR).status for path in paths]
    assert answers == [200, 404]
    unknown = running.graph("GET", "/users/carol@b.test/messages", token=OPERATOR)
    assert unknown.message.endswith("This address has no mail.")


def test_changed_rules_are_loaded_and_faulty_ones_are_not(tmp_path: Path, dev) -> None:
    rules = tmp_path / "10-mine.toml"
    rules.write_text(REJECTING.format(name="one", subject="one"))

    def is_rejected(subject: str) -> bool:
        try:
            running.send("a@b.test", "bob@example.test", subject)
        except smtplib.SMTPDataError as error:
            return b"5.7.1 not here" in bytes(error.smtp_error)
        return False

    running = dev("--no-demo", "--rules", str(tmp_path))
    assert (is_rejected("one"), is_rejected("two")) == (True, False)
    rules.write_text("[[rule]]\nnames = 1\n")
    until("the fault is shown", lambda: f"{rules}:2: " in running.log)
    assert "the rules before this change stay in force" in running.log
    assert is_rejected("one")
    rules.write_text(REJECTING.format(name="two", subject="two"))
    until("it is loaded", lambda: "1 rule in force" in running.log)
    assert (is_rejected("one"), is_rejected("two")) == (False, True)
    rules.unlink()
    until("none are left", lambda: "0 rules in force" in running.log)


def test_no_rules_accepts_what_the_shipped_rules_reject(tmp_path: Path, dev) -> None:
    running = dev("--no-demo", "--no-rules", "--dir", str(tmp_path / "d"), own_dir=False)
    text = (
        "Subject: x\nMIME-Version: 1.0\nContent-Type: application/x-msdownload;"
        ' name="setup.exe"\nContent-Disposition: attachment; filename="setup.exe"\n\nMZ'
    )
    with running.smtp() as session:
        assert session.sendmail("a@b.test", ["bob@example.test"], text) == {}


@pytest.mark.parametrize("words", [(), ("--once",)])
def test_faulty_rules_end_it_with_file_and_line(short_path: Path, words: tuple[str, ...]) -> None:
    rules = short_path / "10-mine.toml"
    rules.write_text("[[rule]]\nname = 'x'\nwhen = { subjects = ['x'] }\n")
    done = run_dev(short_path, "--rules", str(short_path), *words)
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{rules}:3: " in done.stderr


def test_exit_after_counts_captured_messages(tmp_path: Path, dev) -> None:
    running = dev("--no-demo", "--exit-after", "2", "--json")
    running.send("a@b.test", "c@d.test", "one")
    running.send("a@b.test", "bob@example.test", "two")
    assert running.process.wait(30) == 0
    lines = [json.loads(line) for line in running.log.splitlines() if line.startswith("{")]
    assert {line["name"] for line in lines[1:]} >= {"policy and routing", "delivery"}


def test_a_printed_command_works_where_relay_is_in_no_path() -> None:
    relay = Path(sys.executable).with_name("relay")
    with tempfile.TemporaryDirectory(prefix="relay-dev-") as folder:  # short, for sockets below it
        env = relay_starts.environment(Path(folder)) | {"PATH": "/usr/bin:/bin", "TMPDIR": folder}
        words = [relay, "dev", *PORTS, "--no-demo", "--exit-after=1"]
        with subprocess.Popen(
            words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                printed = next(line.strip() for line in process.stdout if " send " in line)
                sent = subprocess.run(
                    printed, shell=True, cwd=folder, env=env, timeout=60, check=False
                )
                assert (sent.returncode, process.wait(60)) == (0, 0)
            finally:
                process.terminate()
