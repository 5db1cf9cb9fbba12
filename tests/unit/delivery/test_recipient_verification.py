"""RCPT probes with real next hops: what they answer, how long it counts, what bounds them."""

import asyncio
from functools import partial
from types import SimpleNamespace

import pytest

from relay.base.message.mta_sts import NO_STS, StsFinding, StsPolicy
from relay.base.message.nexthop import HopKind, NextHop
from relay.delivery import recipient_verification
from relay.delivery.recipient_verification import RecipientVerifier
from relay.delivery.smtp.connect import connect
from relay.delivery.smtp.connection import Timeouts
from relay.transport.routing.mx_hosts import Host, Hosts, TemporaryFailure
from relay.transport.routing.route_table import RouteTable
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.remote_mx import DROP, STALL, RemoteMx

CLIENT = "192.0.2.1"
HOP = NextHop(HopKind.MX, "gate.test")
OTHER = NextHop(HopKind.MX, "other.test")
UNKNOWN = "550 5.1.1 <x@gate.test>: the next hop does not take this address (550)"
LATER = "450 4.1.1 <x@gate.test>: the next hop does not say now whether it takes this address"


class Resolver:
    def __init__(self, *servers: RemoteMx, sts: StsFinding) -> None:
        self.sts = sts
        self.hosts = tuple(
            Host(one.host, at, (one.path or one.host,), one.port, lmtp=one.lmtp)
            for at, one in enumerate(servers)
        )

    async def resolve(self, _next_hop: NextHop) -> Hosts | TemporaryFailure:
        found = Hosts(self.hosts, sts=self.sts)
        return found if self.hosts else TemporaryFailure("no answer")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def verifier(clock: ManualClock, *servers: RemoteMx, sts: StsFinding = NO_STS) -> RecipientVerifier:
    table = RouteTable([], [], SimpleNamespace(), tls="none")
    opened = partial(connect, ehlo_name="relay.test", timeouts=Timeouts())
    return RecipientVerifier(table, Resolver(*servers, sts=sts).resolve, opened, clock=clock)


def probes(server: RemoteMx) -> int:
    return sum(one.startswith("RCPT") for one in server.commands)


async def test_a_probe_waits_for_the_policy_of_the_domain_and_obeys_it(clock) -> None:
    async def fetch() -> StsFinding:
        return StsFinding(StsPolicy("enforce", frozenset(("mx.gate.test",)), 300))

    async with RemoteMx(replies={"RCPT": "550 5.1.1 no"}) as server:
        asked = verifier(clock, server, sts=StsFinding(fetch=fetch))
        assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(LATER)
        assert not server.sessions


async def test_a_probe_is_a_transaction_without_content(clock) -> None:
    async with RemoteMx() as server:
        assert await verifier(clock, server).rejection("X@gate.test", HOP, client=CLIENT) == ""
        assert [one.split(" SIZE")[0] for one in server.commands] == [
            "EHLO relay.test",
            "MAIL FROM:<>",
            "RCPT TO:<X@gate.test>",
            "QUIT",
        ]
        assert not server.envelopes


@pytest.mark.parametrize(
    ("reply", "found", "kept_s"),
    [("250 2.1.5 Ok", "", 86400), ("550 5.2.1 no", UNKNOWN, 3600), ("451 4.7.1 grey", LATER, 0)],
)
async def test_an_answer_counts_for_its_time(clock, reply, found, kept_s) -> None:
    async with RemoteMx(replies={"RCPT": reply}) as server:
        asked = verifier(clock, server)
        assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(found)
        clock.advance(max(kept_s - 1, 0))
        assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(found)
        assert probes(server) == (1 if kept_s else 2)
        await asked.rejection("y@gate.test", HOP, client=CLIENT)  # another address is asked
        assert probes(server) == (2 if kept_s else 3)
        clock.advance(1)
        await asked.rejection("X@gate.test", HOP, client=CLIENT)
        assert probes(server) == (3 if kept_s else 4)


@pytest.mark.parametrize(
    ("reply", "begin"),
    [
        ("452 4.2.2 over quota", "452 4.2.2 "),
        ("552 5.2.2 over quota", "552 5.2.2 "),
        ("552 no room", "552 5.2.2 "),
        ("550 5.2.2 over quota", "552 5.2.2 "),
    ],
)
async def test_that_a_mailbox_is_full_is_the_answer_as_long_as_it_is(clock, reply, begin) -> None:
    async with RemoteMx(replies={"RCPT": [reply, "250 2.1.5 Ok"]}) as server:
        asked = verifier(clock, server)
        assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(
            f"{begin}<x@gate.test>: "
        )
        assert await asked.rejection("x@gate.test", HOP, client=CLIENT) == ""


