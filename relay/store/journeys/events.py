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

from relay.base.clock import TimeUs, rfc3339
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
    """One event of one message. `detail` is small, and its class says of which step it is."""

    at_us: int
    detail: Detail


def journey_step(step: int, at_us: int, detail: dict[str, Any]) -> JourneyStep:
    """Return an event as a journey contains it."""
    return JourneyStep(step, Step(step).title, rfc3339(at_us), detail)


class RecordedEvent(Struct, frozen=True):
    """An event of a message, as its store has it."""

    queue_id: str | None  # of the message, None if unknown
    submission_id: str | None  # None if unknown
    account: str  # whose message it is
    step: Step  # the step that it belongs to
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
    """A line of the submission log.

    It is an event of a submission; or a remark about it, with step 0; or says that it was
    withdrawn. The line of step 1 has the facts of the submission, by which its other lines are
    found. So has the line of the withdrawal.
    """

    submission_id: str  # draft and number
    step: Annotated[int, Meta(ge=0, le=int(max(Step)))]  # 0 for a remark
    at_us: TimeUs = 0  # wall time
    detail: dict[str, Any] = {}  # of the event, or the remark
    queue_id: str = ""  # in the line of step 4
    owner: str = ""  # the account, in lines without the facts
    withdrawn: bool = False  # it was rejected, and has no journey
    graph_id: str = ""  # the draft; the facts are from here on
    account: str = ""  # whose submission it is
    sender: str = ""  # the address in From, or else of the account
    message_id: str = ""  # of its header
    subject: str = ""  # decoded
    recipients: tuple[str, ...] = ()  # Bcc too

    @property
    def has_facts(self) -> bool:
        """Whether the facts are in this line."""
        return self.step == Step.CREATED or self.withdrawn


_decoder = msgspec.json.Decoder(LogLine)


def parse_line(line: bytes) -> LogLine | None:
    """Return the fields of a line, None if a crash or a full disk has damaged it."""
    try:
        return _decoder.decode(line)
    except ValueError:
        return None


class LogPosition(Struct, frozen=True):
    """A place in the file of a day: after a line with this size and checksum, 0 at the start."""

    day: str
    offset: int
    size: int = 0
    crc: int = 0


class EventCursor(Struct, frozen=True):
    """A place in the recorded events.

    `sequence` is the place in the spool; 0 is the beginning of what is kept.
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
        """Whether this cursor is at or after `place` in one source."""
        if not source:
            return place.sequence <= self.sequence
        here, there = self.logs.get(source), place.logs[source]
        return here is not None and (there.day, there.offset) <= (here.day, here.offset)

    def covers_all(self, other: "EventCursor") -> bool:
        """Whether this cursor is at or after `other` in every source."""
        return all(self.covers(source, other) for source in ("", *other.logs))

    def moved(self, source: str, place: int | LogPosition) -> "EventCursor":
        """Return the cursor with another place in one source.

        The source is "" for the spool, or the role of a log.
        """
        if isinstance(place, int):
            return EventCursor(place, self.logs)
        return EventCursor(self.sequence, {**self.logs, source: place})
