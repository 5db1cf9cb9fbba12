"""What a wait that failed was near to, and what is still on its way.

For GET /relay/v1/messages, and for the test kit (relay/testing/waiting.py). Pure functions.
"""

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from typing import Any, TypeVar

from relay.journeys.document import Journey
from relay.journeys.message_list import (
    MessageSearch,
    MessageSummary,
    matches_address_pattern,
    matches_pattern,
)
from relay.message.address import own_mailbox
from relay.message.lifecycle import AT_REST

VALUE_CHARACTERS_MAX = 120  # of a value that is compared: the time is quadratic
Comparison = tuple[str, str, str, bool]  # a field, what was expected and found, whether it matches


_M = TypeVar("_M", Journey, MessageSummary)


def in_flight(messages: Iterable[_M]) -> list[_M]:
    """Return the messages with recipients that are neither final nor captured."""
    return [one for one in messages if any(each.state not in AT_REST for each in one.recipients)]


def likeness(compared: Iterable[Comparison]) -> float:
    """Return how much a message is like what was wanted: one for each field that matches."""
    return sum(
        1.0 if is_right else SequenceMatcher(None, expected, found).ratio()
        for _, expected, found, is_right in compared
    )


def nearest(wanted: MessageSearch, rows: Iterable[MessageSummary]) -> dict[str, Any] | None:
    """Return the row that differs least, of several the first, with its fields; None for none."""
    compared = [(row, list(_compare(wanted, row))) for row in rows]
    found = max(compared, key=lambda one: likeness(one[1]), default=None)
    if found is None:
        return None
    names = ("field", "expected", "found", "matches")
    fields = [dict(zip(names, one, strict=True)) for one in found[1]]
    return {**found[0].as_json(), "compared": fields}


def _compare(wanted: MessageSearch, row: MessageSummary) -> Iterator[Comparison]:
    """Yield the conditions that a row decides; of the words, whether they are in the row."""
    addresses, sender = [one.address for one in row.recipients], row.sender or "<>"
    states = [(one.address, one.state) for one in row.recipients]
    here = map(own_mailbox, (row.sender, *addresses))
    to = ", ".join(addresses)
    place = row.position
    is_after = wanted.after is None or wanted.after.is_after(place.name, place.at_us)
    after = "after the cursor" if wanted.after else ""
    for field, expected, found, is_right in (
        ("to", wanted.to, to, any(map(wanted.matches_address, addresses))),
        ("sender", wanted.sender, sender, matches_address_pattern(wanted.sender, sender)),
        ("subject", wanted.subject, row.subject, matches_pattern(wanted.subject, row.subject)),
        ("mailbox", wanted.mailbox, f"{sender}, {to}", own_mailbox(wanted.mailbox) in here),
        (
            "state", wanted.state, row.state,
            MessageSearch(state=wanted.state).matches_recipients(states),
        ),
        (
            "words", " ".join(wanted.words), row.subject,
            not wanted.words_left(row.sender, row.subject, addresses),
        ),
        ("after", after, after if is_after else "before it", is_after),
    ):  # fmt: skip
        if expected:
            yield field, expected[:VALUE_CHARACTERS_MAX], found[:VALUE_CHARACTERS_MAX], is_right
