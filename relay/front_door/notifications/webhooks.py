"""Webhooks: the events of journeys, posted to an operator's URLs and signed.

A webhook has a cursor in the recorded events (relay/store/journeys/event_feed.py), which a 2xx
advances. Its messages are divided into four partitions: the events of one message stay in order,
and do not wait for the answers about messages of other partitions. When all events of a block are
sent, the next block is read. The file of cursors is written once a second. After a kill or a loss
of power, the events of about one second are sent again with the same webhook-id. If a request
fails, events that have waited for more than a day are dropped. Without webhooks nothing is read.

The signature follows Standard Webhooks 1.0.0 (webhook-id, webhook-timestamp, webhook-signature).
"""

import asyncio
import hmac
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct

from relay.base.clock import Clock, SystemClock, rfc3339
from relay.base.files import replace_file
from relay.base.message.status import SUPPRESSED
from relay.base.message.web_url import read_url
from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Webhook
from relay.base.settings.values import KEY_PREFIX
from relay.formats.read_report import COMPLAINTS
from relay.front_door.notifications.https_client import HttpsClient
from relay.front_door.notifications.sender import Feed, Post, Sender
from relay.store.journeys import event_feed
from relay.store.journeys.details import AttemptDetail, ComplaintDetail, RoutedDetail
from relay.store.journeys.events import EventCursor, RecordedEvent, Step
from relay.store.spool.types import SpoolError
from relay.transport.policy.globs import Globs

KEEP_US = 86_400_000_000  # an event that is older is dropped when a request fails
PARTITIONS = 4  # requests at once, for each webhook
_EVENTS_MAX = 500  # in memory, for each webhook
_STEPS = {
    Step.ACCEPTED: "accepted",
    Step.POLICY_AND_ROUTING: "policy",
    Step.DELIVERY: "delivery",
    Step.REPORT: "reported",
}
# the state that a rule's action gives to recipients
_STATES_OF_RULES = {"discard": "discarded", "redirect": "redirected"}
_SAVE_S = 1.0
# As for event streams: another process may write the log, and reading takes a twentieth of the time
_POLL_S = 1.0
_log = get_logger("notifications")


class _Waiting(Struct, frozen=True):
    """An event that waits, with its partition and the cursor before it."""

    partition: int
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
        "webhook-id": event_id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": f"v1,{signature}",
    }


def event_names(recorded: RecordedEvent) -> set[str]:
    """Return the names by which a webhook can ask for an event: its step, and states of recipients.

    Mail by SMTP has no event of step 4; the event of step 5 has its time.
    """
    names = {_STEPS.get(recorded.step, ""), str(recorded.state or "")}
    match recorded.known:
        case ComplaintDetail(type=kind):  # other feedback reports are posted to no webhook
            return {"complaint"} if kind in COMPLAINTS else set()
        case RoutedDetail() as routed:
            names.update(["accepted"] if not recorded.submission_id else ())
            names.update(["held"] if routed.held else ())
            names.update(["failed"] if routed.refused else ())
            replies = [refused.reply for refused in routed.refused]
            names.update("suppressed" for reply in replies if reply.startswith(SUPPRESSED))
            names.update(["delivered"] if routed.quarantined else ())
            names.update(["expanded"] if routed.aliases else ())
            outcomes = [rule.outcome for rule in routed.rules if rule.mode == "enforce"]
            words = ",".join(outcomes).split(",")
            names.update(state for word, state in _STATES_OF_RULES.items() if word in words)
        case AttemptDetail() as tried:
            names.update(recipient.outcome for recipient in tried.recipients)
            names.update(["deferred"] if "indeterminate" in names else ())
            names.difference_update(["deferred"] if tried.held else ())
    return names


