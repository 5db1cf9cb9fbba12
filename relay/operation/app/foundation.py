"""The objects that front door, transport and pages share: the stores, the routes, the clock and
others; the reload of the configuration, at SIGHUP or by `relay reload`.

open_foundation() opens the mail root and the spool, and starts nothing.
relay/base/settings/reloadable_keys.py decides which keys a reload applies, and `configuration` that
a faulty file gives nothing. The log, the answer, the metrics and the service manager get the
result of a reload.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from starlette.types import ASGIApp

from relay.base.accounts.account import DEAD_LETTER, Account, AccountDirectory
from relay.base.accounts.usage import UsageCounter
from relay.base.clock import Clock, Ids, rfc3339
from relay.base.crashpoints import CrashPoints
from relay.base.message.nexthop import NextHop
from relay.base.message.srs import Srs
from relay.base.observe.logs import get_logger
from relay.base.observe.metric_samples import MetricSamples
from relay.base.observe.metrics import Metrics
from relay.base.pauses import Paused, Pauses
from relay.base.phrases import counted
from relay.base.pressure import Pressure
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import Limits, Settings, SmtpListener
from relay.delivery.oauth.tokens import TokenHolder
from relay.delivery.provider_replies import ProviderReplies
from relay.delivery.reports.texts import ReportTexts
from relay.delivery.smtp.connect import Target
from relay.front_door import api
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.http.tunnels import TunnelHosts
from relay.operation.app.configuration import (
    ActiveConfiguration,
    Configuration,
    ListenerCertificates,
    RoutePlace,
    route_table,
    server_certificates,
    srs_of,
)
from relay.operation.app.state_dir import lock_file
from relay.store import spool
from relay.store.journeys.event_feed import ChangeNotifier, EventFeed
from relay.store.journeys.journey import Journeys
from relay.store.journeys.log_reader import LogReader
from relay.store.journeys.submission_log import SubmissionLog
from relay.store.mailbox.mail_root import SUBMISSIONS, MailRoot
from relay.store.mailbox.usage import QuotaLimits
from relay.store.spool.engine import SpoolEngine
from relay.submission.outbox.store import FileStore
from relay.transport.ingress.smtp_server import ListenerOptions
from relay.transport.milter.filters import MilterSet
from relay.transport.policy.rule_book import RuleBook
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.routing.resolver import is_elsewhere
from relay.transport.routing.route_table import Confinement, RouteTable
from relay.transport.signing.keys import KeyRing
from relay.transport.signing.signer import Signer

if TYPE_CHECKING:  # imports libraries that a relay without HTTP listeners does not need
    from relay.front_door.sign_in.access_tokens import AccessTokens
    from relay.front_door.sign_in.authentication import HttpAuthentication
    from relay.front_door.sign_in.token_endpoint import UserSignIn


_log = get_logger("app")
_FAULTS_LOGGED = 20
_FAULTS_SHOWN = 100


class ReloadResult(Struct, frozen=True):
    """The JSON of POST /reload. A fault in the rules of a tenant excludes only these rules."""

    reloaded: bool  # False: the previous configuration remains active
    faults: tuple[str, ...]  # the first faults; a last line has the number of the others
    needs_restart: tuple[dict[str, str], ...]  # the `key` of each setting that needs a restart
    rules: int  # the number of active rules
    new_certificates: int  # the number of listeners that have a new certificate
    lost: tuple[str, ...]  # accounts that have lost rights since the last complete reload


class Reloader:
    """Reloads the configuration, one reload at a time.

    Requests during a reload cause one more reload after it, because the running one may have read a
    file before it was changed.
    """

    def __init__(
        self, active: ActiveConfiguration, table: RouteTable, *, clock: Clock, metrics: Metrics
    ) -> None:
        """`table` gets the routes of each successful reload."""
        self._active, self._table = active, table
        self._clock, self._metrics = clock, metrics
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[ReloadResult] | None = None  # the reload that has not begun
        self._lost: list[str] = []  # since the last complete reload
        self._show_tenants()
        self.notify: Callable[..., None] = lambda *_: None  # sends states to the service manager
        # gives the new configuration to the transport: see use_settings()
        self.apply: Callable[..., None] = lambda **_: None
        # awaited after `apply`, before the reload is reported
        self.applied: Callable[[], Awaitable[None]] | None = None

    def request(self) -> "asyncio.Task[ReloadResult]":
        """Return a reload that begins after this call and after the running reload."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._run())
        return self._next

    async def end(self) -> None:
        """Wait for the running reload, and the next one."""
        if self._next is not None:
            await self._next
        async with self._turn:
            pass

    async def _run(self) -> ReloadResult:
        async with self._turn:
            self._next = None
            began_us = int(self._clock.real_s() * 1_000_000)
            self.notify("RELOADING=1", f"MONOTONIC_USEC={began_us}")
            result = await self._load()
            self._metrics.reload_successful.set(not result.faults)
            status = f"reloaded at {rfc3339(self._clock.time_us())}"
            if not result.reloaded:
                status = f"not reloaded, the previous configuration is active: {result.faults[0]}"
            elif trouble := self._active.impaired():
                status = f"{status}; {trouble}"
            self.notify("READY=1", f"STATUS={status}")
            return result

    async def _load(self) -> ReloadResult:
        changed: list[dict[str, str]] = []
        faults: tuple[str, ...] = ()
        renewed = 0

        def note(key: str) -> None:
            changed.append({"key": key})
            _log.warning("a key of relay.toml has changed: a restart is needed", key=key)

        try:
            read = await asyncio.to_thread(self._active.read, note)
            counted_rules = await asyncio.to_thread(read.rules.outcomes)
            self._use(read)
            if self.applied is not None:
                await self.applied()
            self._metrics.keep_rules(counted_rules)
            renewed = len(read.new_pairs)
            self._lost = []
        except SettingsError as error:
            all_faults = dict.fromkeys((*error.faults, *await self._take_away()))
            faults = _shown([*all_faults], "fault")
            for fault in faults[:_FAULTS_LOGGED]:
                _log.error("not reloaded", fault=fault)
            _log.error("the previous configuration stays active", faults=len(all_faults))
        except Exception as error:  # noqa: BLE001 - a failed reload must not end the service
            faults = (f"internal error: {error!r}; a part may be in force: restart the service",)
            _log.exception("the reload failed: restart the service, as a part may be in force")
        rules, is_reloaded = self._active.now.rules.rule_count, not faults
        if is_reloaded:
            tenants = self._active.now.tenants.values()
            faults = _shown([fault for tenant in tenants for fault in tenant.faults], "fault")
            if not faults:
                self._metrics.reload_success_time.set(self._clock.time_us() / 1_000_000)
            _log.info("reloaded", rules=rules, new_certificates=renewed)
        lost = _shown(self._lost, "account")
        return ReloadResult(is_reloaded, faults, tuple(changed), rules, renewed, lost)

    async def _take_away(self) -> Sequence[Fault]:
        """Apply what accounts have lost. Return the faults of accounts.toml: then it is unknown."""
        try:
            left, lost = await asyncio.to_thread(self._active.without_lost_rights)
        except SettingsError as error:
            return error.faults
        if lost:
            self._use(left)
            self._lost = [*dict.fromkeys((*self._lost, *lost))]
            _log.warning("rights were taken away", accounts=", ".join(lost[:_FAULTS_LOGGED]))
        return ()

    def _use(self, read: Configuration) -> None:
        """Replace the configuration. Nothing is awaited here, so no message is handled with one
        part of the old configuration and one of the new.
        """
        before = self._active.settings
        self._active.use(read)
        self._show_tenants()
        routes = self._table.use(read.routes)
        self.apply(before=before, routes=routes)
        kinds = {"added": routes.added, "changed": routes.changed, "removed": routes.removed}
        if any(kinds.values()):
            names = {kind: ", ".join(names) for kind, names in kinds.items() if names}
            _log.info("routes have changed", **names)

    def _show_tenants(self) -> None:
        """Set the metric of the age of rules, for each tenant whose newest rules have a fault."""
        metric = self._metrics.policy_set_age
        metric.clear()
        for name, tenant in self._active.now.tenants.items():
            age = metric.labels(name)
            if tenant.faults:
                age.set_function(partial(self._age_s, tenant.good_us))

    def _age_s(self, since_us: int) -> float:
        return max(0.001, (self._clock.time_us() - since_us) / 1_000_000)


