"""Automatic replies (RFC 3834) of mailboxes: who gets one, how often, and what it says."""

import email
import email.policy
from datetime import timedelta

import pytest

from tests.integration.conftest import SharedRelay
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

BOB, ANN, OUT = "bob@example.test", "ann@example.test", "out@elsewhere.test"
INSIDE, OUTSIDE = "back on Monday & <here>", "<p>Ich bin <b>nächste</b> Woche zurück.</p>"
HEADER = {
    "Return-Path": "<>",
    "From": BOB,
    "Subject": "Automatic reply: ping",
    "In-Reply-To": "<m@a.test>",
    "References": "<first@a.test> <m@a.test>",
    "Auto-Submitted": "auto-replied",
}


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def change(relay: DevProcess, **setting: object) -> None:
    body = {"automaticRepliesSetting": setting}
    assert relay.graph("PATCH", "/me/mailboxSettings", body, token="bob").status == 200


def ask(relay: DevProcess, sender: str, *fields: str, to: str = BOB) -> str:
    """Send bob a message, and return its queue id when nothing is in progress."""
    lines = (f"To: {to}", "Message-ID: <m@a.test>", "References: <first@a.test>", *fields)
    content = "\r\n".join((*lines, "Subject: ping", "", "Hello.", "")).encode()
    queue_id = relay.submit(sender, [BOB], content)
    relay.advance(1)
    return queue_id


def test_each_side_gets_its_text_once(relay: DevProcess) -> None:
    ask(relay, OUT)  # it makes the mailbox, which has no settings yet
    change(
        relay,
        status="alwaysEnabled",
        externalAudience="all",
        internalReplyMessage=INSIDE,
        externalReplyMessage=OUTSIDE,
    )
    for sender, text in ((ANN, INSIDE), (OUT, OUTSIDE)):
        queue_id = ask(relay, sender)
        ask(relay, sender.title())
        (found,) = relay.messages("inbox", token=sender)
        octets = relay.graph("GET", f"/me/messages/{found['id']}/$value", token=sender).body
        reply = email.message_from_bytes(octets, policy=email.policy.default)
        assert {name: reply[name] for name in HEADER} == HEADER
        bodies = [reply.get_body([kind]).get_content().strip() for kind in ("plain", "html")]
        assert text in bodies
        (detail,) = [one["detail"] for one in relay.journey(queue_id)["steps"] if one["step"] == 7]
        assert (detail["kind"], detail["to"]) == ("reply", sender)
        assert relay.journey(detail["report_id"])["subject"] == HEADER["Subject"]


def test_who_gets_none(relay: DevProcess) -> None:
    change(relay, status="alwaysEnabled", externalAudience="contactsOnly")
    quiet = "quiet@example.test"
    for field in (
        "List-Id: <l.a.test>",
        "Precedence: bulk",
        "Auto-Submitted: auto-generated",
        "X-Auto-Response-Suppress: DR, OOF",
        "Content-Type: multipart/report; boundary=x",
    ):
        ask(relay, quiet, field)
    ask(relay, quiet, to="everybody@example.test")
    programs = [f"{one}@example.test" for one in ("Mailer-Daemon", "owner-l", "l-request")]
    for sender in (*programs, "out2@elsewhere.test", BOB, ""):
        ask(relay, sender)
    for sender in (*programs, "out2@elsewhere.test", quiet):
        assert relay.inbox(sender) == []
    assert set(relay.inbox("bob")) == {"ping"}
    ask(relay, quiet, "Auto-Submitted: no", to="x@a.test, Bob <BOB+a@Example.test>")
    assert len(relay.inbox(quiet)) == 1


def test_the_schedule_and_the_week_follow_the_clock(relay: DevProcess) -> None:
    asker, day = "asker@example.test", 86_400
    dates = [(relay.advance(1) + timedelta(days=one)).isoformat() for one in (1, 30)]
    start, end = ({"dateTime": one} for one in dates)
    change(relay, status="scheduled", scheduledStartDateTime=start, scheduledEndDateTime=end)

    def replied() -> int:
        ask(relay, asker)
        return len(relay.inbox(asker))

    assert replied() == 0
    relay.advance(day)
    assert (replied(), replied()) == (1, 1)
    relay.advance(7 * day)
    assert replied() == 2
    for status in ("disabled", "scheduled"):
        change(relay, status=status)
    assert replied() == 3
    relay.advance(30 * day)
    assert replied() == 3


def test_a_stranger_has_none_sent_in_the_name_of_others(shared: SharedRelay) -> None:
    """A reverse-path that nothing verifies is easily forged."""
    relay, settings = shared.relay, {"status": "alwaysEnabled", "externalAudience": "all"}
    settings["externalReplyMessage"] = OUTSIDE
    body = {"automaticRepliesSetting": settings}
    assert relay.graph("PATCH", "/me/mailboxSettings", body).status == 200
    content = b"To: alice@example.test\r\nSubject: ping\r\n\r\nHello.\r\n"
    for sender, source in (("forged@a.test", "127.0.0.2"), ("asker@a.test", "127.0.0.1")):
        relay.until_final(relay.submit(sender, ["alice@example.test"], content, source=source))
    until("a reply is there", lambda: shared.a.received("asker@a.test"))
    assert shared.a.received("forged@a.test") == []
