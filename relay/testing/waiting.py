"""The message that a wait looks for, and the text of a wait that fails: what arrived instead.

Only values and texts. Patterns are those of the message list of the API: they match the whole value
in any case; `*` is any text, `?` one character.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from relay.base.message.address import AddressError, parse_odd_mailbox
from relay.base.message.lifecycle import RecipientState
from relay.base.phrases import words_in
from relay.front_door.api.search_text import list_search_of
from relay.store.journeys.document import Journey
from relay.store.journeys.message_list import (
    ALL_MAILBOXES,
    VALUE_CHARACTERS_MAX,
    Comparison,
    MessageSearch,
    likeness,
    matches_address_pattern,
    matches_pattern,
)
from relay.testing.arrivals import ArrivedMessage
from relay.transport.refusals.refusal import Refusal, line_of

SETTLE_S = 60.0
_SHOWN_MAX = 10
_RETURNED = "  ! an earlier wait returned this message already"
_CONDITIONS = words_in("to sender subject mailbox state kind q")
# A copy is in a mailbox, or others have got the message.
_WITH_COPY = words_in("delivered relayed captured redirected expanded")


Pattern = str | re.Pattern[str]


class WaitTimeout(AssertionError):  # noqa: N818 - the name that tests use
    """A wait ended without its message; the text says what happened instead."""


def checked_address(text: str) -> str:
    """Return an address unchanged; raise ValueError if it is none."""
    try:
        parse_odd_mailbox(text, smtputf8=True)
    except AddressError as error:
        raise ValueError(f"no address: {error}") from None
    return text


def search_of(conditions: Mapping[str, str], now_us: int) -> MessageSearch:
    """Return the search of GET /relay/v1/messages as an operator. Raises ValueError, ApiError."""
    for name, value in conditions.items():
        if name not in _CONDITIONS or not isinstance(value, str):
            expected = f"a text for one of {', '.join(_CONDITIONS)}; * is any text in it"
            raise ValueError(f"found {name}={value!r}, expected {expected}")
    return replace(list_search_of(conditions, now_us), reader=ALL_MAILBOXES)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The message that a wait looks for; None matches every value."""

    address: str
    subject: Pattern | None = None
    sender: Pattern | None = None

    def __str__(self) -> str:
        criteria = [("subject", self.subject), ("sender", self.sender)]
        patterns = " and ".join(
            f"{name} {_shown(pattern)}" for name, pattern in criteria if pattern is not None
        )
        return f"message for {self.address}" + (f" with {patterns}" if patterns else "")

    def matches(self, arrival: ArrivedMessage) -> bool:
        """Whether address, subject and sender match."""
        return all(is_right for _, _, _, is_right in self.compare(arrival))

    def matches_values(self, subject: str, senders: Sequence[str]) -> bool:
        """Whether subject and sender match."""
        return (self.subject is None or _matches(self.subject, subject)) and (
            self.sender is None or any(_matches(self.sender, path or "<>") for path in senders)
        )

    def compare(self, arrival: ArrivedMessage) -> Iterator[Comparison]:
        """Yield the name, expected value and actual value of each field, and whether they match."""
        if self.subject is not None:
            subject = arrival.subject
            yield "subject", _shown(self.subject), _shown(subject), _matches(self.subject, subject)
        if self.sender is not None:
            senders = arrival.senders
            is_right = any(_matches(self.sender, path or "<>") for path in senders)
            sender = " or ".join(_shown(path or "<>") for path in senders)
            yield "sender", _shown(self.sender), sender, is_right
        yield "mailbox", self.address, arrival.copy.mailbox, self.is_in(arrival)

    def is_in(self, arrival: ArrivedMessage) -> bool:
        """Whether a message arrived in the mailbox of the address."""
        names = arrival.copy.mailbox, arrival.copy.recipient
        return any(matches_address_pattern(self.address, name) for name in names)


