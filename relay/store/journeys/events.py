"""The events of a message's journey: the seven steps, and what happened in each.

Every room creates events. The submission log keeps those of steps 1 to 4, the spool those of
steps 5 to 7. `at_us` is the time at which the step ended, taken before the hand-over to the next
step. The names are those of docs/names.md.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from relay.base.clock import rfc3339
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.store.journeys.details import Detail
from relay.store.journeys.document import JourneyStep

# `unsigned` of step 5 in a relay that signs nothing; commands and pages do not show it
NO_SIGNING_KEYS = "no signing key is configured"


class Step(IntEnum):
    """One of the seven steps."""

    CREATED = 1
    NOTIFIED = 2
    CONVERTED = 3
    ACCEPTED = 4
    POLICY_AND_ROUTING = 5
    DELIVERY = 6
    REPORT = 7

    @property
    def title(self) -> str:
        """The name of the step in a journey."""
        return self.name.lower().replace("_", " ")


class Event(Struct, frozen=True):
    """One event of one message; its detail, which says of which step, is small."""

    at_us: int
    detail: Detail


def journey_step(step: int, at_us: int, detail: dict[str, Any]) -> JourneyStep:
    """Return an event as the journey has it."""
    return JourneyStep(step, Step(step).title, rfc3339(at_us), detail)


class RecordedEvent(Struct, frozen=True):
    """An event of a message, as its store has it. One of the two ids may be unknown."""

    queue_id: str | None  # of the message
    submission_id: str | None  # the same
    account: str  # whose message it is
    step: Step  # of which it is
    at_us: int  # when the step ended, wall time
    detail: dict[str, Any]  # as it is stored, without the client
    known: Detail  # what this relay knows of it
    # of the message before step 4, then of the recipients that the event is about; None if it does
    # not say
    state: RecipientState | SubmissionState | None
    # the event without copies that rules and milters added, which the account does not see: None
    # if nothing is left, () where there are none
    of_sender: "RecordedEvent | tuple[()] | None" = ()


class LogLine(Struct, frozen=True):
    """A line of the submission log: an event of a submission; a remark about it, whose step is 0;
    or that it was withdrawn.

    The facts of a submission are in its line of step 1, by which the others are found, and in that
    of its withdrawal.
    """

    submission_id: str  # draft and number
    step: Annotated[int, Meta(ge=0, le=int(max(Step)))]  # 0 for a remark
    at_us: int = 0  # wall time
    detail: dict[str, Any] = {}  # of the event, or the remark
    queue_id: str = ""  # in the line of step 4
    owner: str = ""  # the account, in lines without the facts
    withdrawn: bool = False  # it was rejected, and has no journey
    graph_id: str = ""  # the draft; with this the facts begin
    account: str = ""  # whose submission it is
    sender: str = ""  # the address in From, else of the account
    message_id: str = ""  # of its header
    subject: str = ""  # decoded
    recipients: tuple[str, ...] = ()  # Bcc too

    @property
    def has_facts(self) -> bool:
        """Whether the facts are in this line."""
        return self.step == Step.CREATED or self.withdrawn


_decoder = msgspec.json.Decoder(LogLine)


def parse_line(line: bytes) -> LogLine | None:
    """Return what a line says, None for one that a crash or a full disk has damaged."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class LogPosition(Struct, frozen=True):
    """A place in the file of a day, behind a line with this size and checksum; at the start these
    are 0.
    """

    day: str
    offset: int
    size: int = 0
    crc: int = 0


class EventCursor(Struct, frozen=True):
    """A place in the recorded events; `sequence` is that in the spool. 0 is the beginning of what
    is kept.
    """

    sequence: int = 0
    logs: Mapping[str, LogPosition] = {}

    def __str__(self) -> str:
        """Return the text of the API, which needs no escaping in a URL."""
        logs = (
            f".{role}~{place.day}~{place.offset}~{place.size}~{place.crc:08x}"
            for role, place in sorted(self.logs.items())
        )
        return f"{self.sequence}{''.join(logs)}"

    def covers(self, source: str, place: "EventCursor") -> bool:
        """Whether the place of `place` in one source is not behind this one's."""
        if not source:
            return place.sequence <= self.sequence
        here, there = self.logs.get(source), place.logs[source]
        return here is not None and (there.day, there.offset) <= (here.day, here.offset)

    def covers_all(self, other: "EventCursor") -> bool:
        """Whether no place of `other` is behind this one's."""
        return all(self.covers(source, other) for source in ("", *other.logs))

    def moved(self, source: str, place: int | LogPosition) -> "EventCursor":
        """Return the cursor with another place in the spool, "", or in the log of a role."""
        if isinstance(place, int):
            return EventCursor(place, self.logs)
        return EventCursor(self.sequence, {**self.logs, source: place})
