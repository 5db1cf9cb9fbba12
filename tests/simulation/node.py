"""One process of the relay: the rooms of steps 5 to 7, wired as relay.operation.app wires them.

Real rooms; only name servers, mailboxes and the network are the world's. As relay.operation.app's daemon.
"""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apsw

from relay.base.accounts.account import Account, Expansion
from relay.base.accounts.aliases import AliasTable, Forwarding
from relay.base.clock import Ids
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.srs import Srs
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Route, RouteAuth, SmtpListener, SuppressionSettings
from relay.base.socket_address import Address
from relay.delivery.active_queue import ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.reports.bounces import Reporter
from relay.delivery.retry import DeferralCause, RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site import Site
from relay.delivery.site_limits import SiteOptions, parse_rate
from relay.delivery.sites import Sites
from relay.delivery.smtp.connect import connect
from relay.delivery.smtp.connection import Timeouts
from relay.store.spool.queue_commands import CommandReport, QueueCommand
from relay.store.spool.shared.accepted import CapturedMail
from relay.store.spool.shared.queue_admin import QueueAdmin
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.sqlite.write_ahead_log import LastCommit, WriteAheadLog
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.listener_role import PICKUP
from relay.transport.ingress.session_owner import IngressDependencies
from relay.transport.ingress.smtp_server import SmtpServer
from relay.transport.milter.filters import MilterSet
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.rule_book import RuleBook
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.sts_policies import StsPolicies
from relay.transport.signing.keys import KeyRing
from relay.transport.signing.signer import Signer
from tests.simulation import tripwires
from tests.simulation.clock import WorldClock
from tests.simulation.disk import POLICIES
from tests.simulation.ledger import Ledger
from tests.simulation.life import Death, Life
from tests.simulation.maintenance import SimulatedMaintenance, SimulatedReserveFile
from tests.simulation.scenario import (
    ALIASES,
    BOXES,
    BOXES_HOP,
    GATED,
    GATED_HOP,
    HOME,
    PEOPLE,
    ROUTED,
    SRS_KEY,
    Scenario,
)
from tests.simulation.sites import LOGIN
from tests.simulation.witness import WatchedContents, Witness
from tests.simulation.world import World
from tests.support.limits import usage_of

RELAY_IP = "192.0.2.1"
SMTP_PORT = 25
TIMEOUTS = Timeouts(connect_s=30, command_s=60, data_s=60, block_s=60, dot_s=120, quit_s=2)


class People:
    """The accounts."""

    def by_token(self, token: str, *, client: str = "") -> Account | None:
        return None

    def by_address(self, address: str) -> Account | None:
        local_part, _, domain = address.lower().partition("@")
        return Account(f"{local_part}@{HOME}") if domain == HOME and local_part in PEOPLE else None

    def __init__(self) -> None:
        self._aliases = AliasTable(
            (Forwarding(f"{name}@{HOME}", to, keeps_copy=False, place=()), [f"{name}@{HOME}"])
            for name, to in ALIASES.items()
        )

    def expand(self, address: str) -> Expansion | None:
        return self._aliases.expand(address)

    def of_login(self, login: str) -> Account | None:
        return self.by_address(login)

    async def by_smtp_login(self, user: str, password: str, *, client: str) -> Account | None:
        return None


class Points(CrashPoints):
    """Every named point is a moment at which the disk may see its process die."""

    def __init__(self, disk: Any) -> None:
        super().__init__()
        self._disk = disk

    def reached(self, point: CrashPoint) -> None:
        self._disk.reached()


class Attendant:
    """The dispatcher as the desk knows it; the ledger hears of what is withdrawn."""

    def __init__(self, scheduler: DeliveryScheduler, ledger: Ledger) -> None:
        self._scheduler = scheduler
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def withdraw(self, keys: Any) -> Any:
        taken = self._scheduler.withdraw(keys)
        for key in taken:
            self._ledger.withdrawn(key)
        return taken


