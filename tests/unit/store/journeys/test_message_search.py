"""The conditions of the message list, and its cursor."""

import pytest

from relay.store.journeys.message_list import (
    SEEN_MAX,
    ListCursor,
    MessageSearch,
    cursor_at,
    parse_cursor,
)
from tests.support.journeys import made_journey
from tests.support.tables import each_row

NOW_US = 1_700_000_000_000_000


def a_journey(*recipients: tuple[str, str], sender="app@a.test", subject="Invoice 12"):
    pairs = [{"address": address, "state": state} for address, state in recipients]
    return made_journey(sender=sender, subject=subject, recipients=pairs)


@each_row(
    "wanted, matches",
    [
        ({}, True),
        ({"to": "Bob@A.test"}, True),
        ({"to": "bob@a"}, False),
        ({"to": "*@a.test"}, True),
        ({"to": "bo?@a.test"}, True),
        ({"to": "*@b.test"}, False),
        ({"sender": "APP@a.test"}, True),
        ({"sender": "<>"}, False),
        ({"subject": "invoice 12"}, True),
        ({"subject": "Invoice"}, False),
        ({"subject": "*voice*"}, True),
        ({"state": "delivered"}, True),
        ({"state": "failed"}, True),
        ({"state": "queued"}, False),
        ({"state": "final"}, False),
        ({"state": "final", "to": "carol@a.test"}, True),
        ({"state": "failed", "to": "bob@a.test"}, False),
        ({"state": "deferred", "to": "dan@a.test"}, True),
        ({"subject": "Invoice*", "to": "nobody@a.test"}, False),
    ],
)
def test_conditions(wanted: dict[str, str], matches: bool) -> None:
    journey = a_journey(
        ("bob@a.test", "delivered"), ("carol@a.test", "failed"), ("dan@a.test", "deferred")
    )
    assert MessageSearch(**wanted).matches(journey) is matches


def test_brackets_and_case_of_other_scripts_are_literal() -> None:
    journey = a_journey(("b@a.test", "queued"), subject="[Ticket 1] GRÜSSE")
    assert MessageSearch(subject="[ticket 1] grüsse").matches(journey)
    assert not MessageSearch(subject="[it]*").matches(journey)


def test_a_long_subject_is_found_by_all_of_it() -> None:
    subject = "long " * 100
    assert MessageSearch(subject=subject).matches(a_journey(subject=subject[:200]))


def test_the_null_sender_is_written_with_brackets() -> None:
    assert MessageSearch(sender="<>").matches(a_journey(sender=""))


def test_no_recipient_at_all_is_not_final() -> None:
    assert not MessageSearch(state="final").matches(a_journey())
    assert not MessageSearch(state="queued").matches(a_journey())


def test_a_cursor_is_bounded_however_many_messages_are_new() -> None:
    visible = {f"m{number}": NOW_US + number for number in range(1, 5 * SEEN_MAX)}
    cursor = parse_cursor(str(cursor_at(NOW_US, visible)), now_us=NOW_US)
    assert len(str(cursor)) < 1500
    assert not any(cursor.is_after(name, at_us) for name, at_us in visible.items())
    assert cursor.is_after("new", NOW_US + 5 * SEEN_MAX)


@each_row("text", ["", "0", "abc", "AAAAAAAAAAA=", "ä" * 12, "A" * 13, "_" * 11])
def test_an_unusable_cursor_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        parse_cursor(text, now_us=NOW_US)


def test_a_cursor_from_the_future_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        parse_cursor(str(ListCursor(NOW_US + 3600 * 10**6)), now_us=NOW_US)