def _shown(lines: Sequence[object], kind: str) -> tuple[str, ...]:
    """Return the first lines as text, and a line with the number of the others."""
    texts = tuple(map(str, lines[:_FAULTS_SHOWN]))
    more = len(lines) - len(texts)
    return (*texts, f"and {counted(more, f'more {kind}')}") if more else texts


class Readiness:
    """Why the relay is not ready: `reason`, "" when it is. `impaired` says what fails in a relay
    that is ready.
    """

    def __init__(self) -> None:
        self.reason = "starting"
        self.impaired = ""

    def __call__(self) -> str:
        """The reason for a 503."""
        return self.reason


@dataclass(frozen=True)
class RelayDependencies:
    """What compose() needs in addition to the settings."""

    accounts: AccountDirectory  # the addresses, tokens and passwords of users
    rules: Callable[[], RuleBook]  # returns the active rules
    texts: Callable[[], ReportTexts] = ReportTexts  # returns the active texts of reports
    keys: Callable[[], KeyRing] = KeyRing  # returns the active keys that sign mail
    providers: Callable[[], ProviderReplies] = ProviderReplies  # returns the [[reply]] entries
    route_places: Callable[[], Mapping[str, RoutePlace]] = dict  # where routes are written, by name
    crash_at: str = ""  # for crash tests: the point at which the process kills itself
    # returns whether mail for an address goes to a host of the simulated internet; if it is set, no
    # mail leaves this machine except to `release_to`
    is_simulated: Callable[[str], bool] | None = None
    # returns where a simulated host listens, and the CA of its certificate
    simulated: Callable[[Target], Target] | None = None
    any_sender: bool = False  # a login may send from any address by SMTP
    # returns the options of a listener in a development relay
    listener_options: Callable[[SmtpListener], ListenerOptions | None] = lambda _listener: None
    release_to: NextHop | None = None  # where released mail goes
    # the arguments of the gate's child process; None: SMTP sessions run in this process
    gate_words: Sequence[str] | None = None
    active: ActiveConfiguration | None = None  # what a reload replaces; None: there is no reload
    # returns a digest of each part that must be equal on all nodes of a spool
    agreed: Callable[[], Mapping[str, str]] = dict
    holds_root: bool = True  # False: the node has no mailboxes, no pickup and no front door
    # if it is set, the front door answers only requests for these hosts, for loopback names and for
    # http.public_url
    hosts: AllowedHosts | None = None
    tunnel_hosts: TunnelHosts | None = None  # the front door is also a proxy for these hosts
    certificates: ListenerCertificates | None = None  # None: load the files that the settings name
    # the actions that only the API of a development relay has; if it is set, captured mail is put
    # into mailboxes
    development: api.DevelopmentControls | None = None
    converts_in_threads: bool = False  # step 3 uses threads, not child processes, as in tests
    are_pages_open: bool = False  # any client of the pages has the role operate, without a login
    # any client on loopback has the role operate in /relay/v1, with any token
    is_api_open: bool = False
    # puts an application in front of the Graph API
    before_graph: "Callable[[Gateway, HttpAuthentication], ASGIApp] | None" = None
    user_sign_in: "Callable[[AccessTokens], UserSignIn] | None" = None  # returns further grants
    # returns a further API with other paths, on the port of the pages
    further_api: Callable[[api.ApiDependencies, SpoolEngine], ASGIApp] | None = None


