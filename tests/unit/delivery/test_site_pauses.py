"""Sites that a [[reply]] entry pauses, or keeps at few connections."""

import asyncio
from contextlib import AsyncExitStack
from datetime import datetime, timedelta

import pytest

from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass
from relay.delivery.provider_replies import ProviderReplies, ReplyEntry
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import Selector
from relay.transport.policy.patterns import Pattern
from relay.transport.routing.mx_hosts import Host, Hosts
from relay.transport.routing.routes import Credentials
from tests.support.remote_mx import RemoteMx

BLOCKED = "550 5.7.1 blocked for a while"
HOUR_S = 3600.0


def entry(text="blocked", kind=DeferralClass.SITE, **values) -> ProviderReplies:
    return ProviderReplies(
        [ReplyEntry("e", "", None, None, None, Pattern.parse(text), kind=kind, **values)]
    )


async def deferred(delivery, *queue_ids: str) -> None:
    """Wait until each has been given back to the queue, with or without an attempt."""
    left = list(queue_ids)
    async with asyncio.timeout(120):
        while left:
            changed = await delivery.changed.get()
            if changed in left:
                left.remove(changed)


async def attempts(delivery, queue_id: str) -> tuple[str, int]:
    """The state of its recipient, and how often it was attempted."""
    (found,) = (await delivery.spool.journey(queue_id)).recipients
    return found.state, len(found.attempts)


def state(delivery):
    return delivery.scheduler.sites.state_of(
        NextHop.parse("mx:a.test"), delivery.table.decided("a.test")
    )


@pytest.mark.parametrize("stage", ["CONNECT", "MAIL", "RCPT", "DATA", "DOT"])
async def test_a_reply_pauses_the_site_and_no_attempts_are_counted(delivery, stage) -> None:
    delivery.providers, delivery.retry_s = entry(pause_s=HOUR_S), (0.02,)
    async with delivery.host(replies={stage: [BLOCKED, "250 ok"]}) as mx:
        first = await delivery.send("first@a.test", expire_s=2 * HOUR_S)
        await deferred(delivery, first)
        assert await attempts(delivery, first) == ("deferred", 1)
        second = await delivery.send("second@a.test")
        await deferred(delivery, second)
        assert await attempts(delivery, second) == ("queued", 0)
        assert await attempts(delivery, first) == ("deferred", 1)
        assert mx.sessions == 1
        (pause,) = delivery.scheduler.sites.paused()
        now = state(delivery)
        assert (pause.provider, now.paused_by) == ("e", "e")
        assert HOUR_S - 60 < now.paused_s <= HOUR_S
        (journey,) = (await delivery.spool.journey(first)).recipients
        assert journey.attempts[0].provider == "e"
        listed = await delivery.spool.queue_admin.list(Selector(ids=(first, second)), limit=2)
        assert [one["attempts"] for one in listed] == [1, 0]
        ends = [datetime.fromisoformat(one["due"]) for one in listed]  # of the pause, at once
        assert abs(ends[1] - ends[0]) < timedelta(seconds=60)


async def test_a_pause_is_for_the_login_that_was_refused(delivery) -> None:
    delivery.providers, delivery.retry_s = entry(pause_s=HOUR_S), (HOUR_S,)
    users = dict.fromkeys(("a@own.test", "b@own.test"), "secret")
    async with RemoteMx(users=users, replies={"RCPT": [BLOCKED, "250 ok"]}) as mx:
        for name in "ab":
            delivery.table.hosts[f"{name}.test"] = Hosts((Host(mx.host, 0, (mx.host,), mx.port),))
            login = Credentials(f"{name}@own.test", "secret")
            delivery.table.limits[f"{name}.test"] = {"login": login}
        await delivery.start()
        await deferred(delivery, await delivery.send("first@a.test"))
        await delivery.done(await delivery.send("x@b.test"))
        second = await delivery.send("second@a.test")
        await deferred(delivery, second)
        assert await attempts(delivery, second) == ("queued", 0)
        assert [*mx.logins.values()] == [*users]


async def test_mail_expires_while_its_site_is_paused(delivery) -> None:
    delivery.providers, delivery.retry_s = entry(pause_s=HOUR_S), (HOUR_S,)
    async with delivery.host(replies={"RCPT": BLOCKED}) as mx:
        await deferred(delivery, await delivery.send("first@a.test"))
        second = await delivery.send("second@a.test", expire_s=0.2)
        await delivery.done(second)
        (found,) = (await delivery.spool.journey(second)).recipients
        assert [one.outcome for one in found.attempts] == ["expired"]
        assert delivery.reporter.failures_reported == [("second@a.test", "5.4.7")]
        assert mx.sessions == 1


async def test_a_reply_keeps_the_site_at_one_connection(delivery) -> None:
    busy = entry("busy", connections=1)
    delivery.providers, delivery.retry_s = busy, (0.02,)
    async with delivery.host(replies={"RCPT": ["450 4.7.1 busy", "250 ok"]}) as mx:
        await deferred(delivery, await delivery.send("first@a.test"))
        for queue_id in [await delivery.send(f"{number}@a.test") for number in range(20)]:
            await delivery.done(queue_id)
        assert mx.most_open == 1


async def test_a_pause_stays_at_a_reload_until_an_operator_retries(delivery) -> None:
    delivery.providers, delivery.retry_s = entry(pause_s=HOUR_S), (HOUR_S,)
    async with delivery.host(replies={"RCPT": [BLOCKED, "250 ok"]}):
        scheduler, sites = delivery.scheduler, delivery.scheduler.sites
        await deferred(delivery, await delivery.send("first@a.test"))
        scheduler.use(sites.options, sites.connect, lambda _options: True)
        second = await delivery.send("second@a.test")
        await deferred(delivery, second)
        assert await attempts(delivery, second) == ("queued", 0)
        scheduler.use(sites.options, sites.connect, lambda _options: False)
        delivery.spool.queue_admin.delivery = scheduler
        retry = QueueCommand(Operation.RETRY, Selector(ids=(second,)), "op")
        await delivery.spool.queue_admin.execute(retry)
        await delivery.done(second)


async def test_the_pauses_of_too_many_sites_are_forgotten(delivery, monkeypatch) -> None:
    monkeypatch.setattr("relay.delivery.sites.PAUSES_MAX", 2)
    async with AsyncExitStack() as stack:
        delivery.providers, delivery.retry_s = entry(pause_s=HOUR_S), (HOUR_S,)
        await delivery.start()
        for name in ("a", "b", "c"):
            mx = await stack.enter_async_context(RemoteMx(replies={"CONNECT": BLOCKED}))
            delivery.table.at(f"{name}.test", mx)
            await deferred(delivery, await delivery.send(f"x@{name}.test"))
        assert [one.site.split(".")[1] for one in delivery.scheduler.sites.paused()] == ["b", "c"]
