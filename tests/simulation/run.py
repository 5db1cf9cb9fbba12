"""Play a scenario to its end, through every death, and judge what is left.

The same seed gives the same run, to the last line of its trace. What is wrong is in the
outcome's violations. See docs/design.md 7.
"""

import asyncio
import fcntl
import multiprocessing
import os
import shutil
import syslog
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import apsw

from relay.base import clock
from relay.base.clock import DOUBT_US
from relay.base.observe import logs
from relay.delivery import queue_scanner
from relay.delivery.site_limits import SiteOptions, TokenBucket, parse_rate
from relay.store.spool.types import Selector, SpoolDamagedError, SpoolError
from relay.transport.ingress import smtp_server
from tests.simulation import coverage, invariants, operators, scenario, tripwires
from tests.simulation.disk import Disk
from tests.simulation.ledger import Ledger
from tests.simulation.life import Life
from tests.simulation.neighbours import (
    GATE_ADDRESS,
    GATE_PORT,
    Mailboxes,
    Names,
    address,
    host_name,
    rules,
)
from tests.simulation.network import ioctl, open_listener
from tests.simulation.node import Node, VerifierDependencies
from tests.simulation.order import EndlessError
from tests.simulation.rows import anchored_boot, read_rows
from tests.simulation.scenario import GATE, ROUTED, STRICT_MX, LifePlan, Scenario, Start
from tests.simulation.senders import Senders
from tests.simulation.sites import AT_ONCE, Site
from tests.simulation.world import World

_LOOK_S = 120.0
_LOOKS_MAX = 200  # for an entry that is in flight, or waits
_STARTS_MAX = 50  # each life keeps its own disk; together longer than a disk is full
Variant = Callable[[], AbstractContextManager[object]]


@dataclass
class Outcome:
    """How it ended."""

    seed: int
    violations: list[str] = field(default_factory=list)
    trace_hash: str = ""
    trace: list[str] = field(default_factory=list)
    messages: int = 0
    deaths: int = 0
    reached: Counter[str] = field(default_factory=Counter)


def run(seed: int, *, variant: Variant = nullcontext, keep_trace: bool = False) -> Outcome:
    """Play the world of `seed`; with `variant`, on a relay that is broken in its way.

    Its log is its own, and nobody reads it: lines are written at the end of a turn of the event
    loop, so that the course of a world depends on which lines are.
    """
    with Path(os.devnull).open("wb") as nowhere:
        sink = logs.LogSink()
        sink.point_at(nowhere.fileno())
        sink.priority_max = syslog.LOG_INFO
        with patch.object(logs, "_sink", sink):
            return _run(seed, variant=variant, keep_trace=keep_trace)


def _run(seed: int, *, variant: Variant, keep_trace: bool) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="world-", dir=_memory()))
    world = World(seed, str(folder), keep_trace=keep_trace)
    play = None
    try:
        with variant(), world.deaths_untold():
            play = _Play(world, scenario.make(seed), folder)
            with play.watched():
                world.run_until_complete(play.act())
    except EndlessError:
        return Outcome(seed, [*world.faults, "it has no end"], trace=world.trace or [])
    except apsw.CorruptError as error:  # what a loss of power may leave of what was not synced
        lost = f"invariant 1: the database cannot be read: {error}"
        return Outcome(seed, [*world.faults, lost], trace=world.trace or [])
    else:
        play.ledger.ended()
        outcome = Outcome(seed, trace_hash=world.trace_hash, trace=world.trace or [])
        outcome.deaths = sum(life.dead for life in world.lives)
        outcome.violations = [*world.faults, *play.judge()]
        outcome.messages = len(play.ledger.tries)
        outcome.reached = world.reached + coverage.of_messages(play.rows.messages)
        return outcome
    finally:
        with world.deaths_untold():
            if play is not None:
                play.end()
            world.close()
        shutil.rmtree(folder)


@dataclass
class Played:
    """Many worlds together."""

    wrong: list[Outcome] = field(default_factory=list)
    submissions: int = 0
    deaths: int = 0
    reached: Counter[str] = field(default_factory=Counter)


def play(seeds: Iterable[int], *, tell: Callable[[Outcome], object] = lambda _: None) -> Played:
    """Play these worlds on all cores; `tell` hears of each that went wrong as soon as it is known."""
    played = Played()
    with multiprocessing.get_context("spawn").Pool() as pool:
        for outcome in pool.imap(run, seeds, chunksize=4):
            played.submissions += outcome.messages
            played.deaths += outcome.deaths
            played.reached += outcome.reached
            if outcome.violations:
                played.wrong.append(outcome)
                tell(outcome)
    return played


