"""The text of a failed wait: what arrived, the nearest miss field by field, what is in flight."""

import re
import smtplib
import ssl
from email.message import EmailMessage
from pathlib import Path
from urllib.request import urlopen

import pytest

from relay.testing import Relay, WaitTimeout
from relay.testing.arrivals import ArrivedMessage, MessageCopy, _read_copy
from relay.testing.waiting import (
    Observed,
    Wanted,
    in_flight,
    journey_lines,
    timeout_text,
    unexpected_text,
)
from relay.transport.refusals.refusal import Refusal, RefusalReason
from tests.support.journeys import made_journey

ALICE, BOB = "alice@example.test", "bob@example.test"


def arrival(
    subject, *, sender="alice@example.test", to=BOB, queue_id="06gz000000000001", state="delivered"
):
    eml = EmailMessage()
    eml["Subject"] = subject
    eml["From"] = f"Alice <{sender}>"
    copy = MessageCopy(Path(f"/{queue_id}:2,"), to, to, queue_id, eml, b"")
    recipients = [{"address": to, "state": state}]
    return ArrivedMessage(copy, journey(subject, queue_id, sender, recipients))


def journey(subject, queue_id, sender, recipients, step=(6, "delivery")):
    return made_journey(
        id=queue_id, subject=subject, sender=sender, state=recipients[0]["state"],
        recipients=recipients, steps=[{"step": step[0], "name": step[1]}],
    )  # fmt: skip


def test_the_nearest_miss_is_compared_field_by_field():
    wanted = Wanted(BOB, subject="Welcome to Relay", sender="alice@example.test")
    observed = Observed([arrival("Invoice 12"), arrival("Welcome to Rely", queue_id="b")], [])
    assert timeout_text(wanted, 2, observed).splitlines() == [
        f'no message for {BOB} with subject "Welcome to Relay" and sender "{ALICE}" within 2 s',
        "",
        "Arrived in bob@example.test: 2",
        '  06gz000000000001  "Invoice 12" from alice@example.test to bob@example.test: delivered',
        '  b  "Welcome to Rely" from alice@example.test to bob@example.test: delivered',
        "",
        'Nearest: b  "Welcome to Rely" from alice@example.test to bob@example.test: delivered',
        '  ! subject  expected "Welcome to Relay", found "Welcome to Rely": differs',
        '    sender   expected "alice@example.test", found "alice@example.test": matches',
        "    mailbox  expected bob@example.test, found bob@example.test: matches",
        "",
        "In flight: nothing",
    ]


def test_nothing_that_arrived_controls_the_terminal():
    one = arrival("a\x1b[2J\x07b\x9b1m", to="bob\x1b[2J@example.test")
    text = timeout_text(Wanted(BOB, subject="x"), 2, Observed([one], [one.journey]))
    assert "a?[2J?b?1m" in text
    text = text.replace(one.copy.mailbox, "")  # the kit's own: the mailboxes of a test
    assert all(letter.isprintable() or letter == "\n" for letter in text)


MALFORMED = [
    b'From: "',
    b"From: <",
    b"From: a@",
    b"Message-ID: <;a=<",
    b"From: a@b.test\r\nFrom: :\x00 b=<",
]


@pytest.mark.parametrize("header", MALFORMED)
def test_a_malformed_header_does_not_end_a_wait(tmp_path, header):
    (tmp_path / "new").mkdir()
    path = tmp_path / "new" / "1.a.b"
    path.write_bytes(header + b"\r\nSubject: hi\r\n\r\nx")
    found = ArrivedMessage(_read_copy(BOB, path), None)
    assert found.subject == "hi"
    assert "hi" in timeout_text(Wanted(BOB, subject="y", sender="z"), 2, Observed([found], []))


def test_mail_in_other_mailboxes_is_shown():
    observed = Observed([arrival("Hello", to="carol@example.test")], [])
    text = timeout_text(Wanted(BOB, subject="Hello"), 2, observed)
    assert "Arrived in bob@example.test: nothing" in text
    assert "Arrived in other mailboxes: 1" in text
    assert "! mailbox  expected bob@example.test, found carol@example.test: differs" in text


def test_messages_in_flight_show_step_state_and_reply():
    attempts = [{}, {}]
    waiting = {
        "address": "x@gmail.com",
        "state": "deferred",
        "reply": "451 4.7.1 greylisted",
        "attempts": attempts,
    }
    flying = journey("Later", "q1", "alice@example.test", [waiting])
    done = arrival("Done").journey
    text = timeout_text(Wanted(BOB), 2, Observed([], [flying, done]))
    assert text.splitlines()[-3:] == [
        "In flight: 1",
        '  q1  "Later"  alice@example.test -> x@gmail.com: step 6 delivery',
        "    x@gmail.com deferred after 2 attempts: 451 4.7.1 greylisted",
    ]


def test_messages_that_ended_without_a_copy_are_shown():
    lost = {"address": "x@gmail.com", "state": "failed", "reply": "550 5.1.1 no such user"}
    ended = journey("Lost", "q1", ALICE, [lost, {"address": BOB, "state": "delivered"}])
    text = timeout_text(Wanted(BOB), 2, Observed([], [ended, arrival("Done").journey]))
    assert text.splitlines()[-5:] == [
        "In flight: nothing",
        "Ended without a copy: 1",
        f'  q1  "Lost"  {ALICE} -> x@gmail.com, {BOB}: step 6 delivery',
        "    x@gmail.com failed: 550 5.1.1 no such user",
        f"    {BOB} delivered",
    ]