class _Partition(Feed):
    """One partition of the messages of a webhook, in order."""

    def __init__(self, owner: "_RunningWebhook", number: int) -> None:
        super().__init__(f"webhook {owner.url.authority}")  # the path of the URL may have a secret
        self._owner = owner
        self._number = number

    def _waiting(self) -> list[_Waiting]:
        return [event for event in self._owner.waiting if event.partition == self._number]

    async def next_post(self) -> Post | None:
        """See Feed."""
        await self._owner.read_on()
        waiting = self._waiting()
        return self._owner.post_of(waiting[0].id, waiting[0].body) if waiting else None

    async def sent(self, post: Post) -> None:
        """See Feed."""
        self._owner.advance({post.position}, failure="")

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed."""
        old = {event.id for event in self._waiting() if self._owner.is_too_old(event.at_us)}
        if old:
            _log.warning("events are dropped after a day", receiver=self.name, events=len(old))
        self._owner.advance(old, failure=why)
        return len(old)


class _OtherEvents(Feed):
    """Events that belong to no journey. They are in memory; a stop of the relay loses them."""

    def __init__(self, owner: "_RunningWebhook") -> None:
        super().__init__(f"webhook {owner.url.authority}")
        self._owner = owner
        self.waiting: dict[str, tuple[bytes, int]] = {}  # by id: body and time

    async def next_post(self) -> Post | None:
        """See Feed."""
        first = next(iter(self.waiting.items()), None)
        return self._owner.post_of(first[0], first[1][0]) if first else None

    async def sent(self, post: Post) -> None:
        """See Feed."""
        self.waiting.pop(post.position, None)

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed."""
        old = [key for key, (_, at_us) in self.waiting.items() if self._owner.is_too_old(at_us)]
        for key in old:
            del self.waiting[key]
        return len(old)


class _RunningWebhook:
    """One webhook: its cursor, and the block of events that its partitions send."""

    def __init__(self, owner: "Webhooks", hook: Webhook, cursor: EventCursor | None) -> None:
        self.cursor = cursor  # all events before it were sent or dropped; None: begin now
        self.failure = ""  # why the last request failed
        self.failing_since_us = 0
        self.waiting: list[_Waiting] = []  # what is left of the block
        self._owner = owner
        self._block_end: EventCursor | None = None  # None: not begun
        self._reported_to = 0
        self._seen = -1  # the number of changes when everything was read
        self._reads_from_s = 0.0
        self._reading = asyncio.Lock()
        self._fault = RepeatedError()
        self.hook, self.url = hook, read_url(hook.url, schemes=("https", "http"))
        self._accounts = Globs.of(hook.accounts)
        self.partitions = [_Partition(self, number) for number in range(PARTITIONS)]
        self.other_events = _OtherEvents(self)

    @property
    def is_busy(self) -> bool:
        """Whether there may be unread events, and a partition that can read them."""
        is_pausing = all(partition.is_pausing for partition in self.partitions)
        return self._seen != self._owner.changes.count and not self.waiting and not is_pausing

    def is_too_old(self, at_us: int) -> bool:
        """Whether an event is not worth another request."""
        age_us: int = self._owner.clock.time_us() - at_us
        return age_us >= KEEP_US

    def post_of(self, event_id: str, body: bytes) -> Post:
        """Return a request. It has the machine's time, because receivers compare it with theirs."""
        now_s = SystemClock().time_us() // 1_000_000
        fields = signed_fields(self.hook.secret, event_id, body, now_s=now_s)
        return Post(self.url, body, event_id, fields=tuple(fields.items()))

    def advance(self, ids: Collection[str], *, failure: str) -> None:
        """Record how the last request ended, and remove events that need no further request."""
        if failure and not self.failure:
            self.failing_since_us = self._owner.clock.time_us()
        self.failure = failure
        self.waiting = [event for event in self.waiting if event.id not in ids]
        self.cursor = self.waiting[0].before if self.waiting else self._block_end

    async def begin(self) -> EventCursor:
        """Begin with the present, unless there is a cursor that this spool may have issued."""
        feed = self._owner.feed
        self.cursor = await (feed.place_of(self.cursor) if self.cursor else feed.now())
        self._block_end = self.cursor
        return self.cursor

    def look(self) -> None:
        """Look for events, if none wait: the next block is read after the last one of a block."""
        if not self.waiting:
            self._seen = -1
            self._owner.sender.wake(*self.partitions)

    async def read_on(self) -> None:
        """Read the next block of events, if the last one was sent and there may be more."""
        owner, clock = self._owner, self._owner.clock
        async with self._reading:
            if self.waiting or self._seen == owner.changes.count:
                return
            pause_s = self._reads_from_s - clock.real_s()
            await asyncio.sleep(pause_s)  # real time: spares the machine
            seen, began_s = owner.changes.count, clock.real_s()
            try:
                after = self._block_end or await self.begin()
                batch = await owner.feed.read(after, limit=_EVENTS_MAX)
            except (SpoolError, OSError) as error:
                if self._fault.is_new(error):
                    _log.warning("events not read", receiver=self.url.authority, error=repr(error))
                return
            self._fault.clear()
            now_s = clock.real_s()
            self._reads_from_s = now_s + event_feed.pause_after(now_s - began_s)
            self._seen = seen if batch.is_complete else -1
            self._use_block(batch)

    def _use_block(self, batch: event_feed.EventBatch) -> None:
        """Give a block of events to the partitions."""
        self._report_gap(batch)
        before, dropped = batch.after, 0
        for source, cursor, recorded in batch.events:
            at_us = recorded.at_us
            if not self.wants(event_names(recorded), recorded.account):
                pass
            elif self.failure and self.is_too_old(at_us):
                dropped += 1
            else:
                body = msgspec.json.encode(event_feed.event_data(str(cursor), recorded))
                key = (recorded.submission_id or recorded.queue_id or "").encode()
                event_id = _id_of(source, cursor, at_us)
                self.waiting.append(
                    _Waiting(crc32(key) % PARTITIONS, event_id, body, at_us, before)
                )
            before = cursor
        self._owner.sender.count("dropped", dropped)
        self._block_end = batch.cursor
        self.advance((), failure=self.failure)
        if self.waiting or not batch.is_complete:
            self._owner.sender.wake(*self.partitions)

    def wants(self, names: AbstractSet[str], account: str) -> bool:
        """Whether an event with these names, of an account, is to be sent."""
        events = self.hook.events
        if not names or ("*" not in events and names.isdisjoint(events)):
            return False
        return self._accounts.match(account)

    def _report_gap(self, batch: event_feed.EventBatch) -> None:
        """Report once that events were removed before they were read."""
        is_removed = 0 < max(self._reported_to, batch.after.sequence) < batch.removed_to
        if batch.is_log_missing or is_removed:
            self._reported_to = max(batch.removed_to, 1)
            self._owner.sender.count("dropped", 1)
            _log.warning("events were removed before the webhook had them", url=self.url.authority)


