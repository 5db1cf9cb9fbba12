"""The recorded events of all messages, behind one cursor.

Steps 1 to 4 are read from the submission log, steps 5 to 7 from the spool. They are recorded there
anyway, so a reader costs the mail nothing. It can continue after any time that the history covers.

A cursor has a place in each source, and each source is read in the order in which it was recorded.
So an event that becomes visible late is after every cursor that was given out before. Between the
sources, events are merged by their times.
"""

import asyncio
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from msgspec import Struct

from relay.base import clock
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.store.journeys.events import EventCursor, LogPosition, RecordedEvent
from relay.store.journeys.log_reader import LogEvents, LogReader
from relay.store.journeys.spool_history import SpoolEvents, SpoolHistory

_CURSOR_CHARACTERS_MAX = 1000
_NEW_AT_ONCE = 5000
_OTHER_LOGS_MAX = 8  # whose places a cursor keeps: those of the latest days
_LOG = re.compile(
    r"([a-z]{1,20}(?:-[0-9a-f]{8})?)~(\d{4}-\d\d-\d\d)~(\d{1,18})~(\d{1,9})~([0-9a-f]{8})", re.ASCII
)
_PAUSE_S_MIN = 0.02
_PAUSE_S_MAX = 5.0


class EventData(Struct, frozen=True):
    """The JSON of an event: a step of a journey, and the message."""

    cursor: str  # after it
    message: str | None  # the queue id
    submission_id: str | None  # None for mail by SMTP
    step: int  # 1 to 7
    name: str  # of the step
    at: str  # when it ended
    detail: Mapping[str, Any]  # as it is stored
    state: RecipientState | SubmissionState | None  # see RecordedEvent


def event_data(cursor: str, recorded: RecordedEvent) -> EventData:
    """Return what programs get of an event."""
    return EventData(
        cursor,
        recorded.queue_id,
        recorded.submission_id,
        int(recorded.step),
        recorded.step.title,
        clock.rfc3339(recorded.at_us),
        recorded.detail,
        recorded.state,
    )


_Entry = tuple[int | LogPosition, RecordedEvent | None]


def parse_event_cursor(text: str) -> EventCursor:
    """Return the cursor. Raises ValueError for a text that is not a cursor.

    Any number is accepted: after a clock that was ahead, cursors are ahead of the time.
    """
    number, *parts = text[:_CURSOR_CHARACTERS_MAX].split(".")
    if not re.fullmatch(r"\d{1,18}", number, re.ASCII):
        raise ValueError("not a cursor")
    logs: dict[str, LogPosition] = {}
    for part in parts:
        match = _LOG.fullmatch(part)
        if match is None or match[1] in logs:
            raise ValueError("not a cursor")
        position = LogPosition(match[2], int(match[3]), int(match[4]), int(match[5], 16))
        logs[match[1]] = position
    cursor = EventCursor(int(number), logs)
    if str(cursor) != text:
        raise ValueError("not a cursor")
    return cursor


class EventBatch(NamedTuple):
    """The events after the cursor `after`, each with its source and the cursor after it.

    `cursor` is after all of them. `removed_to` is the sequence of the last event that the spool has
    removed. `is_log_missing`: the submission log has removed the place of `after`. `is_complete`:
    there were no more events.
    """

    after: EventCursor
    events: Sequence[tuple[str, EventCursor, RecordedEvent]]
    cursor: EventCursor
    removed_to: int
    is_log_missing: bool
    is_complete: bool


