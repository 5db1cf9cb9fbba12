"""Worlds of delivery in virtual time, each with what a limit was made for: how long mail may take.

A name says what its host does: `dead` ones answer no connection for 30 s, `lost` ones are also looked
up for 20 s, `far` ones are looked up for 3 s, `slow` ones take 3 s for a message, `stalled` ones 200 s,
`single` ones refuse a second connection for 20 s. A recipient may be slow or stalled instead. Each docstring has the time that the mail takes without the limit.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Peer, Relayed, SmtpStage
from relay.delivery.smtp.connect import ConnectError, Target
from relay.delivery.smtp.transaction import Extensions, Transaction, TransactionResult
from relay.store.spool.shared.accepted import CapturedMail
from relay.store.spool.types import PriorityLevel, Selector, sender_key
from relay.transport.routing.mx_hosts import Host, Hosts
from tests.simulation.clock import Time, WorldClock
from tests.simulation.network import Network
from tests.support.spools import message_of, new_spool
from tests.unit.delivery.conftest import KEEP_US, RunningDelivery, Table

_TOOK_S = {"slow": 3.0, "stalled": 200.0}
_LOOKUP_S = {"lost": 20.0, "far": 3.0}
_DEAD_S, _ROUND_TRIP_S, _SINGLE_S = 30.0, 0.05, 20.0
_PATIENCE_S = 600.0
_EXPIRE_US = 5 * 86400 * 1_000_000


def kind_of(host: str) -> str:
    """`dead` of mx.dead7.test."""
    return host.removeprefix("mx.").partition(".")[0].rstrip("0123456789")


class NamedHosts(Table):
    async def resolve(self, next_hop: NextHop) -> Hosts:
        await asyncio.sleep(_LOOKUP_S.get(kind_of(next_hop.host), 0.02))
        number = self.numbers.setdefault(next_hop.host, len(self.numbers))
        address = f"10.0.{number >> 8}.{number & 255}"
        return Hosts((Host(f"mx.{next_hop.host}", 0, (address,), 25),))


class Connection:
    is_open = True
    transactions = 0
    is_worn = False
    extensions = Extensions()

    def __init__(self, host: str) -> None:
        self.host = host
        self.peer = Peer(host)

    async def transact(
        self,
        transaction: Transaction,
        *,
        before_dot: Callable[[], Awaitable[None]],
        on_replies: None,
    ) -> TransactionResult:
        recipient = transaction.recipients[0].address.partition("@")[0]
        await asyncio.sleep(_TOOK_S.get(recipient, _TOOK_S.get(kind_of(self.host), 0.05)))
        await before_dot()
        self.transactions += 1
        relayed = Relayed(Evidence("2.0.0", "250 ok", host=self.host))
        return TransactionResult(
            dict.fromkeys(range(len(transaction.recipients)), relayed), reusable=True
        )

    async def quit(self) -> None:
        self.is_open = False

    def close(self) -> None:
        self.is_open = False


async def connect(target: Target, **_options: object) -> Connection:
    if kind_of(target.host) in ("dead", "lost"):
        await asyncio.sleep(_DEAD_S)
        nothing = Evidence("4.4.1", "no answer", host=target.host)
        raise ConnectError(Deferred(nothing, DeferralClass.CONNECT), SmtpStage.CONNECT)
    await asyncio.sleep(_ROUND_TRIP_S)
    return Connection(target.host)


class FairWorld(RunningDelivery):
    """Delivery with a real spool. Nothing is awaited in real time."""

    def __init__(self, folder: Path, clock: WorldClock, connections: int, claims: int) -> None:
        super().__init__(folder)
        self.clock, self.table = clock, NamedHosts()
        self.table.numbers = {}
        self.connect, self.retry_s, self.unreachable_s = self._connect, (60.0, 300.0), 30.0
        self.first_s: dict[str, float] = {}  # by host, when it got the first connection
        self.idle_s, self.connections_in_all, self.window_claims = 5.0, connections, claims

    async def open(self) -> None:
        self.spool = new_spool(
            self.folder / "spool.sqlite",
            self.clock,
            metrics=self.metrics,
            captured=CapturedMail(KEEP_US, False),
            inline=True,
        )
        await self.spool.start()

    async def _connect(self, target: Target, **_options: object) -> Connection:
        now_s = self.clock.monotonic()
        age_s = now_s - self.first_s.setdefault(target.host, now_s)
        if kind_of(target.host) == "single" and 0 < age_s < _SINGLE_S:
            busy = Evidence("4.3.2", "421 4.3.2 too many connections", host=target.host)
            raise ConnectError(Deferred(busy, DeferralClass.SITE), SmtpStage.CONNECT)
        return await connect(target)

    async def pass_s(self, seconds: float) -> None:
        """Let virtual time pass."""
        await asyncio.sleep(seconds)

    async def submit(self, domain: str, sender: str, *, queued: bool = False, to: str = "u") -> str:
        """Accept a message as ingress does, or leave it in the queue."""
        message = message_of(
            [(f"mx:{domain}.test", [f"{to}@{domain}.test"])],
            queue_id=self.ids.new(),
            now_us=self.clock.queue_us(),
            expires_us=self.clock.queue_us() + _EXPIRE_US,
            reverse_path=sender,
        )
        if queued:
            return (await self.spool.accept(message, claim=False)).queue_id
        [entry], key = message.entries, sender_key(sender)
        level = self.scheduler.active_queue.level_of(entry.next_hop, key, PriorityLevel.NORMAL)
        message = replace(message, entries=(replace(entry, level=level),))
        has_room = self.scheduler.has_room_for(entry.next_hop, key, level)
        accepted = await self.spool.accept(message, claim=has_room)
        if has_room:
            self.scheduler.offer(accepted.claims)
        else:
            self.scheduler.accepted_unclaimed([message])
        return accepted.queue_id

    async def bulk(
        self, count: int, domains: str, *, senders: int = 1, queued: bool = False
    ) -> None:
        """Submit messages of so many senders, each to the next domain."""
        for number in range(count):
            domain = domains.format(number)
            await self.submit(domain, f"s{number % senders}@bulk.test", queued=queued)

    async def slowest_s(self, mail: Iterable[tuple[str, str]]) -> float:
        """Submit a message to each domain, from each sender; return how long the slowest takes."""

        return await self.left_s(*[await self.submit(domain, sender) for domain, sender in mail])

    async def left_s(self, *queue_ids: str) -> float:
        """Return after how long the queue has no entry of these messages."""
        began_s = self.clock.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                while await self.spool.queue_admin.list(Selector(ids=queue_ids), limit=1):
                    while await self.changed.get() not in queue_ids:
                        pass
        return self.clock.monotonic() - began_s


World = Callable[[FairWorld], Awaitable[float]]


@pytest.fixture
def lived(tmp_path: Path) -> Callable[..., float]:
    """Return what a world returns, a time in seconds."""

    def live(world: World, *, connections: int = 64, claims: int = 2000) -> float:
        loop = Network()
        loop.clocks = Time(loop)

        async def run() -> float:
            fair = FairWorld(tmp_path, WorldClock(loop), connections, claims)
            await fair.open()
            try:
                return await world(fair)
            finally:
                await fair.scheduler.drain(0.0)
                fair.running.cancel()
                await asyncio.gather(fair.running, return_exceptions=True)
                await fair.spool.stop()

        try:
            return loop.run_until_complete(run())
        finally:
            loop.close()

    return live


OTHERS = [(f"live{number}", f"o{number}@other.test") for number in range(3)]


@pytest.mark.parametrize(
    ("domains", "most_s"),
    [
        ("dead{}", 3.0),  # 28 s without PROBE_TIMEOUT_S; 34 s if queued mail came first
        ("lost{}", 1.0),  # 17 s without the reserve of lookups
    ],
)
def test_new_mail_comes_before_a_queue_for_unknown_domains(lived, domains, most_s) -> None:
    async def world(fair: FairWorld) -> float:
        await fair.bulk(400, domains, senders=50 if domains == "dead{}" else 4, queued=True)
        await fair.start()
        await fair.pass_s(3)
        return await fair.slowest_s([*OTHERS, ("live9", "s3@bulk.test")])

    assert lived(world) < most_s


def test_a_sender_with_a_few_unknown_domains_comes_before_one_with_many(lived) -> None:
    """22 s if the sender with the fewest lookups did not come first, 19 s without the reserve."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.bulk(1000, "lost{}", senders=4)
        await fair.pass_s(1)
        return await fair.slowest_s((f"live{number}", "o@other.test") for number in range(5))

    assert lived(world) < 2.0


