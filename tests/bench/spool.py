"""The spool on PostgreSQL beside the one on SQLite: both in one run, in turn, each figure beside its bound.

    python -m tests.bench.spool                          all parts but `relay`, some ten minutes
    SMALL=1 python -m tests.bench.spool                  a twentieth of it
    python -m tests.bench.spool --only cpu,claims
    python -m tests.bench.spool --only relay --peers ../shared/peers

The server is one of the run's own, which syncs. Processor time of the server is that of all of its
processes. 40 operations are in flight: a small message is accepted, then its result is settled.

Exit codes: 0; 1 if a bound is missed; 64 for wrong arguments.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import uvloop
from msgspec.structs import replace

from relay.base.clock import Ids, SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.message.outcome import Evidence, Relayed
from relay.base.observe.metrics import Metrics
from relay.base.settings.postgres_url import parse_postgres_url
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store import spool as spools
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.postgres.server import connect
from relay.store.spool.types import ClaimResult, DueQuery, NewMessage
from tests.bench.queued.figures import Figure
from tests.bench.side_by_side import ROUND_S, WARM_SHARE, write_template
from tests.bench.versions import kit
from tests.support.postgres import PostgresServer, database_of
from tests.support.relay_process import RelayProcess
from tests.support.spools import new_message

IN_FLIGHT = 40
MESSAGES, MESSAGES_MIN = 8000, 1000  # of a round
ROUNDS = 5
QUEUED = 1_000_000
CLAIMS = 200
CLAIMED = 20  # entries at once
IDLE_S, SETTLE_S = 60.0, 10.0
OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
SETTINGS = {"shared_buffers": "256MB", "max_wal_size": "1GB"}
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Entries that wait, of 1,000 senders to 1,000 next hops, without bodies.
FILL = """
INSERT INTO message SELECT 'q' || lpad(n::text, 9, '0'), 'a@bench.test', 'smtp', 1, 0, 1::bigint << 60,
    100, '', '', '', '', 0, 0, '', '', '', '' FROM generate_series(1, {0}) n;
INSERT INTO content SELECT 'q' || lpad(n::text, 9, '0'), 0, 5, 'A: b\n', NULL, '', 0, 0
    FROM generate_series(1, {0}) n;
INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us, retry_us, attempts,
    epoch, sender)
    SELECT 'q' || lpad(n::text, 9, '0'), 1, 'mx:' || n % 1000 || '.test', 0, 'deferred', 0, {1} + n,
        {1} + n, 1, 1, n % 1000 FROM generate_series(1, {0}) n;
INSERT INTO recipient SELECT 'q' || lpad(n::text, 9, '0'), 1, 1, 'x@a.test', '', '', 'deferred', '4.0.0',
    '', '', '' FROM generate_series(1, {0}) n;