@dataclass(frozen=True, kw_only=True)
class Foundation:
    """The objects that the builders of front door, transport and pages share."""

    given: Settings  # relay.toml at the start
    sources: RelayDependencies  # what the caller of compose() gives
    certificates: ListenerCertificates  # replaced by a reload
    clock: Clock  # of the whole process; in a development relay it can be advanced
    ids: Ids  # of messages and submissions
    crash: CrashPoints  # where a crash test kills the process
    metrics: Metrics  # counted where it happens
    samples: MetricSamples  # the metrics of the last hour
    changes: ChangeNotifier  # wakes tasks that wait for a step of a journey
    pressure: Pressure  # the shortage of resources, which SMTP, HTTP and pickup check
    pauses: Pauses  # what an operator has paused on this node
    readiness: Readiness  # set by the daemon, shown by /readyz
    table: RouteTable  # which address is local, and the next hop of others
    reloader: Reloader | None  # None: a development relay
    signer: Signer  # signs what Relay's users send, and reports
    srs: Srs  # the senders of mail that is forwarded to other domains
    root: MailRoot  # proves that the mail root is there
    store_log: SubmissionLog  # steps 1 to 4
    store: FileStore  # mailboxes and pending submissions
    spool: SpoolEngine  # the queue, and steps 5 to 7
    journeys: Journeys  # all seven steps
    feed: EventFeed  # the events of all journeys
    refusals: RefusalFiles  # what SMTP sessions refused
    milters: MilterSet  # replaced by a reload
    usage: UsageCounter  # counts what accounts send to other domains
    tokens: TokenHolder  # of [[oauth]]

    @property
    def settings(self) -> Settings:
        """The active settings: as at the start, with the changes of reloads."""
        active = self.sources.active
        return active.settings if active is not None else self.given

    @property
    def holds_root(self) -> bool:
        """Return whether this node has mailboxes."""
        return self.sources.holds_root

    @property
    def is_development(self) -> bool:
        """Return whether this is a development relay."""
        return self.sources.development is not None


