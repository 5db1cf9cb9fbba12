"""GET /relay/v1/events: the recorded events as server-sent events, after one cursor.

While streams are open, one task reads what was recorded since its last look, and gives the same
block of events to all of them. A stream with an older cursor first reads on its own up to the place
of that task. Nothing else is kept: after a break the client continues with its last cursor. With no
stream open there is no task, and mail costs no more than without this module.

A busy relay records thousands of events in a second. Reading and sending them takes at most a
twentieth of the time; then the streams follow later than the mail.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.front_door.http.errors import ApiError, quoted, service_unavailable
from relay.front_door.http.gateway import EventStreamResponse
from relay.store.journeys.event_feed import (
    ChangeNotifier,
    EventBatch,
    EventCursor,
    EventData,
    EventFeed,
    event_data,
    parse_event_cursor,
    pause_after,
)
from relay.store.journeys.events import RecordedEvent
from relay.store.journeys.sender_view import sender_detail
from relay.store.spool.types import SpoolError

STREAMS_MAX = 200
STREAMS_OF_ACCOUNT_MAX = 20  # of the role user
_EVENTS_MAX = 500  # in a block
_RECENT_BLOCKS = 8
_READS_AT_ONCE = 2
_CHECK_S = 10.0  # whether the client may still read
# A process of another role writes the submission log without a notification: poll as well.
_POLL_S = 1.0
_SEND_S = 0.0002  # what one block for one stream costs at least, and each of its octets
_SEND_S_PER_BYTE = 2e-9
# Without an empty line: some clients would report an event without data there.
_RETRY = b"retry: 2000\n"
_GAP = "Events between this cursor and the next event are not kept any more."
_EXPECTED = 'the id of an event, or "0" for the beginning'
_log = get_logger("api")


class _EventText(NamedTuple):
    """One event in its text form, and by whom and how it can be asked for."""

    account: str
    queue_id: str | None
    submission_id: str | None
    source: str
    cursor: EventCursor
    octets: bytes
    sender_octets: bytes  # for its account


class WantedMessage(NamedTuple):
    """The message that a stream is about."""

    queue_id: str | None
    submission_id: str | None


class EventView(Struct, frozen=True):
    """What a stream shows: the events of an account, None for all, and of one message or all.

    Without `after` it begins with what is recorded from now on. When `is_current` returns false,
    the stream ends.
    """

    account: str | None = None
    message: WantedMessage | None = None
    after: EventCursor | None = None
    is_current: Callable[[], bool] = lambda: True


@dataclass(slots=True, eq=False)
class _Block:
    """Events that were read once, for all streams at the place `batch.after`."""

    batch: EventBatch
    texts: tuple[_EventText, ...]
    _joined: dict[str | None, bytes] = field(default_factory=dict)

    def text_for(self, view: EventView, begins: EventCursor | None) -> bytes:
        """Return the events that a view shows, only those behind `begins` if it is given."""
        if view.message is None and begins is None:
            text = self._joined.get(view.account)
            if text is None:
                text = self._joined[view.account] = self._join(view, None)
            return text
        return self._join(view, begins)

    def _join(self, view: EventView, begins: EventCursor | None) -> bytes:
        wanted = view.message
        return b"".join(
            one.octets if view.account is None else one.sender_octets
            for one in self.texts
            if view.account in (None, one.account)
            and (begins is None or not begins.covers(one.source, one.cursor))
            and (
                wanted is None
                or (one.queue_id is not None and one.queue_id == wanted.queue_id)
                or (one.submission_id is not None and one.submission_id == wanted.submission_id)
            )
        )


class EventStreams:
    """The open streams of a process, and the task that reads for them."""

    def __init__(self, feed: EventFeed, *, changes: ChangeNotifier, clock: Clock) -> None:
        self._feed = feed
        self._changes = changes
        self._clock = clock
        self._is_closed = False
        self._open = ConcurrencyCounter()  # streams by account
        self._reader: asyncio.Task[None] | None = None
        self._place = EventCursor()  # of the reader
        self._recent: deque[_Block] = deque(maxlen=_RECENT_BLOCKS)
        self._news = asyncio.Event()  # replaced by each block
        self._caught_up: dict[str, asyncio.Task[_Block]] = {}  # that run
        self._reads = asyncio.Semaphore(_READS_AT_ONCE)
        self._sent_s = 0.0  # what sending has cost since the last block

    def close(self) -> None:
        """End all streams; their clients continue with another process."""
        self._is_closed = True
        self._news.set()
        self._stop_reading()

    def view_of(
        self, query: Mapping[str, str], last_event_id: str | None, account: str | None
    ) -> EventView:
        """Return the view that a request asks for, apart from the message. Raises ApiError 400."""
        name, text = "after", query.get("after")
        if last_event_id:
            name, text = "Last-Event-ID", last_event_id
        if text is None:
            return EventView(account)
        try:
            after = parse_event_cursor(text, now_us=self._clock.time_us())
        except ValueError:
            message = f"{name}: found {quoted(text)}, expected {_EXPECTED}."
            raise ApiError(400, "BadRequest", message) from None
        return EventView(account, after=after)

    async def response(self, view: EventView) -> EventStreamResponse:
        """Return a stream. Raises ApiError 503 or 429 if too many are open."""
        self._check_number(view)
        begins = await self._feed.now() if view.after is None else None
        cursor = str(view.after or begins)
        return EventStreamResponse(self._stream(view, begins), headers={"x-relay-cursor": cursor})

    def _check_number(self, view: EventView) -> None:
        if self._is_closed or self._open.total >= STREAMS_MAX:
            raise service_unavailable("Too many event streams are open already.", retry_after_s=5)
        if self._open.count(view.account) >= STREAMS_OF_ACCOUNT_MAX:
            message = f"This account has {STREAMS_OF_ACCOUNT_MAX} event streams open already."
            raise ApiError(429, "TooManyRequests", message, headers={"retry-after": "5"})

    async def _stream(
        self, view: EventView, begins: EventCursor | None
    ) -> AsyncGenerator[bytes, None]:
        """Yield blocks of text. `begins` is the place of a stream from now on."""
        try:
            self._check_number(view)
        except ApiError:  # others have begun since response()
            return
        self._open.begin(view.account)
        checked_s = self._clock.real_s()
        try:
            if self._reader is None:
                await self._start_reading(begins)
            yield _RETRY
            place, reported_to = self._place, 0
            if view.after is not None:
                place = await self._first_place(view.after)
                if place.logs != view.after.logs:
                    yield _gap_at(place)
            while not self._is_closed:
                if (now_s := self._clock.real_s()) - checked_s >= _CHECK_S:
                    checked_s = now_s
                    if not view.is_current():
                        return
                news = self._news
                block = await self._block_behind(place)
                if block is None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_CHECK_S):  # real time: a client
                            await news.wait()
                    continue
                batch = block.batch
                is_removed = 0 < max(reported_to, place.sequence) < batch.removed_to
                if batch.is_log_missing or is_removed:
                    reported_to = max(batch.removed_to, 1)
                    yield _gap_at(place)
                if begins is not None and (batch.is_log_missing or place.covers_all(begins)):
                    begins = None
                text = block.text_for(view, begins)
                place = batch.cursor
                del block, batch  # a stream that waits for its client keeps the text alone
                if text:
                    self._sent_s += _SEND_S + len(text) * _SEND_S_PER_BYTE
                    yield text
        except SpoolError as error:  # the client continues where the stream ends
            _log.warning("event stream ended", error=str(error))
        except Exception:  # noqa: BLE001 - ours: the client continues in the same way
            _log.exception("event stream ended")
        finally:
            self._open.end(view.account)
            if not self._open.total:
                self._stop_reading()

    async def _first_place(self, after: EventCursor) -> EventCursor:
        """Return where a stream after a cursor begins.

        In the spool, a cursor of another node may be ahead of the reader here; one behind
        everything that is recorded is of another spool. Of the log, which that node does not have,
        the stream tells what comes from now on.
        """
        sequence, logs = after.sequence, after.logs
        if sequence > self._place.sequence and sequence > (await self._feed.now()).sequence:
            sequence = self._place.sequence
        if logs and not logs.keys() & self._place.logs.keys():
            logs = self._place.logs
        return EventCursor(sequence, logs)

    async def _block_behind(self, place: EventCursor) -> _Block | None:
        """Return the events behind a place; None if the reader has no more yet."""
        for block in self._recent:
            if block.batch.after == place:
                return block
        is_ahead = place.logs == self._place.logs and place.sequence > self._place.sequence
        if place == self._place or is_ahead:
            return None
        key = str(place)
        if (task := self._caught_up.get(key)) is None:
            task = self._caught_up[key] = asyncio.create_task(self._catch_up(place))
            # The streams that wait for it may have ended by then.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return await asyncio.shield(task)

    async def _catch_up(self, place: EventCursor) -> _Block:
        """Read for one stream; the others that come to the same place at once share the block.

        The next one reads after a pause: a client that begins at the beginning of a long history,
        again and again, takes a bounded part of the time.
        """
        try:
            await self._reads.acquire()
            began_s = self._clock.real_s()
            try:
                last = max(place.sequence, self._place.sequence)
                until = EventCursor(last, self._place.logs)
                batch = await self._feed.read(place, limit=_EVENTS_MAX, until=until)
                return _block_of(batch)
            finally:
                pause_s = pause_after(self._clock.real_s() - began_s, least_s=0)
                loop = asyncio.get_running_loop()
                loop.call_later(pause_s, self._reads.release)  # real time: clients wait
        finally:
            del self._caught_up[str(place)]

    async def _start_reading(self, begins: EventCursor | None) -> None:
        place = begins or await self._feed.now()
        if self._reader is None and not self._is_closed:
            self._place = place
            self._reader = asyncio.create_task(self._read(), name="event streams")

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        self._recent.clear()

    async def _read(self) -> None:
        """Read what is recorded, until the last stream ends."""
        fault = RepeatedError()
        while True:
            seen = self._changes.count
            began_s = self._clock.real_s()
            try:
                block = _block_of(await self._feed.read(self._place, limit=_EVENTS_MAX))
            except SpoolError as error:  # the database of the spool may be away
                if fault.is_new(error):
                    _log.warning("events not read", error=str(error))
                await asyncio.sleep(_POLL_S)  # real time: clients wait
                continue
            except Exception:  # noqa: BLE001 - such as a log on a failing disk: try again
                _log.exception("events not read")
                await asyncio.sleep(_POLL_S)  # real time: clients wait
                continue
            fault.clear()
            cost_s = self._clock.real_s() - began_s
            if block.batch.cursor != self._place:
                self._recent.append(block)
                self._place = block.batch.cursor
                news, self._news = self._news, asyncio.Event()
                news.set()
                await asyncio.sleep(0)  # real time: the streams take the block
            cost_s += self._sent_s
            self._sent_s = 0.0
            if block.batch.is_complete:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):  # real time: clients wait
                        await self._changes.wait_beyond(seen)
            pause_s = pause_after(cost_s)
            await asyncio.sleep(pause_s)  # real time: clients wait


def _block_of(batch: EventBatch) -> _Block:
    texts = [_text_of(source, cursor, one) for source, cursor, one in batch.events]
    return _Block(batch, tuple(texts))


def _text_of(source: str, cursor: EventCursor, recorded: RecordedEvent) -> _EventText:
    text, seen = str(cursor), recorded.of_sender
    octets = sender_octets = _octets(text, event_data(text, recorded))
    if seen is None:
        sender_octets = b""
    else:
        data = event_data(text, seen or recorded)
        detail = sender_detail(data.step, data.detail)
        if seen or detail is not data.detail:
            sender_octets = _octets(text, replace(data, detail=detail))
    return _EventText(
        recorded.account, recorded.queue_id, recorded.submission_id, source, cursor, octets,
        sender_octets,
    )  # fmt: skip


def _octets(cursor: str, data: EventData) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), msgspec.json.encode(data))


def _gap_at(place: EventCursor) -> bytes:
    data = msgspec.json.encode({"cursor": str(place), "detail": _GAP})
    return b"event: gap\nid: %b\ndata: %b\n\n" % (str(place).encode(), data)