class EventFeed:
    """Reads the events of the spool and of the submission log."""

    def __init__(self, spool: SpoolHistory, log: LogReader) -> None:
        self._spool = spool
        self._log = log

    async def now(self) -> EventCursor:
        """Return a cursor that is before all later events."""
        sequence = await self._spool.last_event()
        return EventCursor(sequence, await asyncio.to_thread(self._log.ends))

    async def place_of(self, cursor: EventCursor) -> EventCursor:
        """Return where a reader with this cursor begins: nearly always at the cursor.

        A cursor beyond the last event belongs to a state that was lost, for example by a
        restoration. Its reader begins with the events that are recorded from now on.
        """
        if cursor.sequence <= await self._spool.last_event(is_settled=False):
            return cursor
        return EventCursor(await self._spool.last_event(), cursor.logs)

    async def first_place(self, cursor: EventCursor) -> EventCursor:
        """Return where a reader of all events begins: place_of(), and if the cursor has no place in
        the log of this node, at the end of it. The places in the logs of other nodes are kept.
        """
        place = await self.place_of(cursor)
        if not self._log.is_new_to(place.logs):
            return place
        logs = sorted(place.logs.items(), key=lambda log: log[1].day)[-_OTHER_LOGS_MAX:]
        ends = await asyncio.to_thread(self._log.ends)
        return EventCursor(place.sequence, {**dict(logs), **ends})

    async def read(self, after: EventCursor, *, limit: int) -> EventBatch:
        """Return the first events after a cursor.

        The spool is read first. When it has an event of a message, the log has the earlier steps.
        """
        spool = await self._spool.events_after(after.sequence, limit=limit)
        logs = await asyncio.to_thread(self._log.read, after.logs, limit=limit)
        return _merged(after, spool, logs)

    async def read_new(self, after: EventCursor, *, is_settled: bool = True) -> EventBatch:
        """Return what read() does, but of the spool only step 5 of messages whose earlier steps are
        not in the log.

        These events have no details. Unless `is_settled`, some may be returned again later. After a
        cursor of another node, the log begins at its end, and all messages in the spool are new.
        """
        limit = _NEW_AT_ONCE
        if self._log.is_new_to(after.logs):
            ends = await asyncio.to_thread(self._log.ends)
            spool = await self._spool.accepted_after(
                after.sequence, limit=limit, is_settled=is_settled, own=True
            )
            batch = _merged(after, spool, {})
            here = EventCursor(batch.cursor.sequence, ends)
            return batch._replace(cursor=here) if batch.is_complete else batch
        spool = await self._spool.accepted_after(after.sequence, limit=limit, is_settled=is_settled)
        logs = await asyncio.to_thread(self._log.read, after.logs, limit=limit)
        return _merged(after, spool, logs)


def _merged(after: EventCursor, spool: SpoolEvents, logs: Mapping[str, LogEvents]) -> EventBatch:
    """Merge the sources by time, as far as all of them were read; "" is the spool."""
    # At the same time the log goes first, with the earlier steps.
    sources: dict[str, deque[_Entry]] = {role: deque(log.events) for role, log in logs.items()}
    sources[""] = deque(spool.events)
    cut_off = [role for role, log in logs.items() if not log.is_complete]
    if not spool.is_complete:
        cut_off.append("")
    cursor = after
    events: list[tuple[str, EventCursor, RecordedEvent]] = []
    while any(sources.values()) and all(sources[name] for name in cut_off):
        name = min(
            filter(sources.__getitem__, sources), key=lambda source: _time_us(sources[source][0])
        )
        place, recorded = sources[name].popleft()
        cursor = cursor.moved(name, place)
        if recorded is not None:
            events.append((name, cursor, recorded))
    if not cut_off:  # a place may have moved without an event, such as to the file of the next day
        for role, log in logs.items():
            cursor = cursor.moved(role, log.end)
    is_log_missing = any(log.is_missing for log in logs.values())
    return EventBatch(after, events, cursor, spool.removed_to, is_log_missing, not cut_off)


def _time_us(entry: _Entry) -> int:
    _, recorded = entry
    return recorded.at_us if recorded is not None else 0


def pause_after(cost_s: float) -> float:
    """Return the seconds to wait after a read that took `cost_s`: reading takes a twentieth of the
    time.
    """
    return clock.pause_after(cost_s, least_s=_PAUSE_S_MIN, most_s=_PAUSE_S_MAX)


class ChangeNotifier:
    """Wakes waiting tasks when a journey changes. The process has one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # the store records steps in threads
        self._count = 0
        self._next: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def count(self) -> int:
        """The number of changes. Read it before a query: then no change is missed."""
        return self._count

    def notify(self) -> None:
        """Report a change, from any thread. This is cheap when no task waits."""
        with self._lock:
            self._count += 1
            waited_for, self._next = self._next, None
        if waited_for is not None:
            loop, event = waited_for
            loop.call_soon_threadsafe(event.set)

    async def wait_beyond(self, count: int, timeout_s: float | None = None) -> None:
        """Return when the number of changes exceeds `count`, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):  # real time: a client waits
                while True:
                    with self._lock:
                        if self._count > count:
                            return
                        if self._next is None:
                            self._next = asyncio.get_running_loop(), asyncio.Event()
                        _, event = self._next
                    await event.wait()
