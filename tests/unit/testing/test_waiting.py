"""The text of a failed wait: what arrived, the nearest miss field by field, what is in flight."""

import re
from email.message import EmailMessage
from pathlib import Path

import pytest

from relay.testing.arrivals import ArrivedMessage, MessageCopy, _read_copy
from relay.testing.waiting import Observed, Wanted, timeout_text
from tests.support.journeys import made_journey
from tests.support.tables import each_row

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
        id=queue_id,
        subject=subject,
        sender=sender,
        state=recipients[0]["state"],
        recipients=recipients,
        steps=[{"step": step[0], "name": step[1]}],
    )


def test_the_nearest_miss_is_said_with_the_fields_that_differ():
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
        '  ! subject  expected "Welcome to Relay", found "Welcome to Rely"',
        "",
        "Not in a mailbox: nothing",
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


def test_the_text_is_bounded():
    many = [arrival(f"{number} {'x' * 1000}", queue_id=f"q{number}") for number in range(500)]
    observed = Observed(many, [one.journey for one in many])
    text = timeout_text(Wanted(BOB, subject="y"), 2, observed)
    assert len(text) < 10_000
    assert "… and 490 more" in text


@each_row(
    "wanted, is_right",
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


@each_row(
    "state, is_there",
    [("queued", False), ("deferred", False), ("delivered", True), ("captured", True)],
)
def test_a_copy_has_arrived_when_the_queue_has_its_state(state, is_there):
    found = arrival("Hello", state=state)
    assert found.has_arrived is is_there