def _memory() -> str | None:
    """Where a sync costs nothing."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class _Play:
    def __init__(self, world: World, plan: Scenario, folder: Path) -> None:
        self.world = world
        self.plan = plan
        self.ledger = Ledger(world, plan, claims_max=claims_max(plan))
        self.disk = Disk(world, folder)
        self.sites = self._sites()
        self._rate_sites()
        store = Mailboxes(world, self.ledger, plan)
        self.around = VerifierDependencies(
            world, plan, self.ledger, Names(world, self.ledger, plan), store, rules(), self.disk
        )
        self.senders = Senders(
            world, self.ledger, plan.patience_s, submission_keep_s=plan.submission_keep_s
        )
        world.on_call = self._called
        self.node: Node | None = None
        self.last_home = folder
        self._waiting: list[asyncio.Task[None]] = []  # operators

    def _sites(self) -> dict[str, list[Site]]:
        site = partial(Site, self.world, on_dot=self.ledger.dot, on_mail=self.ledger.begun)
        sites: dict[str, list[Site]] = {}
        for domain, manners in self.plan.domains.items():
            sites[domain] = [
                site(host_name(number, domain), manner) for number, manner in enumerate(manners)
            ]
            for number, one in enumerate(sites[domain]):
                port = 24 if one.manner.lmtp else 25
                self.world.at((address(number, domain), port), one.host())
        if self.plan.gate is not None:
            gate = site(GATE, self.plan.gate, has_login=True)
            sites[GATE] = [gate]
            self.world.at((GATE_ADDRESS, GATE_PORT), gate.host())
        return sites

    def _rate_sites(self) -> None:
        """Those where a transaction begins as soon as it may show how many there are."""
        for domain, sites in self.sites.items():
            own = self.plan.route_rate if domain == ROUTED else ""
            options = SiteOptions(1, 0.0, rate=parse_rate(self.plan.rate))
            rate = options.limited(None, parse_rate(own)).rate
            # next hops with and without a login, or a policy, have a rate each
            if domain == GATE or (domain == STRICT_MX and self.plan.published):
                continue
            if rate and all(site.manner.name in AT_ONCE for site in sites):
                self.ledger.rated[domain] = rate

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Have an eye on what nobody tells."""
        wait_s = TokenBucket.wait_s

        def waits_s(bucket: TokenBucket, now_s: float) -> float:
            found = wait_s(bucket, now_s)
            self.world.reached["rate: waited"] += found > 0
            return found

        with (
            tripwires.watched(self.world.fault, self.disk, on_prune=self.ledger.archive.update),
            self.disk.in_place(),
            patch.object(queue_scanner, "RESCAN_US", int(self.plan.walks_anew_s * 1e6)),
            patch.object(clock, "_FOLLOWING_PARTS", 1 << 80),  # queue time equals the world's time
            patch.object(TokenBucket, "wait_s", waits_s),
            patch.object(fcntl, "ioctl", ioctl),
            patch.object(smtp_server, "open_listener", open_listener),
        ):
            yield

    def _called(self, life: Life, name: str) -> None:
        """Invariant 4: the relay never has more connections than it may."""
        open_calls = {
            host: sum(map(self.world.is_open, sockets)) for host, sockets in life.calls.items()
        }
        site = name.partition(".")[2]
        at_site = sum(n for host, n in open_calls.items() if host.partition(".")[2] == site)
        # two next hops that must not share connections are two sites
        count = 2 if site == "" else 1
        if site == STRICT_MX:
            count += len({(one.mode, one.mx) for one in self.plan.published})
        if at_site > count * self.plan.connections_per_site:
            self.world.fault(f"invariant 4: {at_site} connections to {site}")
        if sum(open_calls.values()) > self.plan.connections_max:
            self.world.fault(f"invariant 4: {sum(open_calls.values())} connections in all")

    # -- the story

    async def act(self) -> None:
        plan, world = self.plan, self.world
        senders = [asyncio.create_task(self.senders.send(letter)) for letter in plan.letters]
        troubles = asyncio.create_task(self._troubles())
        for number, life in enumerate(plan.lives):
            await self._live(f"life {number}", life, start=plan.starts[number])
        self.ledger.calm_s = max([world.time(), *(one.at_s for one in plan.troubles)])
        for _ in range(_STARTS_MAX):
            last = LifePlan(down_s=20.0)
            if await self._live("the last life", last, start=plan.starts[-1], senders=senders):
                break
        else:
            world.fault(f"it could not start {_STARTS_MAX} times in a row")
        for task in (troubles, *self._waiting):
            task.cancel()
        for task in senders:
            if not task.done():
                world.fault(f"still going on at the end: {task}")
            elif task.exception():
                world.fault(f"{task.exception()!r}")
        await self._look_back()

    async def _live(
        self,
        name: str,
        plan: LifePlan,
        *,
        start: Start,
        senders: list[asyncio.Task[None]] | None = None,
    ) -> bool:
        """Return whether it came to its end by a stop."""
        world = self.world
        if self._power_lost and self.disk.failing_since_s is not None:
            self.ledger.doubtful.append((self.disk.failing_since_s, world.time()))
        home = (
            self.disk.home if not world.lives else self.disk.next_home(power_lost=self._power_lost)
        )
        self.last_home = home
        life = world.new_life(
            name,
            dies_at_step=plan.steps,
            dies_at_write=plan.writes,
            dies_at_commit=plan.commits,
            steps_after_sync=plan.steps_after_sync,
        )
        life.lasts = senders is not None
        self.ledger.starts_s.append(world.time())
        self.ledger.begins_anew()
        self._was_power_lost = self._power_lost
        if self._power_lost:
            world.reached["power: lost"] += 1
        life.on_death = self.ledger.died
        self._power_lost = plan.power
        self.disk.owner, self.disk.forgets = life, plan.power
        began_s = world.clocks.steady_s()
        self._set_clocks(start)
        living = world.create_task(self._begin(life, home), context=life.context)
        died = world.create_task(life.died.wait())
        await asyncio.wait({living, died}, return_when=asyncio.FIRST_COMPLETED)
        if not life.dead and isinstance(living.exception(), SpoolError | OSError):
            world.note("no start:", living.exception())
            if isinstance(living.exception(), SpoolDamagedError):
                world.fault(f"invariant 1: a whole spool looks damaged: {living.exception()}")
            world.kill(life)
        stopped = not life.dead
        if stopped:
            life.doing[0] = "working"
            self.ledger.looks_idle(works=not self.disk.full)
            living.result()
            ghosts = world.create_task(self._haunt(life))
            if senders is None:
                wait_s = plan.stops_after_s or self.plan.ends_s / 4
                await asyncio.wait({died}, timeout=wait_s)
            else:
                await self._until_empty(senders)
            ghosts.cancel()
        if not life.dead:
            assert self.node is not None
            self.disk.sync_fails = 0
            life.doing[0] = "stopping"
            self.ledger.looks_idle(works=False)
            if plan.steps_of_stop:
                life.dies_at_step = life.steps + plan.steps_of_stop
            stopping = world.create_task(self.node.stop(), context=life.context)
            await asyncio.wait({stopping, died}, return_when=asyncio.FIRST_COMPLETED)
            if not life.dead:
                stopping.result()
                # A stop waits for a second, not for a disk that takes three for a commit.
                if life.tasks_open and self.plan.commit_s < 1:
                    left = [one for one in life.tasks if not one.done()]
                    world.fault(f"tasks are left behind a stop: {left}")
                self.ledger.died()
                world.kill(life)
        died.cancel()
        self.disk.owner = None
        if self.node is not None and self.node.life is life:
            self.node.close()
        if senders is None or not stopped:
            await asyncio.sleep(plan.down_s)
            now_s = world.clocks.steady_s()
            self.ledger.outages.append((min(began_s, now_s - plan.down_s), now_s))
        return stopped

    _power_lost = _was_power_lost = False

    def _set_clocks(self, start: Start) -> None:
        clocks = self.world.clocks
        if start.boots or self._was_power_lost:
            clocks.boot()
        clocks.wrong_us = int(start.wrong_s * 1e6)
        self.world.reached["clock: wrong"] += clocks.wrong_us != 0

    async def _begin(self, life: Life, home: Path) -> None:
        before_s = self.world.clocks.steady_s()
        self.node = Node(self.around, life, home)
        with self.disk.unnoticed():
            tripwires.lay(home / "spool.sqlite")
            is_known = anchored_boot(home) == self.world.clocks.boot_id
        if not is_known:  # nobody can say what time it is: it is what the relay makes of it
            clocks = self.world.clocks
            clocks.offset_us = self.node.clock.queue_us() - clocks.passed_us()
            self.ledger.resumed(before_s)
        self.senders.pickup_path = self.node.pickup_path
        await self.node.start()

    async def _until_empty(self, senders: list[asyncio.Task[None]]) -> None:
        assert self.node is not None
        ends_s = self.plan.ends_s
        if self.plan.may_doubt:  # a gap that is longer than all before begins a doubt of its own
            ends_s = max(ends_s, self.world.time() + DOUBT_US / 1e6 + 3600)
        while self.world.time() < ends_s:
            await asyncio.sleep(_LOOK_S)
            if self.disk.full or not all(task.done() for task in senders):
                continue
            if not (await self.node.spool.queue_admin.list(Selector(all=True), limit=1)):
                return

    async def _haunt(self, life: Life) -> None:
        """A process that was thought dead records what it had: nothing may come of it."""
        rng = self.world.rng
        for claim in self.ledger.ghosts[:]:
            await asyncio.sleep(rng.choice((0.0, 1.0, 100.0)) * rng.random())
            if rng.random() < 0.5 and self.node is not None:
                work = invariants.haunt(self.node, claim, self.world)
                await self.world.create_task(work, context=life.context)

    async def _troubles(self) -> None:
        for trouble in self.plan.troubles:
            await asyncio.sleep(max(0.0, trouble.at_s - self.world.time()))
            self.world.note("trouble", trouble.kind)
            match trouble.kind:
                case "full":
                    began_s = self.world.clocks.steady_s()
                    self.disk.full = True
                    self.ledger.looks_idle(works=False)
                    await asyncio.sleep(trouble.amount)
                    self.disk.full, self.disk.is_just_given = False, False
                    self.disk.spare_bytes = 0
                    self.ledger.looks_idle(works=self._is_working)
                    self.ledger.outages.append((began_s, self.world.clocks.steady_s()))
                case "sync":
                    self.disk.sync_fails += 1
                case "jump":
                    self.world.clocks.jumped_us += int(trouble.amount * 1e6)
                    self.world.reached["clock: jumped"] += 1
                case "unreadable":
                    self.disk.unreadable = True
                    await asyncio.sleep(trouble.amount)
                    self.disk.unreadable = False
                case "operator":
                    await self._as_operator(operators.operate)
                case "held":
                    await self._as_operator(operators.decide_on_held)
                case "cancel in flight":
                    self._patient(self._cancel_in_flight())
                case "timed hold":
                    self._patient(self._hold_for_a_time(trouble.amount))
                case "pause":
                    self._patient(self._pause(trouble.amount))

    @property
    def _is_working(self) -> bool:
        node = self.node
        return node is not None and not node.life.dead and node.life.doing[0] == "working"

    def _patient(self, work: Coroutine[None, None, None]) -> None:
        """Have an operator wait for a moment, while other things happen."""
        self._waiting.append(self.world.create_task(work))

    async def _cancel_in_flight(self) -> None:
        for _ in range(_LOOKS_MAX):
            if self._is_working and operators.ids_in_flight(self.node, self.ledger):
                await self._as_operator(operators.cancel_in_flight)
                return
            await asyncio.sleep(self.world.rng.random() * 10)

    async def _hold_for_a_time(self, hold_s: float) -> None:
        timed = operators.TimedHold(hold_s)
        for _ in range(_LOOKS_MAX):
            await self._as_operator(timed.hold)
            if timed.is_done:
                return
            await asyncio.sleep(self.world.rng.random() * 10)

    async def _pause(self, hold_s: float) -> None:
        pause = operators.Pause()
        await self._as_operator(pause.hold)
        await asyncio.sleep(hold_s)
        await self._as_operator(pause.release)

    async def _as_operator(self, work: operators.Work) -> None:
        """Do it in the process that is there, if one is; its death ends it."""
        node = self.node
        if node is None or node.life.dead or node.life.tasks_open == 0:
            return
        operating = self.world.create_task(
            work(node, self.ledger, self.world), context=node.life.context
        )
        died = self.world.create_task(node.life.died.wait())
        await asyncio.wait({operating, died}, return_when=asyncio.FIRST_COMPLETED)
        died.cancel()

    # -- the judgement

    async def _look_back(self) -> None:
        """Read what the last process left."""
        with self.disk.unnoticed():
            left = read_rows(self.last_home)
        self.rows = replace(left, messages={**self.ledger.archive, **left.messages})
        for one in self.ledger.tries:
            word = {2: "250", 4: "4yz", 5: "5yz"}.get(one.code // 100, "none")
            self.world.reached[f"answer: {word}"] += 1

    def judge(self) -> list[str]:
        evidence = invariants.Evidence(self.plan, self.ledger, self.rows, self.sites)
        return invariants.violations(evidence)

    def end(self) -> None:
        self.disk.owner = None
        if self.node is not None:
            self.node.close()
        self.world.bury()
        self.disk.unregister()


def claims_max(plan: Scenario) -> int:
    """How many claims may be in memory: the window, and what was let in while it had room."""
    entries = max(len(letter.recipients) for letter in plan.letters)
    return plan.window_claims + (plan.sessions_max + 20) * (entries + 2)
