"""The subscriptions to messages: create, renew and end them, and notify of each change.

What is sent comes from the change feed of the mailbox, from the position that the subscription has
reached. After a crash at any moment the rest follows, in order, and at most one request is
repeated. While a receiver is down its changes wait in the feed, for four hours. What is dropped
then, or was lost with the feed, is reported as `missed`.
"""

import asyncio
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4
from weakref import WeakValueDictionary

import msgspec
from msgspec.structs import replace

from relay.base.clock import Clock, rfc3339
from relay.base.message.rest_id import rest_id
from relay.base.observe.logs import get_logger
from relay.base.pressure import ConcurrencyCounter
from relay.front_door.notifications.https_client import HttpAnswer, HttpsClient, RequestFailedError
from relay.front_door.notifications.mailbox_watch import POLL_S, MailboxChanges
from relay.front_door.notifications.sender import Feed, Post, Sender
from relay.front_door.notifications.subscription_file import Subscription, SubscriptionFile
from relay.store.mailbox.changes import Change, ChangeKind
from relay.store.mailbox.errors import StalePositionError, StoreError, StoreUnavailableError
from relay.store.mailbox.message_lists import MessageLists
from relay.store.mailbox.threads import ThreadPool

LIFETIME_US = 10_080 * 60_000_000  # at most, as in Graph
PER_MAILBOX_MAX = 50  # of one account
SUBSCRIPTIONS_MAX = 10_000  # of all mailboxes
RETRY_US = 4 * 3600 * 1_000_000
HANDSHAKE_S = 10.0
HANDSHAKES_MAX, HANDSHAKES_PER_ACCOUNT_MAX = 64, 4  # at once
READS_MAX = 8  # mailboxes at once: the answers to requests need not wait
_BATCH = 100
_TOKEN_BYTES_MAX = 4096
_RIGHTS_ROUNDS = 15  # looks between two checks of rights without changes
MISSED, REMOVED = "missed", "subscriptionRemoved"

_log = get_logger("notifications")


class SubscriptionError(Exception):
    """What a client asked for cannot be; the text is for it."""


class BusyError(Exception):
    """Too many receivers are being asked."""


class NoSubscriptionError(Exception):
    """There is no such subscription."""