def _confinement(sources: RelayDependencies) -> Confinement | None:
    """Return the rule that keeps mail on this machine; None if mail may leave it. Only a release
    sends mail to `release_to`.
    """
    if sources.is_simulated is None:
        return None
    release_to = sources.release_to
    return Confinement(
        sources.is_simulated,
        captures=lambda hop: is_elsewhere(hop) or hop.without_route == release_to,
    )


def _mail_root(settings: Settings, sources: RelayDependencies) -> MailRoot:
    """Return the mail root. A node without mailboxes gets one that is never opened, at a path where
    nothing exists.
    """
    if sources.holds_root:
        return MailRoot(settings.mailboxes.root, take_lock=lock_file)
    root = MailRoot(settings.state_dir / "no-mail-root")
    root.trouble = "this node has no mailboxes"
    return root


def read_pauses(settings: Settings, clock: Clock) -> Pauses:
    """Return what is paused on this node. Raises SettingsError if the file cannot be read."""
    file = settings.state_dir / "paused.json"
    try:
        return Pauses(file, clock)
    except (OSError, ValueError) as error:
        text = f"found what cannot be read ({error}), expected pauses: remove it to resume"
        raise SettingsError([Fault(file, 0, "", text)]) from None


def _milters(settings: Settings, metrics: Metrics) -> MilterSet:
    observe = metrics.milter_answered
    return MilterSet(settings.milter, hostname=settings.hostname, observe=observe)


def _usage(
    settings: Settings, sources: RelayDependencies, table: RouteTable, *, clock: Clock
) -> UsageCounter:
    def limits_of(account: str) -> tuple[Limits, Limits]:
        own, active = sources.accounts.by_address(account) or Account(account), sources.active
        return own.limits, (active.settings if active else settings).limits

    return UsageCounter(clock, limits_of=limits_of, is_own=table.is_own_anywhere)


