"""Webhooks: the events of journeys, posted to an operator's URLs and signed.

A webhook is a cursor in the recorded events (relay/journeys/event_feed.py), which only a 2xx
advances. It reads one block of events, gives each to one of its lanes by its message, and reads the
next block when all lanes are done: the events of a message stay in order, those of others do not
wait for its answers. The file of the cursors is written once in a second, so after a kill or a loss
of power the events of about that second come again, with the same webhook-id. What waits for more
than a day is dropped. Without webhooks nothing is read.

The signature is that of Standard Webhooks 1.0.0 (webhook-id, webhook-timestamp, webhook-signature).
"""

import asyncio
import hmac
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

from relay.base.clock import Clock, SystemClock, rfc3339
from relay.base.files import fsync_path
from relay.journeys.changes import ChangeNotifier
from relay.journeys.event_feed import (
    EventBatch,
    EventCursor,
    EventData,
    EventFeed,
    event_data,
    parse_event_cursor,
    pause_after,
)
from relay.journeys.events import RecordedEvent, Step
from relay.message.web_url import read_url
from relay.notifications.https_client import HttpsClient, RequestFailedError
from relay.notifications.sender import POST_S, Post, Sender
from relay.observe.logs import RepeatedError, get_logger
from relay.observe.metrics import Metrics
from relay.policy.globs import Globs
from relay.settings.tree import Webhook
from relay.settings.values import KEY_PREFIX
from relay.spool.types import SpoolError

KEEP_US = 86_400_000_000  # an event that is older is dropped when a request fails
LANES = 4  # requests at once, for each webhook
_EVENTS_MAX = 500  # in memory, for each webhook
_STEPS = {
    Step.ACCEPTED: "accepted", Step.POLICY_AND_ROUTING: "policy", Step.DELIVERY: "delivery",
    Step.REPORT: "reported",
}  # fmt: skip
# of recipients that have them at once, by a key of the event, and by an action of a rule
_STATES_OF_POLICY = {
    "held": "held", "refused": "failed", "quarantined": "delivered", "aliases": "expanded",
}  # fmt: skip
_STATES_OF_RULES = {"discard": "discarded", "redirect": "redirected"}
_SAVE_S = 1.0
# As for event streams: another process may write the log, and reading takes a twentieth of the time
_POLL_S = 1.0
_log = get_logger("notifications")


class _Waiting(Struct, frozen=True):
    """An event that is still to be sent, with its place in the block and the cursor before it."""

    place: int
    id: str
    body: bytes
    at_us: int
    before: EventCursor


def signed_fields(secret: str, event_id: str, body: bytes, *, now_s: int) -> dict[str, str]:
    """Return the header fields of Standard Webhooks."""
    key = b64decode(secret.removeprefix(KEY_PREFIX))
    text = b"%b.%d.%b" % (event_id.encode(), now_s, body)
    signature = b64encode(hmac.digest(key, text, "sha256")).decode()
    return {
        "webhook-id": event_id, "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{signature}",
    }  # fmt: skip


def event_names(recorded: RecordedEvent) -> set[str]:
    """Return the names by which a webhook can ask for an event: its step, and states of recipients.

    Mail by SMTP has no event of step 4: that of step 5 has its time.
    """
    step, detail = recorded.event.step, recorded.event.detail
    names = {_STEPS.get(step, ""), str(recorded.state or "")}
    if step is Step.POLICY_AND_ROUTING:
        names.update(["accepted"] if not recorded.submission_id else ())
        names.update(state for key, state in _STATES_OF_POLICY.items() if key in detail)
        outcomes = [one["outcome"] for one in detail.get("rules", ()) if one["mode"] == "enforce"]
        words = ",".join(outcomes).split(",")
        names.update(state for word, state in _STATES_OF_RULES.items() if word in words)
    elif step is Step.DELIVERY and "operation" not in detail:
        names.update(one["outcome"] for one in detail.get("recipients", ()))
        names.update(["deferred"] if "indeterminate" in names else ())
        names.difference_update(["deferred"] if "held" in detail else ())
    return names


