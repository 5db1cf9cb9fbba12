"""The MIME of a message, as the API and `relay show` give it: from the queue, or from a mailbox."""

import email.policy
import os
import subprocess
from email.message import EmailMessage

import pytest

from tests.support.relay_process import OPERATOR, RelayProcess, until
from tests.support.tables import each_row
from tests.support.terminals import open_terminal, read_to_end

USAGE, DATA = 64, 65
BOB = "bob@example.test"


def source(relay: RelayProcess, key: str, *, token: str = OPERATOR) -> bytes:
    answer = relay.graph("GET", f"/relay/v1/messages/{key}/source", token=token)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "message/rfc822"
    return answer.body


def a_message(*, text: str = "Hello.\n") -> bytes:
    made = EmailMessage()
    made["From"], made["To"] = "App <app@example.test>", BOB
    made["Subject"], made["Message-ID"] = "Bill \N{EURO SIGN}", "<bill@example.test>"
    made.set_content(text)
    made.add_alternative("<p>Hello <b>Bob</b>.</p>\n", subtype="html")
    made.add_attachment(b"\x00\xffPDF", maintype="application", subtype="pdf", filename="b\x1b.pdf")
    made.add_attachment("a,b\n", subtype="csv", filename="list.csv")
    return made.as_bytes(policy=email.policy.SMTP)


@pytest.fixture(scope="module")
def relay(remotes_module, serve_module) -> RelayProcess:
    remotes_module.start("a.test", rcpt={"nobody@a.test": "550 5.1.1 No such user here"})
    config = {"route": [{"domain": "kept.test", "next_hop": "capture"}]}
    return serve_module(remotes_module, config=config)


def test_the_source_comes_from_the_queue_a_mailbox_or_a_report(relay: RelayProcess) -> None:
    content = b"Subject: kept\r\n\r\n.dots\r\n" + b"x" * 70 + b"\r\n"
    large = b"Subject: kept\r\n\r\n" + (b"y" * 998 + b"\r\n") * 3000
    for each in (content, large):
        queue_id = relay.submit("alice@example.test", ["x@kept.test"], each)
        assert source(relay, queue_id).endswith(b"\r\n" + each)
    # what was delivered
    content = b"Subject: local\r\nX-Mark: 1\r\n\r\n.lost\r\n"
    queue_id = relay.submit("alice@example.test", ["somebody@a.test", BOB], content)
    relay.until_final(queue_id)
    assert source(relay, queue_id).startswith(b"Received: ")
    # and what bounced
    bounced = relay.submit("alice@example.test", ["nobody@a.test"], content)
    relay.until_final(bounced)
    until("reported", lambda: reported(relay, bounced))
    for each in (queue_id, bounced):
        assert b"X-Mark: 1\r\n" in source(relay, each)
        assert source(relay, each).endswith(b"\r\n\r\n.lost\r\n")
        assert b"delivery-status" not in source(relay, each)


def test_what_only_the_sender_has_hides_bcc_from_others(relay: RelayProcess) -> None:
    identity = relay.send_mail(to=["x@a.test"], bcc=["hidden@a.test"], subject="sent")
    relay.until_final(identity)
    until("filed", lambda: relay.messages("sentitems"))
    own, others = source(relay, identity, token="alice"), source(relay, identity)
    assert b"hidden@a.test" in own
    assert b"hidden@a.test" not in others
    assert b"bcc" not in others.lower()
    assert b"Subject: sent\r\n" in others
    assert relay.graph("GET", f"/relay/v1/messages/{identity}/source", token="bob").status == 404


def reported(relay: RelayProcess, key: str) -> bytes | None:
    answer = relay.graph("GET", f"/relay/v1/messages/{key}/source", token=OPERATOR)
    return answer.body if answer.status == 200 else None