@dataclass(frozen=True, slots=True)
class Observed:
    """A relay at the end of a wait. `taken` are the keys of copies that waits returned."""

    arrivals: Sequence[ArrivedMessage]
    journeys: Sequence[Journey]
    taken: frozenset[str] = frozenset()
    log: Sequence[str] = ()
    refused: Sequence[Refusal] = ()  # by SMTP sessions, the newest first
    connections: int = 1  # that programs have made
    outbox: Sequence[tuple[str, Sequence[str]]] = ()  # Django's: subjects and recipients


def timeout_text(criteria: Wanted, seconds: float, observed: Observed) -> str:
    """Return why a wait for a copy failed."""
    here = [arrival for arrival in observed.arrivals if criteria.is_in(arrival)]
    elsewhere = [arrival for arrival in observed.arrivals if arrival not in here]
    lines = listed(f"Arrived in {criteria.address}", [[_line(mail, observed)] for mail in here])
    if elsewhere:
        entries = [[_line(arrival, observed)] for arrival in elsewhere]
        lines += listed("Arrived in other mailboxes", entries)
    nearest = _nearest(criteria, here or elsewhere, observed)
    if nearest is not None:
        lines += ["", f"Nearest: {_line(nearest, observed)}"]
        lines += _differences(criteria.compare(nearest))
        if nearest.copy.key in observed.taken:
            lines.append(_RETURNED)
    others = [
        journey_lines(journey)
        for journey in observed.journeys
        if any(recipient.state not in _WITH_COPY for recipient in journey.recipients)
    ]
    lines += ["", *listed("Not in a mailbox", others)]
    return _failed(f"{criteria} within {seconds:g} s", lines, observed)


def no_journey_text(expected: str, near: Mapping[str, Any] | None, observed: Observed) -> str:
    """Return why a wait for a journey failed. `near` is `nearest` of GET /relay/v1/messages."""
    lines = listed("Messages", [journey_lines(journey) for journey in observed.journeys])
    if near is not None:
        line = f"{near['id'] or near['submission_id']}  {_shown(near['subject'])}: {near['state']}"
        compared = (tuple(comparison.values()) for comparison in near["compared"])
        lines += ["", f"Nearest: {line}", *_differences(compared)]
        if (near["submission_id"] or near["id"]) in observed.taken:
            lines.append(_RETURNED)
    return _failed(expected, lines, observed)


def _differences(compared: Iterable[Comparison]) -> list[str]:
    return [
        f"  ! {name:<8} expected {expected}, found {_on_one_line(actual)}"
        for name, expected, actual, is_right in compared
        if not is_right
    ]


def _failed(expected: str, lines: Sequence[str], observed: Observed) -> str:
    is_used = observed.connections or observed.refused
    never = "" if is_used else ": no program has connected to this relay"
    head = [f"no {expected}{never}", "", *_outbox_lines(observed.outbox)]
    lines = [*head, *lines, *refused_lines(observed.refused)]
    if observed.log:
        lines += ["", "Last lines of the relay's log:", *(f"  {line}" for line in observed.log)]
    return "\n".join(lines)


def no_bounce_text(
    journey: Journey | None, *, seconds: float | None, actions: Sequence[str]
) -> str:
    """Return why a wait for a bounce failed; `seconds` is None if there was nothing to wait for.

    `actions` are those of the existing reports.
    """
    if journey is None:
        return "no bounce: this message has no journey"
    when = "none will come" if seconds is None else f"none within {seconds:g} s"
    lines = [f"no bounce of {_shown(journey.subject)}, {when}", *journey_lines(journey)]
    if actions:
        lines.append(f"Reports: {', '.join(actions[:_SHOWN_MAX])}")
    if any(recipient.state == RecipientState.DEFERRED for recipient in journey.recipients):
        lines.append("Deferred mail bounces when it expires: clock.advance(days=…) moves the time")
    return "\n".join(lines)


def unexpected_text(unexpected: Sequence[str]) -> str:
    """Return the text for mail that no test expected."""
    count = len(unexpected)
    lines = [f"{count} more message{'s' if count > 1 else ''} than the test has seen:"]
    lines += [f"  {line}" for line in unexpected[:_SHOWN_MAX]]
    return "\n".join(lines + _omitted(count))