@dataclass(kw_only=True, eq=False, repr=False)
class Subscriptions:
    """All subscriptions of a mail root. One event loop."""

    file: SubscriptionFile  # all that is stored
    threads: ThreadPool  # one thread, which uses the file
    lists: MessageLists  # the change feeds of mailboxes
    client: HttpsClient  # of handshakes; it decides where receivers may be
    sender: Sender  # of notifications
    clock: Clock  # of expiry and of the four hours
    tenant: str  # the tenantId in notifications
    # whether the creator of a subscription may still read its mailbox
    may_read: Callable[[Subscription], bool]

    def __post_init__(self) -> None:
        self._watch = MailboxChanges(self._changed, self.clock)
        self._all: dict[str, _Subscriber] = {}
        self._by_mailbox: dict[str, set[_Subscriber]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._handshakes = ConcurrencyCounter()
        self._is_open = False
        self._added = asyncio.Event()  # a mailbox that is not watched yet
        self.reads = asyncio.Semaphore(READS_MAX)

    # -- what clients do

    def of(self, creator: str) -> list[Subscription]:
        """Return the subscriptions that an account has created, which have not ended. Raises
        StoreUnavailableError.
        """
        self._check_open()
        there = (held.one for held in self._all.values())
        return [one for one in there if one.creator == creator and self.is_active(one)]

    def get(self, subscription_id: str, creator: str) -> Subscription:
        """Return a subscription of an account. Raises NoSubscriptionError, StoreError."""
        self._check_open()
        found = self._all.get(subscription_id)
        if found is None or found.one.creator != creator or not self.is_active(found.one):
            raise NoSubscriptionError
        return found.one

    async def create(self, new: Subscription) -> Subscription:
        """Validate the URLs of a new subscription, and store it durably.

        Raises SubscriptionError, UrlError, BusyError, StoreError.
        """
        self._check_open()
        self._check_number(new)
        for url in dict.fromkeys(filter(None, (new.url, new.lifecycle_url))):
            await self._check_receiver(url, new.creator)
        position = (await self.lists.changes(new.mailbox)).position
        self._check_number(new)
        new = replace(new, id=str(uuid4()), position=position)
        self._add(new)
        try:
            await self.threads.run(self.file.save, new, durable=True)
        except BaseException:
            self._forget(new)
            raise
        return new

    async def renew(self, one: Subscription, **changed: Any) -> Subscription:
        """Change when a subscription ends, or its URL, durably. Raises NoSubscriptionError,
        SubscriptionError, StoreError.
        """
        if "url" in changed:
            await self._check_receiver(changed["url"], one.creator)
            self.get(one.id, one.creator)  # it may have ended in these seconds
        if (after := await self.change(one.id, durable=True, **changed)) is None:
            raise NoSubscriptionError
        return after

    async def remove(self, *removed: Subscription) -> None:
        """Remove subscriptions, durably. Raises StoreError.

        They are forgotten first: what is stored of them after their removal would bring them back.
        """
        for one in removed:
            self._forget(one)
        try:
            await self.threads.run(self.file.remove, [one.id for one in removed])
        except StoreError:
            for one in removed:
                self._add(one)
            raise

    # -- what the feeds do

    async def change(
        self, subscription_id: str, *, durable: bool, **changed: Any
    ) -> Subscription | None:
        """Change a subscription as it is now, if it is still there. Raises StoreError."""
        if (held := self._all.get(subscription_id)) is None:
            return None
        held.one = after = replace(held.one, **changed)
        await self.threads.run(self.file.save, after, durable=durable)
        return after

    async def report(self, held: "_Subscriber", event: str, **changed: Any) -> None:
        """Send a lifecycle notification, if there is a URL for it; REMOVED also ends it."""
        one = held.one
        _log.warning("lifecycle", what=event, subscription=one.id, mailbox=one.mailbox)
        since_us = self.clock.queue_us()
        await self.change(
            one.id, durable=True, lifecycle_event=event, lifecycle_since_us=since_us, **changed
        )
        self._wake([held])

    def lock(self, mailbox: str) -> asyncio.Lock:
        """Return the lock with which a mailbox is read: its owner's queries need not wait."""
        return self._locks.setdefault(mailbox, asyncio.Lock())

    async def clear(self) -> None:
        """Remove all subscriptions, for the reset of a development relay. Raises StoreError."""
        await self.remove(*[held.one for held in self._all.values()])

    def in_progress(self) -> str:
        """Say what is being sent, "" for nothing."""
        count = self.sender.busy_count + self._added.is_set()
        return f"notifications that are read or sent: {count}" if count else ""

    # -- as long as the relay runs

    async def open(self) -> None:
        """Read what is stored, before the first request; if that fails, run() tries it again."""
        try:
            for one in await self.threads.run(self.file.open):
                self._add(one)
            self._is_open = True
        except StoreError as error:
            _log.error("subscriptions cannot be read", reason=str(error))

    async def run(self) -> None:
        """Notify of changes until cancelled."""
        try:
            while not self._is_open:
                await self.clock.sleep(POLL_S, slack_s=math.inf)  # sleeps: after a fault
                await self.open()
            self._wake(self._all.values())
            rounds = 0
            while True:
                if not self._all:
                    self._watch.close()
                    await self._added.wait()
                if rounds % _RIGHTS_ROUNDS == 0:
                    await self._end_some()
                rounds += 1
                mailboxes = {one: self.lists.folders.directory(one) for one in self._by_mailbox}
                await self._watch.look(mailboxes)
                if mailboxes.keys() == self._by_mailbox.keys():
                    self._added.clear()
                # sleeps: see mailbox_watch
                await self.clock.wait(self._added, POLL_S, slack_s=math.inf)
        finally:
            self._watch.close()
            await self.sender.close()
            self._is_open = False
            await asyncio.to_thread(self.threads.close)
            await asyncio.to_thread(self.file.close)

    async def _end_some(self) -> None:
        """End what has expired, and what nobody may read any more; go on with what failed."""
        now_us = self.clock.time_us()
        all_ = [held.one for held in self._all.values()]
        with suppress(StoreError):  # later
            await self.remove(*[one for one in all_ if one.expires_us <= now_us])
        for held in self._all.values():
            if held.one.lifecycle_event or not self.may_read(held.one):
                self._wake([held])

    def _changed(self, mailbox: str) -> None:
        self._wake(self._by_mailbox.get(mailbox, ()))

    def _wake(self, there: Iterable["_Subscriber"]) -> None:
        for held in there:
            self.sender.wake(*held.feeds)

    def is_active(self, one: Subscription) -> bool:
        """Whether a subscription has not ended."""
        return one.lifecycle_event != REMOVED and one.expires_us > self.clock.time_us()

    async def _check_receiver(self, text: str, creator: str) -> None:
        """Send a token to a URL and compare the answer. Raises UrlError, SubscriptionError,
        BusyError.
        """
        url = self.client.read_url(text)
        running = self._handshakes
        if not running.has_room(creator, per_key=HANDSHAKES_PER_ACCOUNT_MAX, in_all=HANDSHAKES_MAX):
            raise BusyError("Too many notification URLs are being validated; try again.")
        token = f"Validation: Testing client application reachability. Request-Id: {uuid4()}"
        asked = url.with_query(f"validationToken={quote(token, safe='')}")
        try:
            with running.counted(creator):
                answer = await self.client.post(
                    asked,
                    b"",
                    timeout_s=HANDSHAKE_S,
                    content_type="text/plain; charset=utf-8",
                    answer_bytes_max=_TOKEN_BYTES_MAX,
                )
        except RequestFailedError as error:
            how = "timed out" if error.timed_out else "failed"
            text = f"Subscription validation request {how}. {error}."
            raise SubscriptionError(text) from None
        if fault := _fault_of(answer, token):
            raise SubscriptionError(f"Subscription validation request failed. {fault}")

    def _check_open(self) -> None:
        if not self._is_open:
            raise StoreUnavailableError("The subscriptions cannot be read now.")

    def _check_number(self, new: Subscription) -> None:
        """Raise SubscriptionError at a limit; an account leaves room for others in a mailbox."""
        there = self._by_mailbox.get(new.mailbox, ())
        if sum(held.one.creator == new.creator for held in there) >= PER_MAILBOX_MAX:
            raise SubscriptionError(
                f"The account has {PER_MAILBOX_MAX} subscriptions to this mailbox, the maximum; "
                "delete one."
            )
        if len(self._all) >= SUBSCRIPTIONS_MAX:
            raise SubscriptionError(
                f"There are {SUBSCRIPTIONS_MAX} subscriptions, the maximum of this server."
            )

    def _add(self, one: Subscription) -> None:
        self._all[one.id] = held = _Subscriber(self, one)
        self._by_mailbox.setdefault(one.mailbox, set()).add(held)
        self._added.set()

    def _forget(self, one: Subscription) -> None:
        if (held := self._all.pop(one.id, None)) is None:
            return
        self._by_mailbox[one.mailbox].discard(held)
        if not self._by_mailbox[one.mailbox]:
            del self._by_mailbox[one.mailbox]
        self.sender.end(*held.feeds)


class _Subscriber:
    """A subscription as it is now, and what is sent of it."""

    def __init__(self, owner: Subscriptions, one: Subscription) -> None:
        self.one = one
        self.feeds = (_MessageFeed(owner, self), _LifecycleFeed(owner, self))


class _SubscriptionFeed(Feed):
    """What is sent of one subscription. Its URLs may have secrets, and are not logged."""

    def __init__(self, owner: Subscriptions, held: _Subscriber) -> None:
        super().__init__(f"subscription {held.one.id}")
        self._owner = owner
        self._held = held


class _MessageFeed(_SubscriptionFeed):
    """The notifications of one subscription."""

    async def next_post(self) -> Post | None:
        """See Feed."""
        owner, one = self._owner, self._held.one
        if not owner.is_active(one):
            return None
        if not owner.may_read(one):
            await owner.report(self._held, REMOVED)
            return None
        async with owner.lock(one.mailbox), owner.reads:
            return await self._next_post(one)

    async def _next_post(self, one: Subscription) -> Post | None:
        owner, position = self._owner, one.position
        found: list[dict[str, Any]] = []
        more = True
        while more and not found:
            try:
                page, keys = await owner.lists.changed_versions(
                    one.mailbox, after=position, limit=_BATCH
                )
            except StalePositionError:  # the index was made again: what happened is not known
                position = (await owner.lists.changes(one.mailbox)).position
                await owner.report(self._held, MISSED, position=position, failing_since_us=0)
                return None
            found = [
                self._notification(one, kind, shown_id, key=keys.get(change.message_id))
                for change in page.changes
                for kind, shown_id in _kinds_of(change, one)
            ]
            position, more = page.position, page.more
        if not found:
            self._held.one = replace(self._held.one, position=position)  # stored with the next post
            return None
        body = msgspec.json.encode({"value": found})
        return Post(owner.client.read_url(one.url), body, position, len(found))

    def _notification(
        self, one: Subscription, kind: str, message_id: str, *, key: str | None
    ) -> dict[str, Any]:
        resource = f"Users/{quote(one.mailbox, safe='@')}/Messages/{message_id}"
        shown = {"@odata.type": "#Microsoft.Graph.Message", "@odata.id": resource, "id": message_id}
        if key:
            shown["@odata.etag"] = f'W/"{key}"'
        return {
            **_about(one, self._owner.tenant),
            "changeType": kind,
            "resource": resource,
            "resourceData": shown,
        }

    async def sent(self, post: Post) -> None:
        """See Feed."""
        position = post.position
        await self._owner.change(
            self._held.one.id, durable=False, position=position, failing_since_us=0
        )

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed: what waits is dropped when the receiver has been down for four hours."""
        owner, one = self._owner, self._held.one
        now_us = owner.clock.queue_us()
        if not one.failing_since_us:
            await owner.change(one.id, durable=False, failing_since_us=now_us)
        elif now_us >= one.failing_since_us + RETRY_US:
            async with owner.lock(one.mailbox), owner.reads:
                position = (await owner.lists.changes(one.mailbox)).position
            await owner.report(self._held, MISSED, position=position, failing_since_us=0)
            return post.count
        return 0


class _LifecycleFeed(_SubscriptionFeed):
    """The lifecycle notification of one subscription that is still to be sent."""

    async def next_post(self) -> Post | None:
        """See Feed."""
        one = self._held.one
        if not one.lifecycle_event:
            return None
        if not one.lifecycle_url:
            await self._end(one.lifecycle_event)
            return None
        shown = {**_about(one, self._owner.tenant), "lifecycleEvent": one.lifecycle_event}
        body = msgspec.json.encode({"value": [shown]})
        return Post(self._owner.client.read_url(one.lifecycle_url), body, one.lifecycle_event)

    async def sent(self, post: Post) -> None:
        """See Feed."""
        await self._end(post.position)

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed."""
        if self._owner.clock.queue_us() < self._held.one.lifecycle_since_us + RETRY_US:
            return 0
        await self._end(post.position)
        return 1

    async def _end(self, event: str) -> None:
        one = self._held.one
        if one.lifecycle_event != event:
            return  # a later event
        if event == REMOVED:
            await self._owner.remove(one)
        else:
            await self._owner.change(one.id, durable=False, lifecycle_event="")


def _about(one: Subscription, tenant: str) -> dict[str, Any]:
    """Return what each notification says of its subscription."""
    shown = {
        "subscriptionId": one.id,
        "subscriptionExpirationDateTime": rfc3339(one.expires_us),
        "tenantId": tenant,
    }
    return shown | ({"clientState": one.client_state} if one.client_state else {})


def _kinds_of(change: Change, one: Subscription) -> list[tuple[str, str]]:
    """Return the changeTypes with which a subscription is notified of a change, and the id in each.

    A message that moves is deleted in a folder and created in the other one. In a whole mailbox it
    is updated, if ids are immutable; else both (microsoft-graph-docs-contrib#686, #2760).
    """
    kinds = [(str(change.kind), change.folder_id)]
    if change.kind is ChangeKind.MOVED:
        kinds = [("deleted", change.previous_folder_id), ("created", change.folder_id)]
        if one.has_immutable_ids and not one.folder_id:
            kinds = [("updated", change.folder_id)]
    return [
        (kind, change.message_id if one.has_immutable_ids else rest_id(change.message_id, place))
        for kind, place in kinds
        if kind in one.change_types and one.folder_id in ("", place)
    ]


def _fault_of(answer: HttpAnswer, token: str) -> str:
    """Return what is wrong with an answer to a validation request, "" if nothing is."""
    if answer.status != 200:
        return f"Notification endpoint must respond with 200 OK, found {answer.status}."
    if answer.content_type != "text/plain":
        return f"Content-Type: found {answer.content_type[:100]!r}, expected text/plain."
    if answer.body != token.encode():
        return "Expected the decoded validationToken as the whole body."
    return ""
