"""Build every room from the settings and pass each room its dependencies.

compose() starts and opens nothing that listens. It raises AlreadyRunningError, SpoolError,
OSError, and ValueError for a route, a network or a mail root that cannot be used.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp

from relay import api, graph, pages, spool
from relay.accounts.access_tokens import AccessTokens, token_key
from relay.accounts.account import DEAD_LETTER, AccountDirectory, Role
from relay.api.dependencies import Principal
from relay.app.configuration import (
    ListenerCertificates,
    parse_next_hop,
    route_table,
    server_certificates,
)
from relay.app.daemon import Daemon, Readiness
from relay.app.pressure_monitor import PressureMonitor, bounds_of, open_files_limit
from relay.app.settling import Settling
from relay.app.state_dir import OwnerLock, lock_file
from relay.clock import Clock, Ids, SystemClock
from relay.crashpoints import CrashPoints
from relay.delivery.active_queue import ACTIVE_QUEUE_BYTES, ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_cache import ContentCache
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.retry import DeferralCause, RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site_limits import SiteOptions, parse_rate
from relay.http.authentication import HttpAuthentication
from relay.http.base_path import BasePath
from relay.http.browsers import BrowserGuard
from relay.http.connection_limits import CONNECTIONS_MAX, ConnectionLimits
from relay.http.gateway import Gateway, PathRouter
from relay.http.http_server import HttpServer
from relay.http.protocol import AllowedHosts
from relay.http.sign_in import SIGN_IN_PATHS, create_sign_in_app
from relay.ingress.acceptance import Acceptance
from relay.ingress.smtp_server import IngressDependencies, SmtpServer
from relay.journeys.changes import ChangeNotifier
from relay.journeys.event_feed import EventFeed
from relay.journeys.journey import Journeys
from relay.journeys.log_reader import LogReader
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox import FileStore
from relay.mailbox.mail_root import STORE, SUBMISSIONS, MailRoot
from relay.mailbox.types import QuotaLimits
from relay.message.nexthop import NextHop
from relay.observe.history import MetricsHistory
from relay.observe.metrics import Metrics
from relay.pickup.dispatch import Pickup
from relay.policy.engine import RuleSet
from relay.pressure import Pressure, PressureLevel, PressureReason
from relay.reports.bounces import Reporter
from relay.routing.resolver import LoopbackResolver, Resolver
from relay.settings.tree import Address, Settings, SmtpListener
from relay.smtp.connect import connect
from relay.smtp.connection import Timeouts
from relay.spool.queue_commands import RouteLookup
from relay.spool.types import Claim, PriorityLevel

_DOWN_S_MAX = 30.0
_FILES_PER_CONNECTION = 4  # HTTP may use a quarter: SMTP, databases and messages need the rest
_PICKUP_SESSIONS_MAX = 64
_SLOW_DIVISOR = 4  # divides pickup's concurrency at pressure level SLOW
_PICKUP_MESSAGE_BYTES_MAX = 1024**3  # the Graph API has its own limit; base64 adds a third


@dataclass(frozen=True)
class RelayDependencies:
    """What compose() needs in addition to the settings.

    `rules` gives those in force. `is_simulated` returns whether mail for an address goes to a host
    of a simulated internet; with it nothing leaves loopback, except to `release_to`. With `hosts`,
    the front door answers only requests for these, for loopback names and for http.public_url.
    Without `certificates`, those that the settings name are loaded. `development` are the actions
    that only the API of a development relay has; with it, captured mail is put into mailboxes.
    With `are_pages_open`, everyone who reaches the pages has the role operate, without a login.
    `converts_in_threads` saves the child processes of step 3, for a test's own messages.
    `before_graph` puts an application in front of the Graph API.
    """

    accounts: AccountDirectory
    rules: Callable[[], RuleSet]
    crash_at: str = ""
    is_simulated: Callable[[str], bool] | None = None
    release_to: NextHop | None = None
    log_role: str = "relay"
    hosts: AllowedHosts | None = None
    certificates: ListenerCertificates | None = None
    development: api.DevelopmentControls | None = None
    converts_in_threads: bool = False
    are_pages_open: bool = False
    before_graph: Callable[[Gateway, HttpAuthentication], ASGIApp] | None = None


def compose(
    settings: Settings, sources: RelayDependencies, *, clock: Clock | None = None
) -> Daemon:
    """Return a daemon that can be started. It owns its state_dir and mail store from now on."""
    with ExitStack() as undo:
        lock = OwnerLock(settings.run_dir)
        lock.take()
        undo.callback(lock.give_back)
        clock = clock or SystemClock()
        daemon = _Composer(settings, sources, clock=clock, lock=lock, undo=undo).daemon()
        undo.pop_all()
        return daemon


class _Composer:
    def __init__(
        self,
        settings: Settings,
        sources: RelayDependencies,
        *,
        clock: Clock,
        lock: OwnerLock,
        undo: ExitStack,
    ) -> None:
        """`undo` closes what was opened if a later step fails."""
        self.settings = settings
        self.sources = sources
        self.clock = clock
        self.lock = lock
        self.ids = Ids(clock)
        self.rng = random.Random()  # noqa: S311 - spreads load, not for security
        self.crash = CrashPoints(sources.crash_at)
        self.certificates = sources.certificates or server_certificates(settings)
        self.metrics = Metrics()
        self.history = MetricsHistory(self.metrics, clock)
        self.readiness = Readiness()
        self.changes = ChangeNotifier()
        self.pressure = Pressure()
        self.root = MailRoot(settings.mailboxes.root, take_lock=lock_file)
        undo.callback(self.root.close)
        log_directory = self.root.path / SUBMISSIONS / "log"
        self.table = route_table(settings, sources.accounts, is_simulated=sources.is_simulated)
        self.store_log = SubmissionLog(
            log_directory, role=sources.log_role, clock=clock,
            on_append=self.changes.notify,
        )  # fmt: skip
        self.store = FileStore(
            self.root, clock=clock, ids=self.ids, crash=self.crash, log=self.store_log,
            hostname=settings.hostname, limits_of=self._limits_of,
            dead_letter=settings.state_dir / DEAD_LETTER,
        )  # fmt: skip
        self.spool = spool.open(
            settings, clock=clock, crash=self.crash, metrics=self.metrics,
            delivers_captured=sources.development is not None,
        )  # fmt: skip
        undo.callback(self.spool.close)
        self._open_root()
        self.live_views = pages.LiveViews(self.changes, clock)
        feed = EventFeed(self.spool, LogReader(log_directory))
        self.events = api.EventStreams(feed, changes=self.changes, clock=clock)
        self.reporter = Reporter(
            hostname=settings.hostname, clock=clock, ids=self.ids,
            next_hop_for=self.table.next_hop_for,
            expire_after_s=settings.delivery.expire_after, metrics=self.metrics,
        )  # fmt: skip
        self.resolver = self._resolver()
        self.scheduler = self._scheduler()
        self.tokens = AccessTokens(token_key(settings.state_dir), clock)
        self.authentication = HttpAuthentication(
            sources.accounts, self.tokens, realm=settings.hostname,
            anonymous=settings.http.anonymous,
        )  # fmt: skip
        self.spool.queue_admin.attend(self.scheduler)

    def _open_root(self) -> None:
        """Open the mail root that the spool knows; a development relay takes any."""
        known = self.spool.mail_root(STORE)
        if self.sources.development is not None:
            self.root.open("", may_take=True)
        else:
            self.root.open(known.id, may_take=not known.was_used)

    def daemon(self) -> Daemon:
        acceptance = self._acceptance()
        neighbours = IngressDependencies(
            hostname=self.settings.hostname, acceptance=acceptance, router=self.table,
            accounts=self.sources.accounts, quota=self.store, crash=self.crash,
            pressure=self.pressure,
        )  # fmt: skip
        pickup, pickup_server = self._pickup(), self._pickup_server(neighbours)
        smtp_servers, front_door = self._smtp_servers(neighbours), self._front_door()
        journeys = Journeys(self.spool, self.store_log, clock=self.clock)
        settling = Settling(
            self.scheduler, pickup, (pickup_server, *smtp_servers), front_door, self.changes, []
        )
        return Daemon(
            settings=self.settings,
            lock=self.lock,
            clock=self.clock,
            metrics=self.metrics,
            history=self.history,
            spool=self.spool,
            root=self.root,
            store=self.store,
            store_log=self.store_log,
            scheduler=self.scheduler,
            resolver=self.resolver,
            acceptance=acceptance,
            pickup_server=pickup_server,
            smtp_servers=smtp_servers,
            pickup=pickup,
            http_servers=self._http_servers(journeys, front_door),
            journeys=journeys,
            changes=self.changes,
            live_views=self.live_views,
            events=self.events,
            readiness=self.readiness,
            pressure=self._pressure_monitor(pickup),
            settling=settling,
        )

    def _pressure_monitor(self, pickup: Pickup) -> PressureMonitor:
        notes = self.settings.pickup.max_concurrent
        allowed = {
            PressureLevel.NORMAL: notes,
            PressureLevel.SLOW: notes // _SLOW_DIVISOR,
            PressureLevel.REFUSE: 1,
        }
        monitor = PressureMonitor(
            self.pressure, self.spool, bounds=bounds_of(self.settings),
            mailboxes=self.settings.mailboxes.root, metrics=self.metrics, clock=self.clock,
            on_change=lambda state: pickup.limit_concurrency(allowed[state.queue]),
        )  # fmt: skip
        monitor.on_measured = self.history.keep
        return monitor

    def _limits_of(self, account: str) -> QuotaLimits:
        found = self.sources.accounts.by_address(account)
        return QuotaLimits(found.quota, found.quota_messages) if found else QuotaLimits()

    def _resolver(self) -> Resolver | LoopbackResolver:
        resolver = self._resolver_with(self.settings.dns.nameservers)
        if self.sources.is_simulated is None:
            return resolver
        release_to = self.sources.release_to
        elsewhere = self._resolver_with(()) if release_to is not None else None
        return LoopbackResolver(resolver, release_to=release_to, elsewhere=elsewhere)

    def _resolver_with(self, nameservers: Sequence[Address]) -> Resolver:
        """Return a resolver; without name servers it has the system's."""
        return Resolver(
            nameservers,
            timeout_s=self.settings.dns.timeout,
            clock=self.clock,
            rng=self.rng,
            hostname=self.settings.hostname,
            own_addresses=[listener.listen for listener in self.settings.smtp],
            port=self.settings.delivery.port,
        )

    def _scheduler(self) -> DeliveryScheduler:
        delivery = self.settings.delivery
        contents = ContentCache(self.spool, budget_bytes=4 * ACTIVE_QUEUE_BYTES)
        by_class = {name: steps for name, steps in asdict(delivery.retry_by_class).items() if steps}
        schedule = RetrySchedule(delivery.retry, self.rng.random, by_class)
        recorder = AttemptRecorder(
            self.spool, contents, self.reporter, clock=self.clock, metrics=self.metrics,
            schedule=schedule,
        )  # fmt: skip
        timeouts = Timeouts(
            connect_s=delivery.connect_timeout,
            command_s=delivery.command_timeout,
            data_s=min(delivery.command_timeout, Timeouts().data_s),
        )
        options = SiteOptions(
            connections_max=delivery.max_connections_per_next_hop,
            rate=parse_rate(delivery.max_rate_per_next_hop),
            unreachable_s=min(_DOWN_S_MAX, schedule.step_s(DeferralCause()) / 2),
            waited_s=schedule.waited_s,
        )
        local = LocalDelivery(
            self.store, self.table, delivers_captured=self.sources.development is not None
        )
        return DeliveryScheduler(
            self.spool, recorder, contents, local=local,
            resolver=self.resolver, table=self.table, options=options, clock=self.clock,
            slots=ConnectionSlots(delivery.max_connections, self.metrics.connections),
            active_queue=ActiveQueue(),
            connect=partial(connect, ehlo_name=self.settings.hostname, timeouts=timeouts),
            on_change=lambda _queue_id: self.changes.notify(),
        )  # fmt: skip

    def _acceptance(self) -> Acceptance:
        return Acceptance(
            hostname=self.settings.hostname, router=self.table, policy=self.sources.rules,
            reporter=self.reporter, spool=self.spool, accounts=self.sources.accounts,
            clock=self.clock, ids=self.ids, metrics=self.metrics,
            on_accepted=self._accepted, on_waiting=self.scheduler.accepted_unclaimed,
            level_of=self.scheduler.level_of, has_room=self._takes_claim,
            expire_after_s=self.settings.delivery.expire_after,
            delay_warning_after_s=self.settings.delivery.delay_warning_after,
        )  # fmt: skip

    def _takes_claim(self, next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Whether delivery claims a message, with its content, as soon as it is accepted."""
        if self.pressure.state.has(PressureReason.MEMORY):
            return False
        return self.scheduler.has_room_for(next_hop, sender, level)

    def _accepted(self, claims: Sequence[Claim]) -> None:
        self.scheduler.offer(claims)
        self.changes.notify()

    def _smtp_servers(self, neighbours: IngressDependencies) -> list[SmtpServer]:
        return [
            SmtpServer(listener, neighbours, certificate=certificate)
            for listener, certificate in zip(
                self.settings.smtp, self.certificates.smtp, strict=True
            )
        ]

    def _pickup_server(self, neighbours: IngressDependencies) -> SmtpServer:
        listener = SmtpListener(
            listen=Address(path=str(self.settings.pickup_socket)),
            max_sessions=max(_PICKUP_SESSIONS_MAX, 2 * self.settings.pickup.max_concurrent),
            max_recipients=100_000,
            max_message_size=_PICKUP_MESSAGE_BYTES_MAX,
        )
        return SmtpServer(listener, neighbours, pickup=True)

    def _pickup(self) -> Pickup:
        return Pickup(
            self.store, run_dir=self.settings.run_dir,
            hostname=self.settings.hostname, reports=self.reporter,
            postmaster=self.table.mailbox_for("postmaster") or DEAD_LETTER, log=self.store_log,
            clock=self.clock, crash=self.crash, metrics=self.metrics,
            give_up_after_s=self.settings.pickup.give_up_after,
            max_concurrent=self.settings.pickup.max_concurrent, rng=self.rng,
            converts_in_threads=self.sources.converts_in_threads,
        )  # fmt: skip

    async def _prune(self, older_than_s: float | None, dry_run: bool) -> Mapping[str, Any]:
        age_s = self.settings.spool.keep if older_than_s is None else older_than_s
        return await self.spool.maintenance.prune_many(age_s, dry_run=dry_run)

    def _front_door(self) -> Gateway:
        """The Graph API."""
        return graph.create_app(
            self.store, self.authentication, clock=self.clock, hostname=self.settings.hostname,
            http=self.settings.http, crash=self.crash, ready=self.readiness,
            pressure=self.pressure,
        )  # fmt: skip

    def _http_servers(self, journeys: Journeys, front_door: Gateway) -> list[HttpServer]:
        """The Graph API, the control socket, and the metrics listener if configured."""
        http = self.settings.http
        development = self.sources.development
        means = api.ApiDependencies(
            journeys=journeys, queue_admin=self.spool.queue_admin, stats=self.spool.stats,
            way_to=self._way_to, changes=self.changes,
            metrics=self.metrics, history=self.history, clock=self.clock,
            ready=self._unready, impaired=self._impaired, prune=self._prune,
            pressure=self.pressure, development=self.sources.development, events=self.events,
            unlock=self.sources.accounts.unlock,
            sources=api.MessageSources(
                journeys, self.spool, self.store, mailbox_for=self.table.mailbox_for,
                received=development.received_content if development else None,
            ),
        )  # fmt: skip
        sign_in = create_sign_in_app(
            self.sources.accounts, self.tokens, clock=self.clock,
            hostname=self.settings.hostname, public_url=http.public_url,
        )  # fmt: skip
        relay_v1 = api.create_app(means, self.authentication)
        before_graph = self.sources.before_graph
        graph_app = before_graph(front_door, self.authentication) if before_graph else front_door
        by_prefix: dict[str, ASGIApp] = dict.fromkeys(("v1.0", "beta"), graph_app)
        programs = PathRouter(
            by_prefix, by_rest=dict.fromkeys(SIGN_IN_PATHS, sign_in), otherwise=relay_v1
        )
        control = Address(path=str(self.settings.control_socket))
        limits = ConnectionLimits(
            connections=min(CONNECTIONS_MAX, open_files_limit() // _FILES_PER_CONNECTION),
            proxy_networks=http.proxy_networks,
        )
        guard = partial(
            BrowserGuard, clock=self.clock, own_origins=_origins(http.public_url),
            allows_loopback_pages=self.sources.hosts is not None,
        )  # fmt: skip
        servers = [
            HttpServer(
                self._below_base_path(self._with_pages(guard(programs), means, guard=guard)),
                http.listen,
                limits=limits,
                hosts=self._hosts(),
                certificate=self.certificates.http,
            ),
            HttpServer(api.create_control_app(means), [control]),
        ]
        if self.settings.observe.metrics is not None:
            metrics = self.settings.observe.metrics
            servers.append(HttpServer(guard(relay_v1), [metrics], limits=limits))
        return servers

    def _with_pages(
        self, programs: ASGIApp, means: api.ApiDependencies, *, guard: Callable[..., BrowserGuard]
    ) -> ASGIApp:
        """Return `programs` and the pages, which are on in a development relay, or by http.pages.

        CORS does not apply to pages, not even in a development relay.
        """
        if self.sources.development is None and not self.settings.http.pages:
            return programs
        app = pages.create_app(means, self._pages_access(), live_views=self.live_views)
        site = guard(app, allows_loopback_pages=False, may_be_linked=True)
        return PathRouter(
            dict.fromkeys(pages.PREFIXES, site),
            by_rest=dict.fromkeys(SIGN_IN_PATHS, programs), otherwise=programs,
        )  # fmt: skip

    def _below_base_path(self, app: ASGIApp) -> ASGIApp:
        path = urlsplit(self.settings.http.public_url).path
        return BasePath(app, path, clock=self.clock) if path else app

    def _pages_access(self) -> pages.Access:
        if self.sources.are_pages_open:
            return pages.Access(everyone=Principal(name="development", role=Role.OPERATE))
        settings, http = self.settings, self.settings.http
        logins = pages.Logins(
            self.sources.accounts, SystemClock(),  # an advanced clock would end all logins
            relay=f"{settings.hostname} {settings.state_dir}",
            public_url=http.public_url,
        )  # fmt: skip
        return pages.Access(logins=logins)

    def _unready(self) -> str:
        """Return the reason for a 503 of /readyz, "" if there is none."""
        reason = self.readiness() or self.spool.health()
        if not reason and (trouble := self.root.trouble):
            return f"the mail root {self.root.path} is missing: {trouble}"
        return reason

    def _impaired(self) -> str:
        """Return what does not work although /readyz is 200, "" if there is nothing."""
        fault = self.root.fault
        refusing = f"the mail store refuses all writes: {fault}" if fault else ""
        damaged = "damaged-keys" if self.store.keys.damage else ""
        return "; ".join(filter(None, (refusing, damaged)))

    def _way_to(self, text: str) -> RouteLookup:
        """Return the function from address to next hop of a reroute. Raises ValueError."""
        check = self.resolver.check if isinstance(self.resolver, LoopbackResolver) else None
        return parse_next_hop(text, lambda: self.table, check=check)

    def _hosts(self) -> AllowedHosts | None:
        hosts = self.sources.hosts
        if hosts is None:
            return None
        public_host = urlsplit(self.settings.http.public_url).hostname
        return replace(hosts, names=hosts.names | frozenset(filter(None, [public_host])))


def _origins(url: str) -> list[str]:
    """Return the origin of a URL, nothing for ""."""
    parts = urlsplit(url)
    return [f"{parts.scheme}://{parts.netloc}"] if url else []