def journey_lines(journey: Journey) -> list[str]:
    """Return the state of a message: its last step, and each recipient that is not final."""
    step = max(journey.steps, key=lambda step: step.step, default=None)
    at = f"step {step.step} {step.name}" if step else "no step yet"
    to = ", ".join(recipient.address for recipient in journey.recipients[:_SHOWN_MAX])
    head = f"{journey.key}  {_shown(journey.subject)}  {journey.sender or '<>'} -> {to}: {at}"
    return [head, *(f"  {line}" for line in _recipient_lines(journey))]


def arrival_line(arrival: ArrivedMessage) -> str:
    """Return one line about a message that arrived."""
    sender = arrival.journey.sender if arrival.journey else ""
    name = arrival.copy.name
    what = f"{_shown(arrival.subject)} from {sender or '<>'} to {_clipped(arrival.copy.recipient)}"
    return f"{name}  {what}: {arrival.state}"


def _recipient_lines(journey: Journey) -> Iterator[str]:
    for recipient in journey.shown_recipients[:_SHOWN_MAX]:
        reply = f": {_clipped(recipient.reply)}" if recipient.reply else ""
        count = len(recipient.attempts)
        attempts = f" after {count} attempt{'s' if count > 1 else ''}" if count else ""
        yield f"{recipient.address} {recipient.state}{attempts}{reply}"


def listed(title: str, entries: Sequence[Sequence[str]]) -> list[str]:
    """Return the number of entries, and the lines of the last ones."""
    lines = [f"{title}: {len(entries) or 'nothing'}"]
    lines += [f"  {line}" for entry in entries[-_SHOWN_MAX:] for line in entry]
    return lines + _omitted(len(entries))


def _line(arrival: ArrivedMessage, observed: Observed) -> str:
    taken = " (returned by an earlier wait)" if arrival.copy.key in observed.taken else ""
    return arrival_line(arrival) + taken


def refused_lines(refused: Sequence[Refusal]) -> list[str]:
    """Return lines about refusals of SMTP sessions, the newest last; none if there were none."""
    if not refused:
        return []
    lines = [f"Refused: {sum(refusal.times for refusal in refused)}"]
    latest = reversed(refused[:_SHOWN_MAX])
    lines += [f"  {_on_one_line(line_of(refusal)).removeprefix('refused ')}" for refusal in latest]
    return lines + _omitted(len(refused))


def _outbox_lines(outbox: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Return what Django did not send."""
    if not outbox:
        return []
    many = f"{len(outbox)} message{'s' if len(outbox) > 1 else ''}"
    lines = [f"Django's locmem outbox has {many}: use the fixture relay_django"]
    for subject, to in outbox[-_SHOWN_MAX:]:
        lines.append(f"  {_shown(subject)} to {_clipped(', '.join(to))}")
    return [*lines, *_omitted(len(outbox)), ""]


def _omitted(count: int) -> list[str]:
    return [f"  … and {count - _SHOWN_MAX} more"] if count > _SHOWN_MAX else []


def _nearest(
    criteria: Wanted, arrivals: Sequence[ArrivedMessage], observed: Observed
) -> ArrivedMessage | None:
    """Return the most similar message; a new one has precedence over one that was returned."""

    def order(arrival: ArrivedMessage) -> tuple[float, bool]:
        return likeness(criteria.compare(arrival)), arrival.copy.key not in observed.taken

    return max(arrivals, key=order, default=None)


def _matches(pattern: Pattern, value: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(value) is not None
    return matches_pattern(pattern, value) if pattern else not value


def _shown(value: Pattern) -> str:
    if isinstance(value, re.Pattern):
        return f"/{_clipped(value.pattern)}/"
    return f'"{_clipped(value)}"'


def _clipped(text: str) -> str:
    """Return a short text for a terminal, on one line and without control characters."""
    text = _on_one_line(text)
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}…"


def _on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
