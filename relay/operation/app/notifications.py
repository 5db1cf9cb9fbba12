"""Build subscriptions and webhooks: where receivers may be, which accounts may read a mailbox."""

import dataclasses
from collections.abc import Sequence
from uuid import NAMESPACE_DNS, uuid5

from relay.base.accounts.account import Scope
from relay.front_door.notifications.https_client import (
    ANYWHERE,
    LOOPBACK,
    Destinations,
    HttpsClient,
    Lookup,
)
from relay.front_door.notifications.sender import Sender
from relay.front_door.notifications.subscription_file import Subscription, SubscriptionFile
from relay.front_door.notifications.subscriptions import Subscriptions
from relay.front_door.notifications.webhooks import Webhooks
from relay.operation.app.foundation import Foundation
from relay.store.mailbox.mail_root import SUBMISSIONS
from relay.store.mailbox.threads import ThreadPool
from relay.transport.routing.mx_hosts import NoAnswer
from relay.transport.routing.resolver import LoopbackResolver, Resolver

_FILE = "subscriptions"
_MAY_READ = frozenset({Scope.MAIL_READ, Scope.MAIL_READ_WRITE})


def build_subscriptions(base: Foundation, resolver: Resolver | LoopbackResolver) -> Subscriptions:
    """Return the subscriptions of the mail root, not running."""
    networks = base.settings.http.notification_networks
    here = networks if base.is_development else ()
    destinations = Destinations(networks, plain=here, public=not base.is_development)
    only_here = base.is_development and set(networks) <= set(LOOPBACK)
    client = HttpsClient(lookup_of(resolver, only_here=only_here), destinations)
    root = base.root
    return Subscriptions(
        file=SubscriptionFile(root.path / SUBMISSIONS / _FILE),
        threads=ThreadPool(1, "subscriptions", check_root=root.check, on_failure=root.note_failure),
        lists=base.store.lists,
        client=client,
        sender=Sender(client, kind="subscription", clock=base.clock, metrics=base.metrics),
        clock=base.clock,
        tenant=str(uuid5(NAMESPACE_DNS, base.settings.hostname)),
        may_read=lambda subscription: base.is_development or _may_read(base, subscription),
    )


def build_webhooks(base: Foundation, resolver: Resolver | LoopbackResolver) -> Webhooks:
    """Return the webhooks, not open. The URLs of an operator may have any address."""
    destinations = Destinations(networks=ANYWHERE, plain=LOOPBACK)
    return Webhooks(
        base.settings.webhook_cursors,
        base.feed,
        changes=base.changes,
        clock=base.clock,
        client=HttpsClient(lookup_of(resolver), destinations),
        metrics=base.metrics,
    )


def lookup_of(resolver: Resolver | LoopbackResolver, *, only_here: bool = False) -> Lookup:
    """Return the look-up of an HttpsClient; with `only_here`, it resolves only localhost."""

    async def lookup(name: str) -> Sequence[str]:
        if only_here and name != "localhost" and not name.endswith(".localhost"):
            text = "relay dev sends to this machine only (localhost, 127.0.0.1, ::1)"
            raise OSError(f"{text}; with --listen-all also to private addresses")
        addresses = await resolver.addresses(name)
        if isinstance(addresses, NoAnswer):
            raise OSError(f"{name} could not be looked up: {addresses.text}")
        return addresses

    return lookup


def _may_read(base: Foundation, subscription: Subscription) -> bool:
    """Return whether the account that created a subscription may still read the mailbox."""
    accounts = base.sources.accounts
    creator = accounts.by_address(subscription.creator)
    if creator is None or creator.is_disabled or _MAY_READ.isdisjoint(creator.scopes):
        return False
    if subscription.credentials not in (b"", creator.credentials):
        return False  # who created it may have stolen the token
    caller = dataclasses.replace(creator, is_application=subscription.is_application)
    return accounts.opened(subscription.mailbox, caller) is not None
