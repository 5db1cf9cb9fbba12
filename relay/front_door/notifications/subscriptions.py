"""The subscriptions to messages: create, renew and end them, and notify of each change.

Notifications come from the change feed of the mailbox, after the position of the subscription.
After a crash the rest follows in order, and at most one request is repeated. While a receiver is
down, its changes wait in the feed for four hours. If changes are dropped then, or lost with the
feed, `missed` is reported.
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
from relay.base.shares import Shares
from relay.delivery.http_connection import HttpError, HttpResponse
from relay.front_door.notifications.https_client import HttpsClient
from relay.front_door.notifications.mailbox_watch import POLL_S, MailboxChanges
from relay.front_door.notifications.sender import Feed, Post, Sender
from relay.front_door.notifications.subscription_file import Subscription, SubscriptionFile
from relay.store.mailbox.changes import Change, ChangeKind
from relay.store.mailbox.errors import StalePositionError, StoreError, StoreUnavailableError
from relay.store.mailbox.message_lists import MessageLists
from relay.store.mailbox.threads import ThreadPool

LIFETIME_US = 10_080 * 60_000_000  # at most, as in Graph
# limit of Graph: subscriptions of a mailbox; then 400
PER_MAILBOX_MAX = 50
# limit of Graph: subscriptions of all mailboxes, of which an account has half; then 400
SUBSCRIPTIONS_MAX = 20_000
RETRY_US = 4 * 3600 * 1_000_000
HANDSHAKE_S = 10.0
_HANDSHAKES_MAX = 64  # at once
READS_MAX = 8  # mailboxes read at once, so that requests of clients need not wait
_BATCH = 100
_TOKEN_BYTES_MAX = 4096
_RIGHTS_ROUNDS = 15  # looks without changes between two checks of rights
MISSED, REMOVED = "missed", "subscriptionRemoved"

_log = get_logger("notifications")


class SubscriptionError(Exception):
    """A subscription cannot be created or changed as requested; the text is for the client."""


class NoSubscriptionError(Exception):
    """There is no such subscription."""


@dataclass(kw_only=True, eq=False, repr=False)
class Subscriptions:
    """All subscriptions of a mail root. One event loop."""

    file: SubscriptionFile  # all that is stored
    threads: ThreadPool  # one thread, which uses the file
    lists: MessageLists  # the change feeds of mailboxes
    client: HttpsClient  # for validation requests; decides which receivers are allowed
    sender: Sender  # of notifications
    clock: Clock  # of expiry and of the four hours
    tenant: str  # the tenantId in notifications
    # whether the creator of a subscription may still read its mailbox
    may_read: Callable[[Subscription], bool]

    def __post_init__(self) -> None:
        self._watch = MailboxChanges(self._changed, self.clock)
        self._all: dict[str, _Subscriber] = {}
        self._by_mailbox: dict[str, set[_Subscriber]] = {}
        self._shares = Shares("subscriptions", SUBSCRIPTIONS_MAX)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._handshakes = Shares("handshakes of subscriptions", _HANDSHAKES_MAX)
        self._is_open = False
        self._added = asyncio.Event()  # a mailbox that is not watched yet
        self.reads = asyncio.Semaphore(READS_MAX)

    # -- what clients do

    def of(self, creator: str) -> list[Subscription]:
        """Return the subscriptions that an account has created and that have not ended. Raises
        StoreUnavailableError.
        """
        self._check_open()
        there = (held.subscription for held in self._all.values())
        return [
            subscription
            for subscription in there
            if subscription.creator == creator and self.is_active(subscription)
        ]

    def get(self, subscription_id: str, creator: str) -> Subscription:
        """Return a subscription of an account. Raises NoSubscriptionError, StoreError."""
        self._check_open()
        held = self._all.get(subscription_id)
        subscription = held.subscription if held is not None else None
        if (
            subscription is None
            or not self.is_active(subscription)
            or subscription.creator != creator
        ):
            raise NoSubscriptionError
        return subscription

    async def create(self, new: Subscription) -> Subscription:
        """Validate the URLs of a new subscription, and store it durably.

        Raises SubscriptionError, UrlError, NoPlaceError, StoreError.
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

    async def renew(self, subscription: Subscription, **changed: Any) -> Subscription:
        """Change when a subscription ends, or its URL, durably. Raises NoSubscriptionError,
        SubscriptionError, StoreError.
        """
        if "url" in changed:
            await self._check_receiver(changed["url"], subscription.creator)
            self.get(subscription.id, subscription.creator)  # it may have ended in these seconds
        if (after := await self.change(subscription.id, durable=True, **changed)) is None:
            raise NoSubscriptionError
        return after

    async def remove(self, *removed: Subscription) -> None:
        """Remove subscriptions, durably. Raises StoreError.

        They are removed from memory first: a later write would store them again.
        """
        for subscription in removed:
            self._forget(subscription)
        try:
            await self.threads.run(self.file.remove, [subscription.id for subscription in removed])
        except StoreError:
            for subscription in removed:
                self._add(subscription)
            raise

    # -- what the feeds do

    async def change(
        self, subscription_id: str, *, durable: bool, **changed: Any
    ) -> Subscription | None:
        """Change a subscription if it still exists. Raises StoreError."""
        if (held := self._all.get(subscription_id)) is None:
            return None
        held.subscription = after = replace(held.subscription, **changed)
        await self.threads.run(self.file.save, after, durable=durable)
        return after

    async def report(self, held: "_Subscriber", event: str, **changed: Any) -> None:
        """Send a lifecycle notification, if there is a URL for it; REMOVED also ends it."""
        subscription = held.subscription
        _log.warning(
            "lifecycle", what=event, subscription=subscription.id, mailbox=subscription.mailbox
        )
        since_us = self.clock.queue_us()
        await self.change(
            subscription.id,
            durable=True,
            lifecycle_event=event,
            lifecycle_since_us=since_us,
            **changed,
        )
        self._wake([held])

    def lock(self, mailbox: str) -> asyncio.Lock:
        """Return the lock for reading a mailbox: one read at a time, so that its owner's queries
        need not wait.
        """
        return self._locks.setdefault(mailbox, asyncio.Lock())

    async def clear(self) -> None:
        """Remove all subscriptions, for the reset of a development relay. Raises StoreError."""
        await self.remove(*[held.subscription for held in self._all.values()])

    def in_progress(self) -> str:
        """Return what is being sent, as text; "" for nothing."""
        count = self.sender.busy_count + self._added.is_set()
        return f"notifications that are read or sent: {count}" if count else ""

    # -- as long as the relay runs

    async def open(self) -> None:
        """Read what is stored, before the first request; if that fails, run() tries it again."""
        try:
            for subscription in await self.threads.run(self.file.open):
                self._add(subscription)
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
                mailboxes = {
                    mailbox: self.lists.folders.directory(mailbox) for mailbox in self._by_mailbox
                }
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
        """End subscriptions that have expired or lost their right to read; continue after a
        failure.
        """
        now_us = self.clock.time_us()
        all_ = [held.subscription for held in self._all.values()]
        with suppress(StoreError):  # later
            await self.remove(
                *[subscription for subscription in all_ if subscription.expires_us <= now_us]
            )
        for held in self._all.values():
            if held.subscription.lifecycle_event or not self.may_read(held.subscription):
                self._wake([held])

    def _changed(self, mailbox: str) -> None:
        self._wake(self._by_mailbox.get(mailbox, ()))

    def _wake(self, there: Iterable["_Subscriber"]) -> None:
        for held in there:
            self.sender.wake(*held.feeds)

    def has(self, mailbox: str) -> bool:
        """Whether there is a subscription to a mailbox."""
        return mailbox in self._by_mailbox

    def is_active(self, subscription: Subscription) -> bool:
        """Whether a subscription has not ended."""
        is_over = subscription.expires_us <= self.clock.time_us()
        return subscription.lifecycle_event != REMOVED and not is_over

    async def _check_receiver(self, text: str, creator: str) -> None:
        """Send a token to a URL and compare the answer. Raises UrlError, SubscriptionError,
        NoPlaceError.
        """
        url = self.client.read_url(text)
        token = f"Validation: Testing client application reachability. Request-Id: {uuid4()}"
        asked = url.with_query(f"validationToken={quote(token, safe='')}")
        try:
            with self._handshakes.held(creator):
                answer = await self.client.request(
                    "POST",
                    asked,
                    fields=(("Content-Type", "text/plain; charset=utf-8"),),
                    timeout_s=HANDSHAKE_S,
                    answer_bytes_max=_TOKEN_BYTES_MAX,
                )
        except HttpError as error:
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
        if sum(held.subscription.creator == new.creator for held in there) >= PER_MAILBOX_MAX:
            raise SubscriptionError(
                f"The account has {PER_MAILBOX_MAX} subscriptions to this mailbox, the maximum; "
                "delete one."
            )
        if not self._shares.has_room(new.creator):
            self._shares.refuse()
            raise SubscriptionError("This server takes no more subscriptions of the account.")

    def _add(self, subscription: Subscription) -> None:
        self._all[subscription.id] = held = _Subscriber(self, subscription)
        self._by_mailbox.setdefault(subscription.mailbox, set()).add(held)
        self._shares.add(subscription.creator)
        self._added.set()

    def _forget(self, subscription: Subscription) -> None:
        if (held := self._all.pop(subscription.id, None)) is None:
            return
        self._shares.give_back(subscription.creator)
        self._by_mailbox[subscription.mailbox].discard(held)
        if not self._by_mailbox[subscription.mailbox]:
            del self._by_mailbox[subscription.mailbox]
        self.sender.end(*held.feeds)