@pytest.mark.parametrize(
    "replies",
    [
        {"MAIL": "550 5.7.1 no null sender"},
        {"MAIL": DROP},
        {"CONNECT": "554 no"},
        {"EHLO": "451 4.3.0 later"},
    ],
)
async def test_what_is_no_answer_rejects_nobody_and_is_not_asked_for_again_at_once(clock, replies):
    async with RemoteMx(replies=replies) as server:
        asked = verifier(clock, server)
        for _ in range(3):
            assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(LATER)
        assert (await asked.rejection("y@gate.test", HOP, client=CLIENT)).startswith(
            "450 4.1.1 <y@gate.test>"
        )
        assert server.sessions == 1
        await asked.rejection("x@gate.test", OTHER, client=CLIENT)  # another next hop is
        assert server.sessions == 2
        clock.advance(30)
        await asked.rejection("x@gate.test", HOP, client=CLIENT)
        assert server.sessions == 3


@pytest.mark.parametrize("reply", [DROP, "hello", STALL])
async def test_an_address_without_an_answer_leaves_the_others_alone(clock, monkeypatch, reply):
    monkeypatch.setattr(recipient_verification, "_PROBE_S", 0.5)
    async with RemoteMx(rcpt={"x@gate.test": reply}) as server:
        asked = verifier(clock, server)
        for _ in range(3):
            assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(LATER)
        assert probes(server) == 1
        assert await asked.rejection("y@gate.test", HOP, client=CLIENT) == ""
        clock.advance(30)
        assert (await asked.rejection("x@gate.test", HOP, client=CLIENT)).startswith(LATER)
        assert probes(server) == 3


async def test_few_probes_run_at_once_and_an_answer_is_for_those_that_wait(clock) -> None:
    gate = asyncio.Event()
    async with RemoteMx(gates={"RCPT": gate}) as server:
        asked = verifier(clock, server)
        clients = [(f"x{number % 30}@gate.test", f"192.0.2.{number}") for number in range(60)]
        all_of_them = asyncio.gather(*(asked.rejection(x, HOP, client=ip) for x, ip in clients))
        await until(lambda: probes(server) >= 20)
        gate.set()
        assert await all_of_them == [""] * 60
        assert server.most_open == 20
        assert probes(server) <= 40  # at most ten of them while the same address was asked


@pytest.mark.parametrize("attackers", [1, 2])
async def test_clients_probe_in_turn_and_the_wait_for_others_is_no_silence_of_the_host(
    clock, monkeypatch, attackers
) -> None:
    monkeypatch.setattr(recipient_verification, "_TURN_S", 0.2)
    known = {f"known{number}@gate.test": "250 2.1.5 Ok" for number in range(5)}
    async with RemoteMx(replies={"RCPT": STALL}, rcpt=known) as server:
        asked = verifier(clock, server)
        attack = [
            asyncio.create_task(
                asked.rejection("x@gate.test", HOP, client=f"198.51.100.{number % attackers}")
            )
            for number in range(40 * attackers)
        ]
        places = (10, 13)[attackers - 1]
        await until(lambda: probes(server) == places)
        for number in range(4):
            address, ip = f"known{number}@gate.test", f"192.0.2.{number % 2}"
            assert await asked.rejection(address, HOP, client=ip) == ""
        await until(lambda: sum(task.done() for task in attack) == len(attack) - places)
        assert await asked.rejection("known4@gate.test", HOP, client="192.0.2.1") == ""
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)


async def test_addresses_that_do_not_exist_push_none_out_that_does(clock, monkeypatch) -> None:
    monkeypatch.setattr(recipient_verification, "_KEPT_MAX", 2)
    async with RemoteMx(replies={"RCPT": "550 no"}, rcpt={"a@gate.test": "250 Ok"}) as server:
        asked = verifier(clock, server)
        for name in ("a", "x1", "x2", "x3", "a"):
            await asked.rejection(f"{name}@gate.test", HOP, client=CLIENT)
        assert probes(server) == 4


async def test_the_answers_kept_are_bounded_and_the_oldest_go_first(clock, monkeypatch) -> None:
    monkeypatch.setattr(recipient_verification, "_KEPT_MAX", 2)
    async with RemoteMx() as server:
        asked = verifier(clock, server)
        for name in ("a", "b", "c", "c", "b", "a"):
            await asked.rejection(f"{name}@gate.test", HOP, client=CLIENT)
        assert probes(server) == 4  # "a" was forgotten


async def test_by_lmtp_the_answer_is_that_of_rcpt(clock, tmp_path) -> None:
    path = str(tmp_path / "lmtp")
    async with RemoteMx(path=path, lmtp=True, rcpt={"x@gate.test": "550 5.1.1 no"}) as server:
        server.port = 0
        asked = verifier(clock, server)
        assert await asked.rejection("x@gate.test", HOP, client=CLIENT) == UNKNOWN
        assert await asked.rejection("y@gate.test", HOP, client=CLIENT) == ""
        assert server.commands[0].startswith("LHLO")