INSERT INTO counter VALUES (0, 0, 'accepted', {0});
"""


_NUMBERS = count()
# Random ones would meet: a benchmark makes more in a millisecond than any relay.
IDS = Ids(SystemClock(), lambda length: (next(_NUMBERS) % (1 << 32)).to_bytes(length, "big"))


class Cost:
    """What some messages took: processor time of this process, of the server, and real time."""

    def __init__(self, node_s: float, server_s: float, real_s: float, messages: int) -> None:
        self.node_us, self.server_us = (one / messages * 1e6 for one in (node_s, server_s))
        self.both_us = self.node_us + self.server_us
        self.per_s = messages / real_s

    def __str__(self) -> str:
        return f"node {self.node_us:.0f} us, server {self.server_us:.0f} us, {self.per_s:.0f}/s"


def server_s(server: PostgresServer) -> float:
    """Return the processor time that all processes of a server have taken, those that ended too."""
    main = (server.data / "postmaster.pid").read_text().split()[0]
    ended = Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[13:15]
    total = sum(map(int, ended)) * TICK_S
    for process in [main, *Path(f"/proc/{main}/task/{main}/children").read_text().split()]:
        with suppress(OSError):  # it has ended
            total += int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) / 1e9
    return total


@asynccontextmanager
async def opened(folder: Path, url: str, *, node: str = "") -> AsyncIterator[SpoolEngine]:
    """Open the spool of a URL."""
    folder.mkdir(exist_ok=True)  # noqa: ASYNC240 - nothing is measured
    settings = Settings("relay.test", folder, spool=SpoolSettings(url, node=node))
    spool = spools.open(settings, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics())
    await spool.start()
    try:
        yield spool
    finally:
        await spool.stop()


def batch(number: int) -> list[NewMessage]:
    content = b"Subject: s\r\n\r\n" + b"x" * 990 + b"\r\n"
    messages = [
        new_message([("mx:a.test", "x@a.test")], contents=(content,)) for _ in range(number)
    ]
    return [replace(one, facts=replace(one.facts, id=IDS.new())) for one in messages]


async def use(messages: Sequence[NewMessage], *nodes: SpoolEngine) -> None:
    """Accept and settle messages."""
    left = iter(messages)

    async def one_by_one(node: SpoolEngine) -> None:
        for message in left:
            for claim in (await node.accept(message)).claims:
                await node.record(ClaimResult(claim, 5, {1: OK}))

    await asyncio.gather(*(one_by_one(node) for node in nodes for _ in range(IN_FLIGHT)))


async def cost(nodes: Sequence[SpoolEngine], server: PostgresServer, number: int) -> Cost:
    """Measure a round."""
    messages = batch(number)
    server_0_s, node_0_s, began_s = server_s(server), time.process_time(), time.perf_counter()
    await use(messages, *nodes)
    node_s, real_s = time.process_time() - node_0_s, time.perf_counter() - began_s
    return Cost(node_s, server_s(server) - server_0_s, real_s, number)


async def in_turn(
    named: Mapping[str, Sequence[SpoolEngine]], bench: "Bench", *, rounds: int
) -> dict[str, list[Cost]]:
    """Warm spools up and load them in turn; each has one node, or several."""
    found: dict[str, list[Cost]] = {name: [] for name in named}
    number = max(MESSAGES_MIN, int(MESSAGES * bench.scale))
    for nodes in named.values():
        await use(batch(max(IN_FLIGHT, int(number * WARM_SHARE))), *nodes)
    for turn in range(rounds):
        for name in list(named)[:: -1 if turn % 2 else 1]:
            found[name].append(await cost(named[name], bench.server, number))
            print(f"    {name:<10} {found[name][-1]}", flush=True)
    return found


def ratio(
    found: dict[str, list[Cost]], what: str, under: str, of: Callable[[Cost], float]
) -> float:
    """Return the median of the ratios of neighbouring rounds."""
    pairs = zip(found[what], found[under], strict=True)
    return statistics.median(of(one) / of(other) for one, other in pairs)


class Bench:
    """What the parts share."""

    def __init__(self, given: argparse.Namespace, server: PostgresServer, folder: Path) -> None:
        self.scale: float = given.scale
        self.given = given
        self.server = server
        self.folder = folder

    def filled(self, number: int) -> str:
        """Return a new database in which so many entries are due."""
        url = self.server.create()

        async def make() -> None:
            async with opened(self.folder / database_of(url), url):
                pass
            connection = await connect(parse_postgres_url(url), purpose="bench")
            try:
                await connection.execute(FILL.format(number, 10**15))
                await connection.execute("VACUUM ANALYZE")
            finally:
                await connection.close()

        asyncio.run(make())
        return url

    @asynccontextmanager
    async def spool(self, url: str, *, node: str = "") -> AsyncIterator[SpoolEngine]:
        folder = self.folder / f"{database_of(url)}{node}"
        async with opened(folder, url, node=node) as spool:
            yield spool


async def cpu(bench: Bench) -> list[Figure]:
    """The processor time of both engines."""
    async with (
        opened(bench.folder / "sqlite", "sqlite:spool.sqlite") as sqlite,
        bench.spool(bench.server.create()) as postgres,
    ):
        found = await in_turn({"sqlite": [sqlite], "postgres": [postgres]}, bench, rounds=ROUNDS)
    node = ratio(found, "postgres", "sqlite", lambda one: one.node_us)
    pairs = zip(found["postgres"], found["sqlite"], strict=True)
    both = statistics.median(ours.both_us / theirs.node_us for ours, theirs in pairs)
    through = ratio(found, "postgres", "sqlite", lambda one: one.per_s)
    return [
        Figure("CPU of the node, PostgreSQL / SQLite", node, "", most=0.75),
        Figure("CPU of node and server, PostgreSQL / SQLite", both, "", most=1.35),
        Figure("messages/s, PostgreSQL / SQLite", through, ""),
    ]


async def claims(bench: Bench) -> list[Figure]:
    """A claim in a long queue, in turn with one where 1,000 entries wait."""
    number = int(QUEUED * bench.scale)
    url = await asyncio.to_thread(bench.filled, number)
    few_url = await asyncio.to_thread(bench.filled, 1000)
    taken: dict[str, list[float]] = {"few": [], "many": []}
    empty = 0
    async with bench.spool(few_url) as few, bench.spool(url) as many:
        for turn in range(CLAIMS):
            for name, spool in (("few", few), ("many", many))[:: -1 if turn % 2 else 1]:
                server_0_s, node_0_s = server_s(bench.server), time.process_time()
                found = await spool.claim_due(1 << 60, CLAIMED, DueQuery())
                node_s = time.process_time() - node_0_s
                taken[name].append(node_s + server_s(bench.server) - server_0_s)
                empty += not found.claims
                await spool.release(found.claims)
    lengths = f"{statistics.median(taken['many']) / CLAIMED * 1e6:.0f} us an entry"
    return [
        Figure(
            f"CPU of a claim, {number:,} entries / 1,000",
            statistics.median(taken["many"]) / statistics.median(taken["few"]), "", most=2.0,
            note=lengths,
        ),
        Figure("claims that found nothing", float(empty), "", most=0.0),
    ]  # fmt: skip


async def nodes(bench: Bench) -> list[Figure]:
    """Two nodes with one queue, beside one node; 40 operations are in flight at each."""
    shared = bench.server.create()
    async with (
        bench.spool(bench.server.create()) as alone,
        bench.spool(shared, node="one") as one,
        bench.spool(shared, node="two") as two,
    ):
        found = await in_turn({"one": [alone], "two": [one, two]}, bench, rounds=ROUNDS)
    return [
        Figure("CPU per message, two nodes / one", ratio(found, "two", "one", lambda one: one.both_us),
               "", most=1.2),
        Figure("messages/s, two nodes / one", ratio(found, "two", "one", lambda one: one.per_s), ""),
    ]  # fmt: skip


async def idle(bench: Bench) -> list[Figure]:
    """Three nodes with one queue in which nothing is: their engines, and whole relays."""
    url = bench.server.create()
    idle_s = max(IDLE_S * bench.scale, 10.0)
    async with (
        bench.spool(url, node="one"), bench.spool(url, node="two"), bench.spool(url, node="three")
    ):  # fmt: skip
        await asyncio.sleep(SETTLE_S)
        server_0_s, node_0_s = server_s(bench.server), time.process_time()
        await asyncio.sleep(idle_s)
        node_s, at_server_s = time.process_time() - node_0_s, server_s(bench.server) - server_0_s
    relays_s = await asyncio.to_thread(idle_relays, bench, idle_s)
    return [
        Figure(
            "CPU of three idle engines and the server", (node_s + at_server_s) / idle_s * 100, "%",
            most=1.0, note=f"engines {node_s / idle_s:.2%}, in {idle_s:.0f} s",
        ),
        Figure(
            "CPU of three idle relays and the server", relays_s / idle_s * 100, "%", most=1.0
        ),
    ]  # fmt: skip


def idle_relays(bench: Bench, idle_s: float) -> float:
    """Return the processor time of relays and of the server while nothing happens."""
    url = bench.server.create()
    with ExitStack() as stack:
        relays = []
        for name in ("one", "two", "three"):
            config = {"spool": {"url": url, "node": name}, "mailboxes": {"store": name}}
            relays.append(stack.enter_context(RelayProcess(config=config)))
        time.sleep(SETTLE_S)
        before_s = sum(one.cpu_s() for one in relays) + server_s(bench.server)
        time.sleep(idle_s)
        return sum(one.cpu_s() for one in relays) + server_s(bench.server) - before_s


async def relay(bench: Bench) -> list[Figure]:
    """Whole relays, with the workload `small` of the benchmark kit."""
    return await asyncio.to_thread(whole_relays, bench)


def whole_relays(bench: Bench) -> list[Figure]:
    """Load both relays in turn."""
    compare: Any = kit(bench.given)
    load = compare.WORKLOADS["small"]
    messages = max(load.sessions, int(load.messages * bench.scale))
    rows: dict[str, list[dict[str, float]]] = {"sqlite": [], "postgres": []}
    with ExitStack() as stack:
        running = {}
        for name in rows:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spool-")))
            template = write_template(folder)
            if name == "postgres":
                url = bench.server.create()
                template.write_text(f'{template.read_text()}\n[spool]\nurl = "{url}"\n')
            start = f"{bench.given.relay} serve --config {{config}}"
            running[name] = compare.System(name, start, str(template), {})
            stack.callback(running[name].stop)
            running[name].round(load, max(load.sessions, int(messages * WARM_SHARE)), ROUND_S)
        for turn in range(ROUNDS):
            for name in list(rows)[:: -1 if turn % 2 else 1]:
                rows[name].append(running[name].round(load, messages, ROUND_S))
                print(f"    {name:<10} {rows[name][-1]}", flush=True)
    through, cpu_ms = (
        statistics.median(
            ours[what] / theirs[what]
            for ours, theirs in zip(rows["postgres"], rows["sqlite"], strict=True)
        )
        for what in ("through_per_s", "cpu_ms_per_msg")
    )
    return [
        Figure("whole relay: messages/s, PostgreSQL / SQLite", through, "", least=0.85),
        Figure("whole relay: CPU of the node, PostgreSQL / SQLite", cpu_ms, ""),
    ]


PARTS = {"cpu": cpu, "claims": claims, "nodes": nodes, "idle": idle, "relay": relay}


def main() -> int:
    """Measure, print, and judge."""
    given = arguments()
    print(f"{'part':<8} figure", flush=True)
    missed = 0
    for name in given.only:
        with started(given) as bench:
            for figure in uvloop.run(PARTS[name](bench)):
                print(f"{name:<8} {figure}", flush=True)
                missed += not figure.holds
    return int(bool(missed))


@contextmanager
def started(given: argparse.Namespace) -> Iterator[Bench]:
    """Start a server that syncs."""
    with (
        PostgresServer(is_synced=True, settings=SETTINGS) as server,
        tempfile.TemporaryDirectory(prefix="bench-spool-", dir=given.directory) as folder,
    ):
        yield Bench(given, server, Path(folder))


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = [one for one in PARTS if one != "relay"]
    parser.add_argument("--only", default=parts, type=lambda text: text.split(","))
    small = 0.05 if os.environ.get("SMALL") else 1.0
    parser.add_argument("--scale", type=float, default=small, help="of the numbers of messages")
    parser.add_argument("--relay", default=str(Path(sys.executable).parent / "relay"))
    parser.add_argument("--peers", default="../shared/peers", help="folder of the benchmark kit")
    parser.add_argument("--directory", default="/tmp", help="on the disk of SQLite's spool")
    try:
        given = parser.parse_args()
        if unknown := set(given.only) - set(PARTS):
            parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    except SystemExit as error:
        sys.exit(os.EX_USAGE if error.code else 0)
    return given


if __name__ == "__main__":
    sys.exit(main())