class _RerouterDesk:
    """The queue's administration as the rerouter knows it; the ledger hears of what it reroutes."""

    def __init__(self, admin: QueueAdmin, ledger: Ledger, world: World) -> None:
        self._admin, self._ledger, self._world = admin, ledger, world
        self.note_deleted = admin.note_deleted

    async def execute(self, command: QueueCommand) -> CommandReport:
        messages = [one.rpartition("-")[0] for one in command.selector.ids]
        self._ledger.waits.routed_anew(messages)
        report = await self._admin.execute(command)
        self._world.reached["routed anew: its route has changed"] += len(messages)
        return report


class _SlowDisk:
    """The loop as the writer knows it, where what it writes takes its time."""

    def __init__(self, world: World, commit_s: float) -> None:
        self._world = world
        self._commit_s = commit_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def call_soon(self, *work: Any) -> Any:
        return self._world.call_later(self._commit_s * self._world.rng.random(), *work)


@dataclass(frozen=True)
class VerifierDependencies:
    """What outlasts a process."""

    world: World
    scenario: Scenario
    ledger: Ledger
    resolver: Any
    store: Any
    rules: RuleSet
    disk: Any


class Node:
    """The rooms; start() and stop() once each, or neither to its end."""

    def __init__(self, around: VerifierDependencies, life: Life, home: Path) -> None:
        scenario, world = around.scenario, around.world
        self.life = life
        self._world, self._commit_s = world, scenario.commit_s
        self._disk, self._path = around.disk, home / "spool.sqlite"
        self.clock = WorldClock(world)
        self.metrics = Metrics()
        ids = Ids(self.clock, random_bytes=world.rng.randbytes)
        accounts = People()
        routes = (
            Route("captured.test", "capture"),
            Route("refused.test", "reject:5.7.1 no"),
            Route(ROUTED, "mx", max_rate=scenario.route_rate),
            Route(BOXES, BOXES_HOP),
            Route(GATED, GATED_HOP, auth=_login(home)),
        )
        if len(world.lives) % 2 == 0:  # in each second life, it is renamed below another one
            *others, gated = routes
            above = Route("above.test", GATED_HOP, name="above")
            routes = (above, *others, replace(gated, name="renamed"))
        held = (Route(domain, "hold", name=f"{domain} is held") for domain in scenario.holds)
        routes = (*held, *routes)
        self.table = RouteTable(routes, [HOME], accounts)
        self.policies = StsPolicies(
            home / POLICIES,
            self.clock,
            resolver=around.resolver,
            texts=around.resolver.texts,
            fetch=around.resolver.policy_file,
            count=lambda result: world.reached.update([f"policy: {result}"]),
        )
        self.spool = SqliteSpool(
            self._path,
            clock=self.clock,
            crash=Points(around.disk),
            metrics=self.metrics,
            submission_keep_s=scenario.submission_keep_s,
            captured=CapturedMail(int(scenario.captured_keep_s * 1_000_000)),
            inline=True,
            reserve_file=SimulatedReserveFile(home / "ballast", around.disk),
        )
        self.spool.suppression.settings = SuppressionSettings(1) if scenario.suppresses else None
        self.witness = Witness(self.spool, around.ledger, life, around.disk)
        self.maintenance = SimulatedMaintenance(world, life, scenario, spool=self.spool)
        reporter = Reporter(
            hostname="relay.test",
            clock=self.clock,
            ids=ids,
            destination_of=self.table.destination_of,
            expire_after_s=scenario.expire_after_s,
            metrics=self.metrics,
            expand=self.table.expand,
        )
        self.scheduler = self._scheduler(around, reporter)
        self.spool.queue_admin.delivery = Attendant(self.scheduler, around.ledger)
        acceptance = Acceptance(
            hostname="relay.test",
            router=self.table,
            policy=lambda: RuleBook(around.rules),
            reporter=reporter,
            spool=self.witness,
            accounts=accounts,
            clock=self.clock,
            ids=ids,
            metrics=self.metrics,
            on_accepted=self.scheduler.offer,
            on_waiting=self.scheduler.accepted_unclaimed,
            on_first_end=self.scheduler.due_at,
            level_of=self.scheduler.active_queue.level_of,
            has_room=self.scheduler.has_room_for,
            expire_after_s=scenario.expire_after_s,
            delay_warning_after_s=scenario.warn_after_s,
            srs=Srs(SRS_KEY),
            signer=Signer(KeyRing, clock=self.clock, metrics=self.metrics),
            milters=MilterSet((), hostname=""),
            usage=usage_of(self.clock),
        )
        self.acceptance = acceptance
        neighbours = IngressDependencies(
            hostname="relay.test",
            acceptance=acceptance,
            accounts=accounts,
            check_token=accounts.by_smtp_login,
            quota=around.store,
            crash=Points(around.disk),
            pressure=self.maintenance.pressure,
        )
        listener = SmtpListener(
            listen=Address(RELAY_IP, SMTP_PORT),
            trusted_networks=("127.0.0.0/8",),
            max_sessions=scenario.sessions_max,
            timeout=300.0,
        )
        pickup = SmtpListener(listen=Address(path=str(home / "submit.sock")), max_sessions=20)
        self.pickup_path = pickup.listen.path
        self.servers = [
            SmtpServer(pickup, neighbours, role=PICKUP),
            SmtpServer(listener, neighbours),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    def _scheduler(self, around: VerifierDependencies, reporter: Reporter) -> DeliveryScheduler:
        scenario = around.scenario
        contents = self.witness.contents = WatchedContents(self.witness, around.ledger)
        schedule = RetrySchedule(
            scenario.retry_s, around.world.rng.random, scenario.indeterminate_max
        )
        recorder = AttemptRecorder(
            self.witness,
            contents,
            reporter,
            clock=self.clock,
            metrics=self.metrics,
            schedule=schedule,
            fallback_for=self.table.fallback_for,
        )
        options = SiteOptions(
            connections_max=scenario.connections_per_site,
            rate=parse_rate(scenario.rate),
            unreachable_s=min(30.0, schedule.step_s(DeferralCause()) / 2),
            waited_s=schedule.waited_s,
        )
        sites = Sites(
            recorder,
            resolve=(self.policies if scenario.published else around.resolver).resolve,
            table=self.table,
            options=options,
            clock=self.clock,
            slots=ConnectionSlots(scenario.connections_max, close_idle=Site.close_idle),
            connect=around.ledger.progress.watched_connect(
                partial(
                    connect, ehlo_name="relay.test", timeouts=TIMEOUTS, real_s=self.clock.real_s
                )
            ),
        )
        return DeliveryScheduler(
            recorder,
            sites=sites,
            local=LocalDelivery(recorder, around.store, self.table),
            table=self.table,
            clock=self.clock,
            active_queue=ActiveQueue(claims_max=scenario.window_claims),
            queue_admin=_RerouterDesk(self.spool.queue_admin, around.ledger, around.world),
        )

    async def start(self) -> None:
        await self.spool.start()
        with self._disk.unnoticed():  # of the first life: no file was there before
            tripwires.lay(self._path)
        self.policies.open()
        await self.maintenance.measure()
        if self._commit_s:
            self.spool._writer._home_loop = _SlowDisk(self._world, self._commit_s)
        self._tasks.append(asyncio.create_task(self.scheduler.run()))
        self._tasks.append(asyncio.create_task(self.maintenance.run()))
        for task in self._tasks:
            task.add_done_callback(self._ended)
        for server in self.servers:
            await server.start()

    async def stop(self, grace_s: float = 10.0) -> None:
        for server in self.servers:
            server.stop_listening()
        await asyncio.gather(
            *(server.drain(grace_s) for server in self.servers), self.scheduler.drain(grace_s)
        )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.policies.close()
        self.acceptance.close()
        await self.spool.stop()

    def close(self) -> None:
        """Do what the operating system does for a dead process: its files stay as they are."""
        with (
            contextlib.suppress(Exception, Death),
            patch.object(WriteAheadLog, "empty", _left_alone),
            patch.object(LastCommit, "forget", _left_alone),
        ):
            self.acceptance.close()
            self.spool._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self.spool.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and not self.life.dead:
            self._world.fault(f"a task for good has ended: {task.exception()!r}")


def _login(home: Path) -> RouteAuth:
    user, password = LOGIN
    file = home / "password"
    file.write_text(password)
    return RouteAuth(user, file)


def _left_alone(*_args: object) -> None:
    """Do nothing, in place of what a process does that stops."""
