"""`relay sendmail`, and relay called as sendmail, as programs call it: options and exit codes."""

import fcntl
import os
import subprocess
import sys
import termios

import pytest

from relay.testing import Relay
from tests.support import relay_starts
from tests.support.relay_process import until
from tests.support.tables import each_row

REJECTING = {
    "refuse": '[[rule]]\nname = "no"\nwhen = { subject = ["refuse"] }\n'
    'then = [ { reject = "5.7.1 not here" } ]\n'
}


@pytest.fixture(scope="module")
def relay():
    routes = [{"domain": "gone.test", "next_hop": "reject:5.1.1 gone"}]
    with Relay(policies=REJECTING, config={"route": routes}) as relay:
        yield relay


@pytest.fixture
def sendmail(relay, tmp_path):
    """Run `relay sendmail` on the relay, which RELAY_SENDMAIL or `place` names."""
    relay.reset()

    def run(text, *words, place=None, **variables):
        at = {"RELAY_SENDMAIL": "{}:{}".format(*relay.smtp)} if place is None else place
        environment = relay_starts.environment(tmp_path) | {"USER": "app"} | at | variables
        command = [*relay_starts.RELAY, "sendmail", *words]
        return relay_starts.run(command, cwd=tmp_path, env=environment, stdin=text, timeout_s=120)

    return run