def refusal(number=0, **changes):
    facts = {
        "at": f"2026-11-22T10:00:00.{number:06d}Z", "sender": "app@example.test", "recipients": (BOB,),
        "recipient_count": 1, "command": "DATA", "reply": "550 5.7.1 No", "reason": RefusalReason.RULE,
        "rule": "no executables", "subject": "Setup program",
    }  # fmt: skip
    return Refusal(**(facts | changes))


def test_what_was_refused_is_shown():
    refused = [refusal(1, subject="a\nb\x1b[1m", times=3), refusal()]
    text = timeout_text(Wanted(BOB), 2, Observed([], [], refused=refused))
    assert text.splitlines()[-4:] == [
        "In flight: nothing",
        "Refused: 4",
        f'  550 5.7.1 app@example.test -> {BOB} "Setup program" (rule "no executables": No)',
        f'  550 5.7.1 app@example.test -> {BOB} "a b?[1m" (rule "no executables": No) 3 times',
    ]
    many = Observed([], [], refused=[refusal(number) for number in range(1000)])
    assert len(timeout_text(Wanted(BOB), 2, many)) < 3_000
    assert "… and 990 more" in timeout_text(Wanted(BOB), 2, many)


def test_mail_in_djangos_outbox_is_shown():
    outbox = [(f"Number {number}", [f"{number}@example.test", BOB]) for number in range(12)]
    text = timeout_text(Wanted(BOB), 2, Observed([], [], connections=0, outbox=outbox))
    lines = text.splitlines()
    assert lines[:4] == [
        f"no message for {BOB} within 2 s: no program has connected to this relay",
        "",
        "Django's locmem outbox has 12 messages: use the fixture relay_django",
        f'  "Number 2" to 2@example.test, {BOB}',
    ]
    assert lines[12:15] == [
        f'  "Number 11" to 11@example.test, {BOB}',
        "  … and 2 more",
        "",
    ]


def test_a_wait_says_whether_a_program_has_connected():
    never = ": no program has connected to this relay\n"
    with Relay() as relay:

        def failed_wait():
            with pytest.raises(WaitTimeout) as failed:
                relay.mailbox("ann@example.test").wait_for(timeout=0.05)
            return str(failed.value)

        def by_smtp():
            with smtplib.SMTP(*relay.smtp):
                pass

        def without_trust():
            with pytest.raises(ssl.SSLError):
                smtplib.SMTP_SSL(*relay.submissions, context=ssl.create_default_context())

        assert never in failed_wait()
        for connect in (by_smtp, lambda: urlopen(f"{relay.http_url}/livez").close(), without_trust):
            connect()
            assert never not in failed_wait()
            relay.reset()
            assert never in failed_wait()


def test_a_wait_says_that_a_session_refused_the_message():
    with Relay() as relay:
        with smtplib.SMTP(*relay.smtp) as client, pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("app@example.test", ["a..b@example.test"], b"Subject: x\r\n\r\nx")
        with pytest.raises(WaitTimeout) as failed:
            relay.mailbox("ann@example.test").wait_for(timeout=0.2)
        assert "Refused: 1\n  501 5.1.3 app@example.test -> a..b@example.test (" in str(
            failed.value
        )
        relay.reset()
        with pytest.raises(WaitTimeout) as failed:
            relay.mailbox("ann@example.test").wait_for(timeout=0.2)
        assert "Refused" not in str(failed.value)


def test_the_text_is_bounded():
    many = [arrival(f"{number} {'x' * 1000}", queue_id=f"q{number}") for number in range(500)]
    observed = Observed(many, [one.journey for one in many])
    text = timeout_text(Wanted(BOB, subject="y"), 2, observed)
    assert len(text) < 10_000
    assert "… and 490 more" in text


def test_a_message_of_an_earlier_wait_is_marked():
    found = arrival("Hello")
    observed = Observed([found], [], frozenset({found.copy.key}))
    text = timeout_text(Wanted(BOB, subject="Hello"), 2, observed)
    assert "! an earlier wait returned this message already" in text


@pytest.mark.parametrize(
    ("wanted", "is_right"),
    [
        ({"subject": "hello*"}, True),
        ({"subject": "ello"}, False),
        ({"subject": re.compile("ell")}, True),
        ({"subject": ""}, False),
        ({"sender": "alice@example.test"}, True),
        ({"sender": "*@example.test", "subject": "Hello World"}, True),
        ({"sender": "bob@*"}, False),
    ],
)
def test_patterns_are_of_the_whole_value_without_regard_to_case(wanted, is_right):
    assert Wanted(BOB, **wanted).matches(arrival("Hello World")) is is_right


@pytest.mark.parametrize(
    ("state", "is_there"),
    [("queued", False), ("deferred", False), ("delivered", True), ("captured", True)],
)
def test_a_copy_has_arrived_when_the_queue_has_its_state(state, is_there):
    found = arrival("Hello", state=state)
    assert found.has_arrived is is_there


def test_unexpected_mail_is_listed():
    assert unexpected_text(["a", "b"]).splitlines() == [
        "2 more messages than the test has seen:",
        "  a",
        "  b",
    ]


def test_a_message_before_step_4_is_shown_in_its_own_state() -> None:
    recipients = [{"address": "bob@example.test", "state": "queued"}]
    later = made_journey(submission_id="s.1", state="scheduled", recipients=recipients)
    assert journey_lines(later)[1:] == ["  bob@example.test scheduled"]
    assert in_flight([later]) == [later]