class _Subscriber:
    """The present state of a subscription, and its feeds."""

    def __init__(self, owner: Subscriptions, subscription: Subscription) -> None:
        self.subscription = subscription
        self.feeds = (_MessageFeed(owner, self), _LifecycleFeed(owner, self))


class _SubscriptionFeed(Feed):
    """A feed of one subscription. Its URLs may contain secrets and are not logged."""

    def __init__(self, owner: Subscriptions, held: _Subscriber) -> None:
        subscription = held.subscription
        super().__init__(f"subscription {subscription.id}", owner=subscription.creator)
        self._owner = owner
        self._held = held


class _MessageFeed(_SubscriptionFeed):
    """The notifications of one subscription."""

    async def next_post(self) -> Post | None:
        """See Feed."""
        owner, subscription = self._owner, self._held.subscription
        if not owner.is_active(subscription):
            return None
        if not owner.may_read(subscription):
            await owner.report(self._held, REMOVED)
            return None
        async with owner.lock(subscription.mailbox), owner.reads:
            return await self._next_post(subscription)

    async def _next_post(self, subscription: Subscription) -> Post | None:
        owner, position = self._owner, subscription.position
        notifications: list[dict[str, Any]] = []
        more = True
        while more and not notifications:
            try:
                page, keys = await owner.lists.changed_versions(
                    subscription.mailbox, after=position, limit=_BATCH
                )
            except StalePositionError:  # the index was made again: what happened is not known
                position = (await owner.lists.changes(subscription.mailbox)).position
                await owner.report(self._held, MISSED, position=position, failing_since_us=0)
                return None
            notifications = [
                self._notification(subscription, kind, shown_id, key=keys.get(change.message_id))
                for change in page.changes
                for kind, shown_id in _kinds_of(change, subscription)
            ]
            position, more = page.position, page.more
        if not notifications:
            # stored with the next post
            self._held.subscription = replace(self._held.subscription, position=position)
            return None
        body = msgspec.json.encode({"value": notifications})
        return Post(owner.client.read_url(subscription.url), body, position, len(notifications))

    def _notification(
        self, subscription: Subscription, kind: str, message_id: str, *, key: str | None
    ) -> dict[str, Any]:
        resource = f"Users/{quote(subscription.mailbox, safe='@')}/Messages/{message_id}"
        resource_data = {
            "@odata.type": "#Microsoft.Graph.Message",
            "@odata.id": resource,
            "id": message_id,
        }
        if key:
            resource_data["@odata.etag"] = f'W/"{key}"'
        return {
            **_about(subscription, self._owner.tenant),
            "changeType": kind,
            "resource": resource,
            "resourceData": resource_data,
        }

    async def sent(self, post: Post) -> None:
        """See Feed."""
        position = post.position
        await self._owner.change(
            self._held.subscription.id, durable=False, position=position, failing_since_us=0
        )

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed. Waiting changes are dropped when the receiver has been down for four hours."""
        owner, subscription = self._owner, self._held.subscription
        now_us = owner.clock.queue_us()
        if not subscription.failing_since_us:
            await owner.change(subscription.id, durable=False, failing_since_us=now_us)
        elif now_us >= subscription.failing_since_us + RETRY_US:
            async with owner.lock(subscription.mailbox), owner.reads:
                position = (await owner.lists.changes(subscription.mailbox)).position
            await owner.report(self._held, MISSED, position=position, failing_since_us=0)
            return post.count
        return 0


class _LifecycleFeed(_SubscriptionFeed):
    """The lifecycle notification of one subscription that is still to be sent."""

    async def next_post(self) -> Post | None:
        """See Feed."""
        subscription = self._held.subscription
        if not subscription.lifecycle_event:
            return None
        if not subscription.lifecycle_url:
            await self._end(subscription.lifecycle_event)
            return None
        event, url = subscription.lifecycle_event, subscription.lifecycle_url
        notification = {**_about(subscription, self._owner.tenant), "lifecycleEvent": event}
        body = msgspec.json.encode({"value": [notification]})
        return Post(self._owner.client.read_url(url), body, event)

    async def sent(self, post: Post) -> None:
        """See Feed."""
        await self._end(post.position)

    async def failed(self, post: Post, why: str) -> int:  # noqa: ARG002 - a Feed
        """See Feed."""
        if self._owner.clock.queue_us() < self._held.subscription.lifecycle_since_us + RETRY_US:
            return 0
        await self._end(post.position)
        return 1

    async def _end(self, event: str) -> None:
        subscription = self._held.subscription
        if subscription.lifecycle_event != event:
            return  # a later event
        if event == REMOVED:
            await self._owner.remove(subscription)
        else:
            await self._owner.change(subscription.id, durable=False, lifecycle_event="")


def _about(subscription: Subscription, tenant: str) -> dict[str, Any]:
    """Return the properties that each notification has about its subscription."""
    notification = {
        "subscriptionId": subscription.id,
        "subscriptionExpirationDateTime": rfc3339(subscription.expires_us),
        "tenantId": tenant,
    }
    if subscription.client_state:
        notification["clientState"] = subscription.client_state
    return notification


def _kinds_of(change: Change, subscription: Subscription) -> list[tuple[str, str]]:
    """Return the changeTypes with which a subscription is notified of a change, and the id in each.

    A message that moves is deleted in a folder and created in the other one. In a whole mailbox it
    is updated, if ids are immutable; else both (microsoft-graph-docs-contrib#686, #2760).
    """
    message_id, kinds = change.message_id, [(str(change.kind), change.folder_id)]
    if change.kind is ChangeKind.MOVED:
        kinds = [("deleted", change.previous_folder_id), ("created", change.folder_id)]
        if subscription.has_immutable_ids and not subscription.folder_id:
            kinds = [("updated", change.folder_id)]
    return [
        (kind, message_id if subscription.has_immutable_ids else rest_id(message_id, place))
        for kind, place in kinds
        if kind in subscription.change_types and subscription.folder_id in ("", place)
    ]


def _fault_of(answer: HttpResponse, token: str) -> str:
    """Return why an answer to a validation request is invalid, "" if it is valid."""
    if answer.status != 200:
        return f"Notification endpoint must respond with 200 OK, found {answer.status}."
    media_type = answer.fields.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "text/plain":
        return f"Content-Type: found {media_type[:100]!r}, expected text/plain."
    if answer.body != token.encode():
        return "Expected the decoded validationToken as the whole body."
    return ""
