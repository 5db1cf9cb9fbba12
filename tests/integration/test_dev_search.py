"""The search of a real development relay: every message at once, from its index."""

import random
import smtplib
from email.message import EmailMessage
from email.policy import SMTP
from urllib.parse import quote

import pytest

from tests.support.dev_process import DevProcess
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import until

MESSAGES = 300
MAILBOXES = 90


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def found(relay: DevProcess, text: str, *, is_all: bool = True) -> list[str]:
    answer = relay.graph("GET", f"/relay/v1/messages?q={quote(text)}&limit=100", token=OPERATOR)
    assert answer.status == 200, answer.body
    assert not is_all or answer.json()["older"] is None
    return [one["subject"] for one in answer.json()["messages"]]


def send(relay: DevProcess, messages: list[tuple[str, str, str]]) -> None:
    host, port = relay.ready["smtp"][0].rsplit(":", 1)
    with smtplib.SMTP(host, int(port)) as session:
        for recipient, subject, text in messages:
            content = f"From: App <app@shop.test>\r\nTo: {recipient}\r\nSubject: {subject}\r\n\r\n{text}\r\n"
            session.sendmail("app@shop.test", [recipient], content.encode())


def test_each_message_is_found_by_a_part_of_a_word_of_its_text(relay: DevProcess) -> None:
    sent = [
        (f"user{n % MAILBOXES}@mail{n % 7}.test", f"message {n}", f"Your code is ref{n:06}xyz.")
        for n in range(MESSAGES)
    ]
    send(relay, sent)
    for n in [MESSAGES - 1, 0, *random.Random(1).sample(range(MESSAGES), 20)]:
        assert found(relay, f"EF{n:06}x") == [f"message {n}"]
    assert found(relay, "nowhere-at-all") == []


def test_relay_search_has_the_search_of_the_pages_and_relay_list_is_relay_log(
    relay: DevProcess,
) -> None:
    many = [("ann@far.test", f"list {n}", "The text has gooseberries.") for n in range(5)]
    send(relay, many)
    done = relay.cli("search", "GOOSEB", "to:ann", "subject:list 3")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert '"list 3"  app@shop.test -> ann@far.test  CAPTURED' in done.stdout
    assert done.stderr == ""
    three = relay.cli_json("search", "gooseb", "--limit", "3")
    assert [one["subject"] for one in three] == ["list 4", "list 3", "list 2"]
    assert three[0]["recipients"][0]["state"] == "captured"
    nothing = relay.cli("search", "nowhere-at-all")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no message matches" in nothing.stderr
    fault = relay.cli("search", "has:wings")
    assert fault.returncode == 64
    assert "expected attachment" in fault.stderr
    log = relay.cli("log", "--to", "ann@far.test").stdout
    assert log.count("list ") == 5
    assert relay.cli("list", "--to", "ann@far.test").stdout == log


def test_a_local_mailbox_has_its_folders_when_one_is_used(relay: DevProcess) -> None:
    send(relay, [("zoe@example.test", "for zoe", "The text of it is zoe-only.")])
    mailbox = relay.mailbox_of("zoe@example.test")

    def others() -> list[str]:
        names = sorted(one.name for one in mailbox.iterdir() if one.name[:6] != "relay-")
        return [one for one in names if one not in ("cur", "new", "tmp")]

    until("it is delivered", lambda: list(mailbox.glob("new/*")))
    assert found(relay, "zoe-only") == ["for zoe"]
    assert others() == []
    assert relay.graph("GET", "/me/mailFolders/drafts", token="zoe").status == 200
    assert {".Drafts", ".Sent", "subscriptions"} <= {*others()}


@pytest.mark.parametrize("text", ["x" * 10_000, " ".join(f"w{n}" for n in range(300))])
def test_a_long_search_is_refused(relay: DevProcess, text: str) -> None:
    answer = relay.graph("GET", f"/relay/v1/messages?q={quote(text)}", token=OPERATOR)
    assert answer.status == 400
    assert b"q: The search has" in answer.body
    assert relay.request("GET", f"/?q={quote(text)}").status == 400


def rich(word: str) -> bytes:
    """A message with words in each of its parts; every text is encoded."""
    made = EmailMessage()
    made["From"] = "Ann Sender <ann@shop.test>"
    made["To"] = "Bob Reader <bob@customer.test>"
    made["Reply-To"] = "desk@answers.test"
    made["Subject"] = f"Überraschung {word}"
    made.set_content(f"Grüße\n and a {word}", cte="base64")
    made.add_alternative(f"<p>Zw&ouml;lf <b>{word}</b>\n  elks</p>", subtype="html", cte="base64")
    made.add_attachment(b"MZ", maintype="application", subtype="pdf", filename="Rechnung 7.pdf")
    return made.as_bytes(policy=SMTP)


PARTS = (
    "berraschung",
    "UBERRASCHUNG",
    "n sender",
    "shop.te",
    "reader",
    "customer.test",
    "swers",
    "zwo",
    "zwölf",
    "echnung 7",
    "hidden@boss",
    "elk",
    "lk",
    "envelope.test",
)


def test_a_message_is_found_by_all_its_parts_until_it_is_gone(dev) -> None:
    relay = dev("--no-demo")
    to = ["bob@customer.test", "hidden@boss.test"]
    key = relay.submit("bounce@envelope.test", to, rich("gnu"))
    relay.submit("x@y.test", ["z@y.test"], b"Subject: other\r\n\r\nsame")
    for part in PARTS:
        assert len(found(relay, f'"{part}"')) == 1, part
    assert len(found(relay, "gnu has:attachment to:boss")) == 1
    assert found(relay, "gnu to:nobody") == found(relay, "same has:attachment") == []
    relay.until_state(key, "there")
    assert b"of all 2 messages" in relay.request("GET", "/?q=unicorn").body
    relay.stop()
    index = relay.folder / "search-index"
    for content in (index.read_bytes(), b"damaged" * 9999, None):  # as it was, another one, none
        relay.start()
        assert len(found(relay, "gnu elks")) == len(found(relay, "same")) == 1
        relay.stop()
        index.unlink() if content is None else index.write_bytes(content)
    index.mkdir()
    relay.start()  # without an index
    assert found(relay, "elk", is_all=False) == ["Überraschung gnu"]
    assert b"of all" not in relay.request("GET", "/?q=unicorn").body
    relay.stop()
    index.rmdir()
    relay.start()
    assert len(found(relay, "same")) == 1
    assert relay.graph("DELETE", "/relay/v1/messages", token=OPERATOR).status == 200
    assert found(relay, "same") == found(relay, "gnu") == []
    relay.submit("x@y.test", ["z@y.test"], b"Subject: again\r\n\r\nsame")
    assert found(relay, "same") == ["again"]


def test_what_goes_by_age_is_not_found_and_not_in_the_index(dev) -> None:
    relay = dev("--no-demo", "--keep-messages=5")
    for number in range(9):
        relay.submit("x@y.test", ["z@y.test"], f"Subject: {number}\r\n\r\nsame".encode())
    assert len(found(relay, "same")) == 9
    relay.restart()  # retention begins at the start
    until("old messages are gone", lambda: len(found(relay, "same")) <= 6)
    kept = len(found(relay, "same"))
    assert f"of all {kept} messages".encode() in relay.request("GET", "/?q=unicorn").body
