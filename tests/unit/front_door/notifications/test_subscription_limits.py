"""How many subscriptions an account may have."""

from types import SimpleNamespace
from typing import Any

import pytest

from relay.base.clock import SystemClock
from relay.front_door.notifications import subscriptions as module
from relay.front_door.notifications.subscription_file import Subscription


async def test_an_account_leaves_subscriptions_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may open thousands of mailboxes."""
    monkeypatch.setattr(module, "SUBSCRIPTIONS_MAX", 4)
    others: Any = SimpleNamespace(end=lambda *_: None)
    every = module.Subscriptions(
        file=others,
        threads=others,
        lists=others,
        client=others,
        sender=others,
        clock=SystemClock(),
        tenant="",
        may_read=lambda _: True,
    )

    def add(creator: str, number: int) -> Subscription:
        new = Subscription(
            id=f"{creator}{number}",
            creator=creator,
            is_application=True,
            mailbox=f"{number}@a.test",
            folder_id="",
            resource="",
            change_types=(),
            url="",
            lifecycle_url="",
            client_state="",
            tls_version="",
            expires_us=0,
            position="",
        )
        every._check_number(new)
        every._add(new)
        return new

    own = add("app", 1), add("app", 2)
    with pytest.raises(module.SubscriptionError):
        add("app", 3)
    add("bob", 1)
    for subscription in own:
        every._forget(subscription)
    add("app", 3)