def test_it_sends_as_programs_call_it(relay, sendmail):
    text = "To: ann@customer.example\nBcc: bob@example.test\nSubject: a\n\n1\n.\n2\n"
    done = sendmail(text, "-t", "-oi", "-fshop@x.test", "-F", "The Shop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for recipient in ("ann@customer.example", "bob@example.test"):
        message = relay.mailbox(recipient).wait_for(subject="a", sender="shop@x.test")
        assert message.text == "1\n.\n2\n"
        assert "Bcc" not in message.eml
        assert message.eml["From"] == "The Shop <shop@x.test>"
        assert message.eml["Received"].startswith("from localhost "), "no name server is asked"


def test_n_r_and_v_say_which_report_the_sender_gets(relay, sendmail):
    text = "Subject: x\n\nthe text\n"
    every = ["-N", "delay,failure", "-R", "hdrs", "-V", "order+2B17"]
    for words in (["-Nfailure"], every, ["-N", "never", "-Rfull"]):
        assert (
            sendmail(text, "-i", "-fshop@x.test", *words, "ann+550@customer.example").returncode
            == 0
        )
        relay.settle()
        reports = relay.mailbox("shop@x.test").messages()
        assert len(reports) == (0 if "never" in words else 1)
        assert all((b"the text" in one.source) == ("hdrs" not in words) for one in reports)
        envid = b"\nOriginal-Envelope-Id: order+17"
        assert all((envid in one.source) == ("-V" in words) for one in reports)
        relay.reset()


def test_the_configuration_names_listener_and_domain(relay, sendmail):
    place = {"RELAY_CONFIG": relay.env["RELAY_CONFIG"]}
    assert sendmail("Subject: c\n\nx\n", "-i", "bob", place=place).returncode == 0
    relay.mailbox("bob@example.test").wait_for(subject="c")


def test_an_argument_may_have_names_and_several_addresses(relay, sendmail):
    words = ["Bob B <bob@example.test>, ann@customer.example", '"C, D" <c@customer.example>']
    assert sendmail("Subject: d\n\nx\n", "-i", *words).returncode == 0
    for recipient in ("bob@example.test", "ann@customer.example", "c@customer.example"):
        relay.mailbox(recipient).wait_for(subject="d")


@each_row(
    "words, text, code, said",
    [
        (["-t"], "x", 64, "no recipient: expected an address, or one in To, Cc or Bcc"),
        ([], "x", 64, "no recipient: expected one, or -t"),
        (["-N", "often", "a@b.test"], "x", 64, '-N: found "often", expected never, or some of'),
        (["-R", "half", "a@b.test"], "x", 64, '-R: found "half", expected full or hdrs'),
        (["-V", "a b", "a@b.test"], "x", 64, "-V: ENVID: 'a b' is not xtext"),
        (["-V", "order-17"], "x", 64, "no recipient: expected one, or -t"),
        (["-bz"], "", 64, 'found "-bz", expected -bm, -bs or -bp'),
        (["a b@c"], "x", 65, "sendmail: 'a b@c' is not an address: "),
        (["bob@example.test"], "Subject: refuse\n\nx", 65, "sendmail: 550 5.7.1 not here"),
        (["a@b.test,c@d.test e"], "x", 65, "recipient: 'c@d.test e' is not an address"),
        (["b@gone.test", "a@gone.test"], "x", 67, "sendmail: 550 5.1.1 <a@gone.test>: gone"),
    ],
)
def test_what_is_refused_says_why(relay, sendmail, words, text, code, said):
    done = sendmail(text, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    relay.assert_no_more_mail()


def test_one_of_several_recipients_that_is_refused_is_named(relay, sendmail):
    for words in (["a@gone.test", "bob@example.test"], ["bob@example.test", "a@gone.test"]):
        done = sendmail("Subject: most\n\nx", *words)
        assert (done.returncode, done.stderr) == (0, "sendmail: 550 5.1.1 <a@gone.test>: gone\n")
        relay.mailbox("bob@example.test").wait_for(subject="most")
        relay.reset()


def test_a_pause_in_the_input_is_not_its_end(relay, tmp_path):
    read, write = os.pipe()
    os.set_blocking(read, False)  # as some programs leave it
    place = {"RELAY_SENDMAIL": "{}:{}".format(*relay.smtp)}
    environment = relay_starts.environment(tmp_path) | place
    command = [*relay_starts.RELAY, "sendmail", "-i", "bob@example.test"]
    with subprocess.Popen(command, stdin=read, env=environment) as process:
        os.write(write, b"Subject: slow\n\n1\n")
        until("it is read", lambda: not any(fcntl.ioctl(read, termios.FIONREAD, bytes(4))))
        os.write(write, b"2\n")
        os.close(write)
    os.close(read)
    assert process.returncode == 0
    assert relay.mailbox("bob@example.test").wait_for(subject="slow").text == "1\n2\n"


@each_row("place", ["1025", "nowhere", "unix:/tmp/x", "127.0.0.1:0"])
def test_a_place_that_is_none_is_named(sendmail, place):
    done = sendmail("x", "a@b.test", place={"RELAY_SENDMAIL": place})
    assert done.returncode == 78
    assert done.stderr == f'sendmail: RELAY_SENDMAIL: found "{place}", expected HOST:PORT\n'


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_bs_speaks_smtp(relay, sendmail, end):
    lines = [
        "EHLO app.test",
        "MAIL FROM:<a@b.test>",
        "RCPT TO:<bob@example.test>",
        "DATA",
        "Subject: by bs",
        "",
        "x",
        ".",
        "QUIT",
        "",
    ]
    done = sendmail(end.join(lines), "-bs")
    assert (done.returncode, done.stderr) == (0, "")
    codes = [line[:3] for line in done.stdout.splitlines() if line[3:4] == " "]
    assert codes == ["220", "250", "250", "250", "354", "250", "221"]
    relay.mailbox("bob@example.test").wait_for(subject="by bs")


def test_called_as_sendmail_it_is_sendmail(relay, tmp_path):
    program = tmp_path / "relay"
    program.write_text(f"#!{sys.executable}\nfrom relay.operation.cli import main\nmain()\n")
    program.chmod(0o755)
    (tmp_path / "sendmail").symlink_to(program)
    environment = relay_starts.environment(tmp_path) | {
        "RELAY_SENDMAIL": "{}:{}".format(*relay.smtp)
    }
    message = "To: bob@example.test\nSubject: by name\n\nx\n"
    subprocess.run(
        [tmp_path / "sendmail", "-ti"],
        input=message,
        text=True,
        env=environment,
        check=True,
        timeout=120,
        cwd=os.fspath(tmp_path),
    )
    relay.mailbox("bob@example.test").wait_for(subject="by name")
