"""GET /relay/v1/events: the recorded events as server-sent events, after one cursor.

A stream reads the events after its cursor, one stream at a time. The last blocks of events are kept
for the other streams, which soon reach the same cursor: streams that keep up read each event once
together. Nothing else is kept: after an interruption the client continues with its last cursor.
Without an open stream nothing is read.

A busy relay records thousands of events in a second. Reading and sending them takes at most a
twentieth of the time; on a busy relay the streams lag behind the mail.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.front_door.http.errors import ApiError, bad_request, quoted, service_unavailable
from relay.front_door.http.event_stream import EventStreamResponse
from relay.store.journeys import event_feed
from relay.store.journeys.events import EventCursor, RecordedEvent
from relay.store.journeys.sender_view import sender_detail
from relay.store.spool.types import SpoolError

# limit: event streams; then 503
STREAMS_MAX = 200
# limit: the last of these, only for the roles `read` and `operate`, and the control socket
STREAMS_RESERVED = 20
# limit: event streams of one account; then 429
STREAMS_OF_ACCOUNT_MAX = 20  # streams of the role user
_EVENTS_MAX = 500  # events in a block
_RECENT_BLOCKS = 8
# A process of another role writes the submission log without a notification: poll as well.
_POLL_S = 1.0
_SEND_S = 0.0002  # the least cost of a block for a stream, and the cost of each octet
_SEND_S_PER_BYTE = 2e-9
# Without an empty line: some clients would report an event without data there.
_RETRY = b"retry: 2000\n"
_GAP = "Events between this cursor and the next event are missing."
_EXPECTED = 'the id of an event, or "0" for the beginning'
_log = get_logger("api")


class _EventText(NamedTuple):
    """One event in its text form, and the fields by which it is selected."""

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
    """The events that a stream shows: of an account or all (None), and of one message or all.

    Without `after` it begins with what is recorded from now on.
    """

    account: str | None = None
    message: WantedMessage | None = None
    after: EventCursor | None = None


@dataclass(slots=True, eq=False)
class _Block:
    """Events that were read once, for all streams whose cursor is in them."""

    batch: event_feed.EventBatch
    texts: tuple[_EventText, ...]
    _joined: dict[str | None, bytes] = field(default_factory=dict)

    def follows(self, place: EventCursor) -> bool:
        """Return whether the block has the events that follow a cursor, with cursors after it.

        The cursor may come from a read that did not have an event of the log yet: here this event
        may stand before others of the spool that the client has, and its cursor as well.
        """
        start, end = self.batch.after, self.batch.cursor
        is_within = place.covers_all(start) and end.covers_all(place)
        return (is_within and not place.covers_all(end)) and (
            place == start
            or all(
                text.cursor.covers_all(place)
                for text in self.texts
                if not place.covers(text.source, text.cursor)
            )
        )

    def text_for(self, view: EventView, place: EventCursor) -> bytes:
        """Return the events after a cursor that a view shows."""
        if view.message is None and place == self.batch.after:
            text = self._joined.get(view.account)
            if text is None:
                text = self._joined[view.account] = self._join(view, None)
            return text
        return self._join(view, place)

    def _join(self, view: EventView, place: EventCursor | None) -> bytes:
        message = view.message
        return b"".join(
            text.octets if view.account is None else text.sender_octets
            for text in self.texts
            if view.account in (None, text.account)
            and (place is None or not place.covers(text.source, text.cursor))
            and (
                message is None
                or (text.queue_id is not None and text.queue_id == message.queue_id)
                or (text.submission_id is not None and text.submission_id == message.submission_id)
            )
        )


class EventStreams:
    """The open streams of a process."""

    def __init__(
        self, feed: event_feed.EventFeed, *, changes: event_feed.ChangeNotifier, clock: Clock
    ) -> None:
        self._feed = feed
        self._changes = changes
        self._clock = clock
        self._is_closed = False
        self._open = ConcurrencyCounter()  # streams by account
        self._recent: deque[_Block] = deque(maxlen=_RECENT_BLOCKS)
        self._turn = asyncio.Lock()
        self._reads_from_s = 0.0
        # a cursor with no event after it, the number of changes then, and the time
        self._looked: tuple[EventCursor, int, float] = (EventCursor(), -1, 0.0)
        self._fault = RepeatedError()
        self._sent_s = 0.0  # what sending has cost since the last block

    def close(self) -> None:
        """End all streams; their clients continue with another process."""
        self._is_closed = True
        self._changes.notify()

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
            after = event_feed.parse_event_cursor(text)
        except ValueError:
            raise bad_request(f"{name}: found {quoted(text)}, expected {_EXPECTED}.") from None
        return EventView(account, after=after)

    async def response(self, view: EventView) -> EventStreamResponse:
        """Return a stream. Raises ApiError 503 or 429 if too many are open."""
        self._check_number(view)
        begins = view.after or await self._feed.now()
        stream = self._stream(view, begins)
        return EventStreamResponse(stream, headers={"x-relay-cursor": str(begins)})

    def _check_number(self, view: EventView) -> None:
        most = STREAMS_MAX if view.account is None else STREAMS_MAX - STREAMS_RESERVED
        if self._is_closed or self._open.total >= most:
            raise service_unavailable("Too many event streams are open already.", retry_after_s=5)
        if self._open.count(view.account) >= STREAMS_OF_ACCOUNT_MAX:
            message = f"This account has {STREAMS_OF_ACCOUNT_MAX} event streams open already."
            raise ApiError(429, "TooManyRequests", message, headers={"retry-after": "5"})

    async def _stream(self, view: EventView, place: EventCursor) -> AsyncGenerator[bytes, None]:
        """Yield blocks of text after a cursor."""
        try:
            self._check_number(view)
        except ApiError:  # other streams may have begun since response()
            return
        self._open.begin(view.account)
        try:
            yield _RETRY
            reported_to = 0
            if view.after is not None:
                place = await self._feed.first_place(view.after)
                if place != view.after:
                    yield _gap_at(place)
            while not self._is_closed:
                seen = self._changes.count
                block = await self._block_after(place)
                if block is None:
                    await self._changes.wait_beyond(seen, _POLL_S)
                    continue
                batch = block.batch
                is_removed = 0 < max(reported_to, place.sequence) < batch.removed_to
                if batch.is_log_missing or is_removed:
                    reported_to = max(batch.removed_to, 1)
                    yield _gap_at(place)
                text = block.text_for(view, place)
                place = batch.cursor
                del block, batch  # a stream that waits for its client keeps only the text
                if text:
                    self._sent_s += _SEND_S + len(text) * _SEND_S_PER_BYTE
                    yield text
        except SpoolError as error:  # the client continues where the stream ends
            _log.repeated("warning", "event stream ended", error=str(error))
        except Exception:  # noqa: BLE001 - a fault of Relay: the client continues in the same way
            _log.repeated("exception", "event stream ended")
        finally:
            self._open.end(view.account)
            if not self._open.total:
                self._recent.clear()

    async def _block_after(self, place: EventCursor) -> _Block | None:
        """Return the events after a cursor; None if there are none yet.

        Reads have pauses between them, so that neither many events nor clients that repeatedly read
        a long history take more than a bounded part of the time.
        """
        if block := self._kept_after(place):
            return block
        async with self._turn:
            if block := self._kept_after(place):
                return block
            looked, count, at_s = self._looked
            is_known = looked == place and count == self._changes.count
            if is_known and self._clock.real_s() < at_s + _POLL_S:
                return None
            pause_s = self._reads_from_s - self._clock.real_s()
            await asyncio.sleep(pause_s)  # real time: clients wait
            began_s, count = self._clock.real_s(), self._changes.count
            block = await self._read(place)
            now_s = self._clock.real_s()
            cost_s, self._sent_s = now_s - began_s + self._sent_s, 0.0
            self._reads_from_s = now_s + event_feed.pause_after(cost_s)
            if block is None or block.batch.is_complete:
                self._looked = block.batch.cursor if block else place, count, now_s
            if block is None or block.batch.cursor == place:
                return None
            self._recent.append(block)
            return block

    def _kept_after(self, place: EventCursor) -> _Block | None:
        return next((block for block in self._recent if block.follows(place)), None)

    async def _read(self, place: EventCursor) -> _Block | None:
        """Read the events after a cursor; None if that is not possible now."""
        try:
            block = _block_of(await self._feed.read(place, limit=_EVENTS_MAX))
        except SpoolError as error:  # the database of the spool may be away
            self._fault.log(_log.warning, "events not read", error)
            return None
        except Exception:  # noqa: BLE001 - such as a log on a failing disk: try again
            _log.exception("events not read")
            return None
        self._fault.clear()
        return block


def _block_of(batch: event_feed.EventBatch) -> _Block:
    texts = [_text_of(source, cursor, event) for source, cursor, event in batch.events]
    return _Block(batch, tuple(texts))


def _text_of(source: str, cursor: EventCursor, recorded: RecordedEvent) -> _EventText:
    text, seen = str(cursor), recorded.of_sender
    octets = sender_octets = _octets(text, event_feed.event_data(text, recorded))
    if seen is None:
        sender_octets = b""
    else:
        data = event_feed.event_data(text, seen or recorded)
        detail = sender_detail((seen or recorded).known, data.detail)
        if seen or detail is not data.detail:
            sender_octets = _octets(text, replace(data, detail=detail))
    return _EventText(
        recorded.account,
        recorded.queue_id,
        recorded.submission_id,
        source,
        cursor,
        octets,
        sender_octets,
    )


def _octets(cursor: str, data: event_feed.EventData) -> bytes:
    return b"id: %b\ndata: %b\n\n" % (cursor.encode(), msgspec.json.encode(data))


def _gap_at(place: EventCursor) -> bytes:
    data = msgspec.json.encode({"cursor": str(place), "detail": _GAP})
    return b"event: gap\nid: %b\ndata: %b\n\n" % (str(place).encode(), data)
