"""The conditions of the message list."""

from relay.store.journeys.message_list import MessageSearch
from tests.support.journeys import made_journey
from tests.support.tables import each_row


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