def test_show(relay: RelayProcess) -> None:
    queue_id = relay.submit("app@example.test", [BOB], a_message(text="Hi \x1b[31m\u202ered\tX\n"))
    relay.until_final(queue_id)
    done = relay.cli("show", queue_id)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"Id          {queue_id}" in lines
    assert "State       delivered" in lines
    assert "From        App <app@example.test>" in lines
    assert "Subject     Bill \N{EURO SIGN}" in lines
    assert "Hi ?[31m?red    X" in lines
    assert any(line.startswith("  1  b") and "application/pdf  5 bytes" in line for line in lines)
    assert "  2  list.csv  text/csv  5 bytes" in lines
    assert "\x1b" not in done.stdout
    shown = relay.cli_json("show", "<bill@example.test>")
    assert (shown["id"], shown["state"], shown["subject"]) == (queue_id, "delivered", "Bill €")
    assert shown["html"] == "<p>Hello <b>Bob</b>.</p>\r\n"
    assert [(one["number"], one["type"], one["size"]) for one in shown["attachments"]] == [
        (1, "application/pdf", 5),
        (2, "text/csv", 5),
    ]


def octets(relay: RelayProcess, *words: str) -> bytes:
    done = subprocess.run(
        relay.command("show", *words),
        cwd=relay.folder,
        env=relay.environment,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_show_writes_parts_as_they_are(relay: RelayProcess) -> None:
    queue_id = relay.submit("app@example.test", [BOB], a_message())
    relay.until_final(queue_id)
    assert octets(relay, queue_id, "--source") == source(relay, queue_id)
    assert octets(relay, queue_id, "--attachment", "1") == b"\x00\xffPDF"
    assert relay.cli("show", queue_id, "--html").stdout == "<p>Hello <b>Bob</b>.</p>\n"
    assert relay.cli("show", queue_id, "--attachment", "2").stdout == "a,b\n"


@each_row(
    "words, code, text",
    [
        (["0000000000000000"], DATA, "unknown message"),
        (["last", "--html"], DATA, "no HTML body"),
        (["last", "--attachment", "1"], DATA, "--attachment 1: the message has 0"),
        (["last", "--attachment", "0"], USAGE, "0"),
        (["last", "--html", "--source"], USAGE, "at most one of"),
        (["last", "--source", "--json"], USAGE, "at most one of"),
    ],
)
def test_show_says_what_it_cannot_show(
    relay: RelayProcess, words: list[str], code: int, text: str
) -> None:
    relay.until_final(relay.submit("app@example.test", [BOB]))
    done = relay.cli("show", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr


def test_show_never_writes_control_characters_to_a_terminal(relay: RelayProcess) -> None:
    content = b"Subject: x\r\n\r\n\x1b]0;title\x07 \x9b31m tab\there\r\n"
    queue_id = relay.submit("app@example.test", [BOB], content)
    relay.until_final(queue_id)
    ours, terminal = open_terminal()
    command = relay.command("show", queue_id, "--source")
    subprocess.run(
        command, cwd=relay.folder, env=relay.environment, stdout=terminal, timeout=120, check=True
    )
    os.close(terminal)
    shown = read_to_end(ours)
    assert b"?]0;title? ?31m tab" in shown.replace(b"\xef\xbf\xbd", b"?")
    assert b"\x1b" not in shown
    assert b"\x07" not in shown


def test_captured_mail_of_a_development_relay(dev) -> None:
    relay = dev("--no-demo")
    relay.submit("app@example.test", ["x@gmail.com"], a_message())
    relay.until_state("x@gmail.com", "captured")
    shown = relay.cli_json("show", "x@gmail.com")
    assert shown["text"] == "Hello.\r\n"
    assert relay.cli("queue", "cancel", shown["id"]).returncode == 0
    relay.until_state(shown["id"], "cancelled")
    again = relay.cli_json("show", shown["id"])
    assert again == shown | {"state": "cancelled"}
    queue_id = relay.submit("app@example.test", ["x+451x1@gmail.com"], a_message())
    relay.until_state(queue_id, "deferred")
    relay.advance(20)
    assert relay.until_final(queue_id)["state"] == "relayed"
    assert b"\r\n\r\na,b\r\n" in source(relay, queue_id)