@pytest.mark.parametrize(("domains", "after_s"), [("lost{}", 0.5), ("dead{}", 4.0)])
def test_new_mail_does_not_wait_in_the_turn_of_a_queue_that_has_its_domain(lived, domains, after_s):
    """49 s without the earlier turn of a lookup, 14 s without that of a connection."""

    async def world(fair: FairWorld) -> float:
        await fair.bulk(400, domains, queued=True)
        await fair.submit("live0", "s0@bulk.test", queued=True)
        await fair.start()
        await fair.pass_s(after_s)
        return await fair.slowest_s(OTHERS[:1])

    assert lived(world) < 1.0


def test_new_mail_does_not_wait_for_the_pace_of_queued_lookups(lived) -> None:
    """0.6 s if the lookup that it shares kept its turn among those for queued mail."""

    async def world(fair: FairWorld) -> float:
        await fair.bulk(100, "live{}", senders=100, queued=True)
        await fair.start()
        await fair.pass_s(0.01)
        return await fair.slowest_s([("live99", "o@other.test")])

    assert lived(world) < 0.3


def test_new_mail_does_not_wait_in_the_turn_of_queued_mail_of_the_same_lookup(lived) -> None:
    """40 s if the first message decided the turn of a new site."""

    async def world(fair: FairWorld) -> float:
        await fair.bulk(400, "dead{}", queued=True)
        await fair.submit("far0", "s0@bulk.test", queued=True)
        await fair.start()
        await fair.pass_s(2)
        return await fair.slowest_s([("far0", "o@other.test")])

    assert lived(world) < 4.0