class _Lane:
    """A Feed of the sender: some of the events of a webhook."""

    def __init__(self, owner: "_RunningWebhook") -> None:
        self._owner = owner
        self.waiting: deque[_Waiting] = deque()

    @property
    def name(self) -> str:
        """See Feed: the path of the URL may have a secret."""
        return f"webhook {self._owner.url.authority}"

    async def next_post(self) -> Post | None:
        """See Feed."""
        return self._owner.post_of(self.waiting[0]) if self.waiting else None

    async def sent(self, post: Post) -> None:  # noqa: ARG002 - a Feed
        """See Feed."""
        self.waiting.popleft()
        self._owner.advanced(failure="")

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed."""
        dropped = 0
        while self.waiting and self._owner.is_too_old(self.waiting[0].at_us):
            self.waiting.popleft()
            dropped += 1
        if dropped:
            _log.warning("events are dropped after a day", receiver=self.name, events=dropped)
        self._owner.advanced(failure=why)
        return dropped


class _RunningWebhook:
    """One webhook: the task that reads for it, and its lanes."""

    def __init__(self, owner: "Webhooks", hook: Webhook, cursor: EventCursor | None) -> None:
        self.cursor = cursor  # all before it was sent, or dropped; None: it begins now
        self.failure = ""  # why the last request failed
        self.failing_since_us = 0
        self.lanes = [_Lane(self) for _ in range(LANES)]
        self._owner = owner
        self._block_end = EventCursor()
        self._reported_to = 0
        self._seen = -1  # changes
        self._is_sent = asyncio.Event()  # all of the block
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None
        self.use(hook)

    def use(self, hook: Webhook) -> None:
        """Have another secret, other events or accounts from now on."""
        self.hook, self.url = hook, read_url(hook.url, schemes=("https", "http"))
        self._accounts = Globs.of(hook.accounts)

    @property
    def is_busy(self) -> bool:
        """Whether something may have happened that was not read yet, and nothing else waits."""
        return self._seen != self._owner.changes.count and not any(
            lane.waiting for lane in self.lanes
        )

    def is_too_old(self, at_us: int) -> bool:
        """Whether an event is not worth another request."""
        age_us: int = self._owner.clock.time_us() - at_us
        return age_us >= KEEP_US

    def post_of(self, event: _Waiting) -> Post:
        """Return a request. It has the time of the machine: receivers compare it with theirs."""
        now_s = SystemClock().time_us() // 1_000_000
        fields = signed_fields(self.hook.secret, event.id, event.body, now_s=now_s)
        return Post(self.url, event.body, fields=tuple(fields.items()))

    def advanced(self, *, failure: str) -> None:
        """Note that a request has ended."""
        if failure and not self.failure:
            self.failing_since_us = self._owner.clock.time_us()
        self.failure = failure
        left = [lane.waiting[0] for lane in self.lanes if lane.waiting]
        if left:
            self.cursor = min(left, key=lambda one: one.place).before
        else:
            self.cursor = self._block_end
            self._is_sent.set()
        self._owner.is_changed.set()

    async def start(self) -> None:
        """Begin; where the spool cannot be read, as soon as it can."""
        with suppress(SpoolError, OSError):
            await self._begin()
        self._task = asyncio.create_task(self._run(), name="webhook")

    async def _begin(self) -> None:
        """Take the present as the beginning, unless there is one that this spool can have had."""
        now = await self._owner.feed.now()
        if self.cursor is None or self.cursor.sequence > now.sequence:
            self.cursor = now
            self._owner.is_changed.set()
        self._block_end, self._has_begun = self.cursor, True

    async def _run(self) -> None:
        fault, clock = RepeatedError(), self._owner.clock
        while True:
            seen, began_s = self._owner.changes.count, clock.real_s()
            try:
                if not self._has_begun:
                    await self._begin()
                batch = await self._owner.feed.read(self._block_end, limit=_EVENTS_MAX)
                cost_s = clock.real_s() - began_s
                await self._send(batch)
            except Exception as error:  # noqa: BLE001 - such as a database or a disk that is away
                if fault.is_new(error):
                    _log.warning("events not read", receiver=self.url.authority, error=repr(error))
                for lane in self.lanes:
                    lane.waiting.clear()  # the block comes again
                await asyncio.sleep(_POLL_S)  # real time: the spool
                continue
            fault.clear()
            self._seen = seen
            if batch.is_complete:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):  # real time: a file has no notification
                        await self._owner.changes.wait_beyond(seen)
            pause_s = pause_after(cost_s)
            await asyncio.sleep(pause_s)  # real time: spares the machine

    async def _send(self, batch: EventBatch) -> None:
        """Send a block of events; return when each was sent or dropped."""
        self._report_gap(batch)
        before, dropped = batch.after, 0
        for place, (source, cursor, recorded) in enumerate(batch.events):
            if not self._wants(recorded):
                pass
            elif self.failure and self.is_too_old(recorded.event.at_us):
                dropped += 1
            else:
                body = msgspec.json.encode(event_data(str(cursor), recorded))
                name = _id_of(source, cursor, recorded.event.at_us)
                key = (recorded.submission_id or recorded.queue_id or "").encode()
                waiting = _Waiting(place, name, body, recorded.event.at_us, before)
                self.lanes[crc32(key) % LANES].waiting.append(waiting)
            before = cursor
        self._owner.count_dropped(dropped)
        self._block_end = batch.cursor
        self._is_sent.clear()
        if not any(lane.waiting for lane in self.lanes):
            if self.cursor != self._block_end:
                self.advanced(failure=self.failure)
            return
        for lane in self.lanes:
            self._owner.sender.wake(str(id(lane)), lane)
        await self._is_sent.wait()

    def _wants(self, recorded: RecordedEvent) -> bool:
        events = self.hook.events
        if "*" not in events and event_names(recorded).isdisjoint(events):
            return False
        return self._accounts.match(recorded.account)

    def _report_gap(self, batch: EventBatch) -> None:
        """Report once that events were removed before they were read."""
        is_removed = 0 < max(self._reported_to, batch.after.sequence) < batch.removed_to
        if batch.is_log_missing or is_removed:
            self._reported_to = max(batch.removed_to, 1)
            self._owner.count_dropped(1)
            _log.warning("events were removed before the webhook had them", url=self.url.authority)

    async def end(self) -> None:
        """Send no more."""
        for lane in self.lanes:
            self._owner.sender.end(str(id(lane)))
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


class Webhooks:
    """The webhooks of a relay. Call open() once, then run(), then close()."""

    def __init__(
        self, file: Path, feed: EventFeed, *, changes: ChangeNotifier, clock: Clock,
        client: HttpsClient, metrics: Metrics,
    ) -> None:  # fmt: skip
        """`file` keeps the cursors."""
        self.feed, self.changes, self.clock = feed, changes, clock
        self.sender = Sender(client, kind="webhook", clock=clock, metrics=metrics)
        self.is_changed = asyncio.Event()  # a cursor
        self._client = client
        self._file = file
        self._dropped = metrics.notifications.labels(kind="webhook", result="dropped")
        self._running: dict[str, _RunningWebhook] = {}
        self._turn = asyncio.Lock()
        self._writing: asyncio.Future[None] | None = None

    def in_progress(self) -> str:
        """Say whether something is being read or sent, "" if not."""
        count = self.sender.busy_count + sum(one.is_busy for one in self._running.values())
        return f"webhooks: {count}" if count else ""

    def count_dropped(self, count: int) -> None:
        """Count events that no request had, or none that was successful."""
        self._dropped.inc(count)

    async def open(self, hooks: Sequence[Webhook]) -> None:
        """Begin: each where it was, a new one now. Raises OSError."""
        if hooks or self._file.exists():
            cursors = await asyncio.to_thread(_read, self._file, now_us=self.clock.time_us())
            await self.use(hooks, cursors)

    async def use(
        self, hooks: Sequence[Webhook], cursors: Mapping[str, EventCursor] | None = None
    ) -> None:
        """Have these webhooks from now on; what is known of others is forgotten."""
        async with self._turn:
            urls = {hook.url for hook in hooks}
            for url in self._running.keys() - urls:
                await self._running.pop(url).end()
                self.is_changed.set()
            for hook in hooks:
                if hook.url in self._running:
                    self._running[hook.url].use(hook)
                else:
                    await self._begin(hook, (cursors or {}).get(hook.url))

    async def _begin(self, hook: Webhook, cursor: EventCursor | None) -> None:
        self._running[hook.url] = made = _RunningWebhook(self, hook, cursor)
        await made.start()

    def shown(self) -> list[dict[str, Any]]:
        """Return the webhooks for an operator."""
        return [
            {
                "url": one.hook.url, "events": one.hook.events, "accounts": one.hook.accounts,
                "cursor": str(one.cursor or ""),
                "failure": one.failure or None,
                "failing_since": rfc3339(one.failing_since_us) if one.failure else None,
            }
            for one in self._running.values()
        ]  # fmt: skip

    async def replay(self, cursor: EventCursor, urls: Sequence[str]) -> None:
        """Go on from another cursor. Raises KeyError for a URL that is no webhook's."""
        async with self._turn:
            hooks = [self._running[url].hook for url in urls]
            for hook in hooks:
                await self._running.pop(hook.url).end()
                await self._begin(hook, cursor)
                self.is_changed.set()

    async def test(self, urls: Sequence[str]) -> list[dict[str, Any]]:
        """Post an event named "test"; return what came of it for each URL. Raises KeyError."""
        return await asyncio.gather(*(self._test(self._running[url]) for url in urls))

    async def _test(self, one: _RunningWebhook) -> dict[str, Any]:
        now_us = SystemClock().time_us()
        event = EventData(str(one.cursor or 0), None, None, 0, "test", rfc3339(now_us), {}, None)
        place = one.cursor or EventCursor()
        waiting = _Waiting(0, f"test_{now_us}", msgspec.json.encode(event), now_us, place)
        post = one.post_of(waiting)
        try:
            answer = await self._client.post(
                post.url, post.body, timeout_s=POST_S, fields=post.fields
            )
        except RequestFailedError as error:
            return {"url": one.hook.url, "status": None, "failure": str(error)}
        failure = None if answer.is_success else f"{post.url.authority} answered {answer.status}"
        return {"url": one.hook.url, "status": answer.status, "failure": failure}

    async def run(self) -> None:
        """Keep the cursors, until cancelled."""
        fault = RepeatedError()
        while True:
            await self.is_changed.wait()
            try:
                await self._save()
                fault.clear()
            except OSError as error:
                if fault.is_new(error):
                    _log.warning("the cursors of webhooks are not kept", error=str(error))
            await asyncio.sleep(_SAVE_S)  # real time: spares the disk

    async def _save(self) -> None:
        if self._writing is not None:  # of a task that was cancelled
            await asyncio.wait([self._writing])
        self.is_changed.clear()
        running = self._running.items()
        cursors = {url: str(one.cursor) for url, one in running if one.cursor is not None}
        self._writing = asyncio.ensure_future(asyncio.to_thread(_write, self._file, cursors))
        await asyncio.shield(self._writing)

    async def close(self) -> None:
        """End all, and keep where they are."""
        for one in self._running.values():
            await one.end()
        await self.sender.close()
        if self.is_changed.is_set():
            with suppress(OSError):  # then some events come again
                await self._save()


def _id_of(source: str, cursor: EventCursor, at_us: int) -> str:
    """Return the webhook-id: the time of an event and its place in its source, which no retry and
    no replay changes. Other relays may have the same places.
    """
    if not source:
        return f"evt_{at_us}_{cursor.sequence}"
    return f"evt_{at_us}_{source}_{cursor.logs[source].offset}"


def _read(file: Path, *, now_us: int) -> dict[str, EventCursor]:
    """Return the cursors by URL; of a file that is not whole none. Raises OSError."""
    try:
        texts = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        return {url: parse_event_cursor(text, now_us=now_us) for url, text in texts.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, msgspec.MsgspecError) as error:
        _log.error("webhooks begin now: their cursors are lost", file=str(file), error=str(error))
        return {}


def _write(file: Path, cursors: Mapping[str, str]) -> None:
    part = file.with_name(f"{file.name}.part")
    part.touch(0o600)  # URLs may have secrets
    part.write_bytes(msgspec.json.encode(cursors))
    fsync_path(part)
    part.replace(file)
    fsync_path(file.parent)