def show_parts(base: Foundation) -> None:
    """Set the metrics of the active certificates, milters and signing domains."""
    metrics, names = base.metrics, [milter.name for milter in base.settings.milter]
    metrics.expect(domains=base.sources.keys().domains, milters=names)
    metrics.milter_down.clear()
    for name in names:
        metrics.milter_down.labels(name).set_function(partial(_is_down, base.milters, name))
    metrics.certificate_end.clear()
    for listener in (*base.certificates.smtp, base.certificates.http):
        for pair in listener.pairs if listener else ():
            metrics.certificate_end.labels(pair.certificate).set(pair.end_s())


def _is_down(milters: MilterSet, name: str) -> int:
    return int(name in milters.down)


def _is_paused(pauses: Pauses, what: Paused) -> int:
    return int(what in pauses.current())


def _store(
    settings: Settings,
    sources: RelayDependencies,
    log: SubmissionLog,
    *,
    root: MailRoot,
    clock: Clock,
    ids: Ids,
    crash: CrashPoints,
) -> FileStore:
    def limits_of(account: str) -> QuotaLimits:
        owner = sources.accounts.by_address(account)
        return QuotaLimits(owner.quota, owner.quota_messages) if owner else QuotaLimits()

    return FileStore(
        root,
        clock=clock,
        ids=ids,
        crash=crash,
        log=log,
        hostname=settings.hostname,
        limits_of=limits_of,
        dead_letter=settings.state_dir / DEAD_LETTER,
    )


def open_foundation(
    settings: Settings, sources: RelayDependencies, *, clock: Clock, undo: ExitStack
) -> Foundation:
    """Open the spool and the mail root; `undo` closes them if a later step fails.

    Raises SpoolError, OSError, ValueError.
    """
    certificates = sources.certificates or server_certificates(settings)
    ids, crash, metrics = Ids(clock), CrashPoints(sources.crash_at), Metrics()
    pauses = read_pauses(settings, clock)
    for what in Paused:
        metrics.paused.labels(what=what).set_function(partial(_is_paused, pauses, what))
    changes = ChangeNotifier()
    root = _mail_root(settings, sources)
    undo.callback(root.close)
    table = route_table(settings, sources.accounts, confinement=_confinement(sources))
    log_directory = root.path / SUBMISSIONS / "log"
    store_log = SubmissionLog(
        log_directory,
        role="relay",
        clock=clock,
        on_append=changes.notify,
        node=settings.node_of_many,
    )

    store = _store(settings, sources, store_log, root=root, clock=clock, ids=ids, crash=crash)
    engine = spool.open(
        settings,
        clock=clock,
        crash=crash,
        metrics=metrics,
        delivers_captured=sources.development is not None,
        holds_store=sources.holds_root,
    )
    undo.callback(engine.close)
    table.is_of_other_store = engine.is_of_other_store
    on_refusal = changes.notify if sources.development is not None else lambda: None
    metrics.reload_success_time.set(clock.time_us() / 1_000_000)
    active = sources.active
    if active is not None:
        active.keep_sets()
    feed = EventFeed(engine, LogReader(log_directory, store=settings.mailboxes.store))
    reloader = Reloader(active, table, clock=clock, metrics=metrics) if active else None
    return Foundation(
        given=settings,
        sources=sources,
        reloader=reloader,
        certificates=certificates,
        clock=clock,
        ids=ids,
        crash=crash,
        metrics=metrics,
        samples=MetricSamples(metrics, clock),
        changes=changes,
        pressure=Pressure(partial(pauses.why, Paused.ACCEPT)),
        pauses=pauses,
        readiness=Readiness(),
        table=table,
        srs=srs_of(settings),
        root=root,
        signer=Signer(sources.keys, clock=clock, metrics=metrics),
        store_log=store_log,
        store=store,
        spool=engine,
        journeys=Journeys(engine, store_log, feed, clock=clock),
        feed=feed,
        refusals=RefusalFiles(settings.refused_dir, on_refusal),
        milters=_milters(settings, metrics),
        usage=_usage(settings, sources, table, clock=clock),
        tokens=TokenHolder(
            lambda: active.settings if active is not None else settings,
            clock,
            lambda name, result: metrics.oauth_requests.labels(name, result).inc(),
        ),
    )