@pytest.mark.parametrize("domains", ["lost{}", "dead{}"])
def test_queued_mail_of_one_query_has_the_turn_of_its_own_sender(lived, domains) -> None:
    """69 s in the turn of the lookup's first message, 42 s in that of the site's."""

    async def world(fair: FairWorld) -> float:
        await fair.bulk(400, domains, queued=True)
        await fair.submit("live0", "s0@bulk.test", queued=True)
        queue_id = await fair.submit("live0", "o@other.test", queued=True)
        await fair.start()
        return await fair.left_s(queue_id)

    assert lived(world) < 4.0


def test_a_host_that_stalls_leaves_room_for_others(lived) -> None:
    """Over 10 minutes without the limit of a next hop."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.bulk(2000, "stalled", senders=1000)
        await fair.pass_s(1)
        return await fair.slowest_s(OTHERS)

    assert lived(world, claims=400) < 1.0


def test_a_queue_for_many_slow_hosts_leaves_room_for_new_mail(lived) -> None:
    """34 s without the reserve."""

    async def world(fair: FairWorld) -> float:
        for number in range(4000):
            await fair.submit(f"slow{number % 100}", f"s{number % 100}@bulk.test", queued=True)
        await fair.start()
        await fair.pass_s(5)
        return await fair.slowest_s(OTHERS[:1])

    assert lived(world, claims=400) < 3.0


def test_queued_mail_does_not_wait_for_that_of_one_sender_to_its_next_hop(lived) -> None:
    """16 s without the limit of a sender at a next hop."""

    async def world(fair: FairWorld) -> float:
        await fair.bulk(4000, "slow", queued=True)
        await fair.start()
        await fair.pass_s(5)
        queue_id = await fair.submit("slow", "o@other.test", queued=True)
        fair.scheduler.look_for_work(from_start=False)
        return await fair.left_s(queue_id)

    assert lived(world, claims=400) < 6.0


def test_a_full_next_hop_takes_the_first_messages_of_another_sender(lived) -> None:
    """19 s without these few."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.slowest_s([("slow", "s0@bulk.test")])
        await fair.bulk(1500, "slow", senders=30)
        await fair.pass_s(5)
        return await fair.slowest_s([("slow", "o@other.test")])

    assert lived(world, claims=400) < 10.0