@dataclass(eq=False, repr=False)
class Webhooks:
    """The webhooks of a relay. Call open() once, then run(), then close()."""

    file: Path  # keeps the cursors
    feed: event_feed.EventFeed
    changes: event_feed.ChangeNotifier
    clock: Clock
    client: HttpsClient
    metrics: Metrics

    def __post_init__(self) -> None:
        self.sender = Sender(self.client, kind="webhook", clock=self.clock, metrics=self.metrics)
        self._kept: dict[str, EventCursor] = {}  # what is in the file
        self._writer = ThreadPoolExecutor(1, "webhooks")  # writes after a cancelled call in turn
        self._fault = RepeatedError()
        self._running: dict[str, _RunningWebhook] = {}
        self._turn = asyncio.Lock()

    def in_progress(self) -> str:
        """Say whether something is being read or sent, "" if not."""
        count = self.sender.busy_count + sum(webhook.is_busy for webhook in self._running.values())
        return f"webhooks: {count}" if count else ""

    async def open(self, hooks: Sequence[Webhook]) -> None:
        """Begin each webhook at its stored cursor, a new one with the present. Raises OSError."""
        if hooks or self.file.exists():
            self._kept = await asyncio.to_thread(_read, self.file)
            await self.use(hooks)

    async def use(self, hooks: Sequence[Webhook]) -> None:
        """Use these webhooks from now on; the state of others is removed."""
        async with self._turn:
            for hook in hooks:
                webhook = self._running.get(hook.url)
                if webhook is None or webhook.hook != hook:
                    await self._begin(hook, webhook.cursor if webhook else self._kept.get(hook.url))
            for url in self._running.keys() - {hook.url for hook in hooks}:
                self._end(self._running.pop(url))
            await self._save()
        self.changes.notify()  # run() does not look while there are no webhooks

    async def _begin(self, hook: Webhook, cursor: EventCursor | None) -> None:
        """Begin after a cursor, or now (None); an earlier webhook with the same URL ends."""
        made = _RunningWebhook(self, hook, cursor)
        with suppress(SpoolError, OSError):  # it begins as soon as the spool can be read
            await made.begin()
        before, self._running[hook.url] = self._running.get(hook.url), made
        if before is not None:
            self._end(before)

    def _end(self, webhook: _RunningWebhook) -> None:
        self.sender.end(*webhook.partitions, webhook.other_events)

    def tell(self, name: str, detail: Mapping[str, Any], *, account: str, event_id: str) -> None:
        """Post an event of no journey, with step 0 like a test, to the webhooks that want it."""
        at_us = self.clock.time_us()
        for webhook in self._running.values():
            if webhook.wants({name}, account) and len(webhook.other_events.waiting) < _EVENTS_MAX:
                at = rfc3339(at_us)
                event = event_feed.EventData(
                    str(webhook.cursor or 0), None, None, 0, name, at, detail, None
                )
                webhook.other_events.waiting[event_id] = msgspec.json.encode(event), at_us
                self.sender.wake(webhook.other_events)

    def shown(self) -> list[dict[str, Any]]:
        """Return the webhooks for an operator."""
        return [
            {
                "url": webhook.hook.url,
                "events": webhook.hook.events,
                "accounts": webhook.hook.accounts,
                "cursor": str(webhook.cursor or ""),
                "failure": webhook.failure or None,
                "failing_since": rfc3339(webhook.failing_since_us) if webhook.failure else None,
            }
            for webhook in self._running.values()
        ]

    async def replay(self, cursor: EventCursor, urls: Sequence[str]) -> None:
        """Continue from another cursor. Raises KeyError for a URL without a webhook."""
        async with self._turn:
            for hook in [self._running[url].hook for url in urls]:
                await self._begin(hook, cursor)
            await self._save()
        self.changes.notify()

    async def test(self, urls: Sequence[str]) -> list[dict[str, Any]]:
        """Post an event named "test"; return the outcome for each URL. Raises KeyError."""
        return await asyncio.gather(*(self._test(self._running[url]) for url in urls))

    async def _test(self, webhook: _RunningWebhook) -> dict[str, Any]:
        now_us = SystemClock().time_us()
        event = event_feed.EventData(
            str(webhook.cursor or 0), None, None, 0, "test", rfc3339(now_us), {}, None
        )
        post = webhook.post_of(f"test_{now_us}", msgspec.json.encode(event))
        status, failure = await self.sender.post(post)
        return {"url": webhook.hook.url, "status": status, "failure": failure or None}

    async def run(self) -> None:
        """Look for events, and keep the cursors, until cancelled."""
        saved_s = 0.0
        while True:
            seen, now_s = self.changes.count, self.clock.real_s()
            for webhook in self._running.values():
                webhook.look()
            if now_s - saved_s >= _SAVE_S:
                saved_s = now_s
                await self._save()
            # a file has no notification
            await self.changes.wait_beyond(seen, _POLL_S if self._running else None)
            pause_s = event_feed.pause_after(0) if self._running else _POLL_S
            await asyncio.sleep(pause_s)  # real time: spares the machine

    async def _save(self) -> None:
        running = self._running.items()
        cursors = {url: webhook.cursor for url, webhook in running if webhook.cursor is not None}
        if cursors == self._kept:
            return
        octets = msgspec.json.encode({url: str(cursor) for url, cursor in cursors.items()})
        write = partial(replace_file, self.file, octets, mode=0o600)  # URLs may have secrets
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, write)
        except OSError as error:
            self._fault.log(_log.warning, "the cursors of webhooks are not kept", error)
        else:
            self._kept = cursors
            self._fault.clear()

    async def close(self) -> None:
        """End all webhooks and store their cursors. If that fails, events are sent again later."""
        await self.sender.close()
        await self._save()
        self._writer.shutdown()


def _id_of(source: str, cursor: EventCursor, at_us: int) -> str:
    """Return the webhook-id: the time of an event and its position in its source.

    Retries and replays do not change it. Other relays may have the same positions.
    """
    if not source:
        return f"evt_{at_us}_{cursor.sequence}"
    return f"evt_{at_us}_{source}_{cursor.logs[source].offset}"


def _read(file: Path) -> dict[str, EventCursor]:
    """Return the cursors by URL, without invalid ones; {} for a damaged file. Raises OSError."""
    try:
        texts = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except ValueError as error:
        _log.error("webhooks begin now: their cursors are lost", file=str(file), error=str(error))
        return {}
    cursors = {}
    for url, text in texts.items():
        try:
            cursors[url] = event_feed.parse_event_cursor(str(text))
        except ValueError:  # the URL may have a secret
            _log.error("a webhook begins now: its cursor is lost", file=str(file), found=str(text))
    return cursors