def test_a_full_sender_still_reaches_a_next_hop_where_it_has_no_mail(lived) -> None:
    """Over a minute without a part of the reserve."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        for number in range(20):
            await fair.slowest_s([(f"slow{number}", "s0@bulk.test")])
        await fair.slowest_s([("live0", "s0@bulk.test")])
        for _ in range(100):
            await fair.bulk(20, "slow{}")
        await fair.pass_s(1)
        return await fair.slowest_s([("live0", "s0@bulk.test")])

    assert lived(world, connections=1000, claims=200) < 1.0


def test_new_mail_to_unknown_domains_does_not_delay_that_of_its_sender_to_known_ones(lived) -> None:
    """35 s without the part of next hops that have not been reached."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.slowest_s([("live0", "s0@bulk.test")])
        await fair.bulk(2000, "dead{}")
        await fair.pass_s(1)
        return await fair.slowest_s([("live0", "s0@bulk.test"), *OTHERS])

    assert lived(world) < 4.0


def test_new_domains_do_not_fill_the_active_queue(lived) -> None:
    """Over a minute without the part of next hops that have not been reached."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.bulk(1500, "dead{}", senders=100)
        await fair.pass_s(1)
        return await fair.slowest_s(OTHERS[:1])

    assert lived(world, claims=200) < 20.0


def test_a_site_that_is_always_busy_makes_room_for_one_without_a_connection(lived, monkeypatch):
    """60 s, as long as the others have mail, without the limit of transactions."""
    monkeypatch.setitem(_TOOK_S, "live", 0.5)

    async def world(fair: FairWorld) -> float:
        await fair.start()
        for _ in range(120):
            await fair.bulk(6, "live{}", senders=6)
        await fair.pass_s(5)
        return await fair.slowest_s([("other", "o@other.test")])

    assert lived(world, connections=6) < 30.0


def test_a_site_with_all_connections_gives_one_to_a_site_without(lived) -> None:
    """Two minutes if it had them for as many transactions as a site with few."""

    async def world(fair: FairWorld) -> float:
        await fair.start()
        await fair.bulk(400, "slow", senders=6)
        await fair.pass_s(30)
        return await fair.slowest_s([("other", "o@other.test")])

    assert lived(world, connections=6) < 5.0


@pytest.mark.parametrize(
    ("domain", "stalled", "most_s"),
    [
        ("live", 1, 0.5),
        ("live", 5, 3.5),  # 200 s if they kept their places
        ("live", 19, 3.5),
        ("single", 1, 31.0),  # 200 s if a second connection was not tried again
        ("single", 2, 31.0),
    ],
)
def test_slow_transactions_do_not_hold_other_mail_of_their_site(lived, domain, stalled, most_s):
    async def world(fair: FairWorld) -> float:
        await fair.start()
        for _ in range(stalled):
            await fair.submit(domain, "s@bulk.test", to="stalled")
        await fair.pass_s(0.5)
        return await fair.slowest_s([(domain, f"o{number}@other.test") for number in range(10)])

    assert lived(world) <= most_s
