"""Build the transport: pickup (step 3), SMTP servers and gate (5), delivery (6), reports (7)."""

import dataclasses
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from relay.base.accounts.account import DEAD_LETTER, Account, AccountDirectory
from relay.base.accounts.usage import UsedLimit
from relay.base.certificates import ServerCertificate
from relay.base.clock import Clock, rfc3339
from relay.base.message.nexthop import NextHop
from relay.base.pressure import PressureReason
from relay.base.settings.tree import Settings, SmtpListener
from relay.base.socket_address import Address
from relay.delivery.active_queue import ACTIVE_QUEUE_BYTES, ActiveQueue
from relay.delivery.attempt_recorder import AttemptRecorder
from relay.delivery.connection_slots import ConnectionSlots
from relay.delivery.content_cache import ContentCache
from relay.delivery.graph.connection import open_graph
from relay.delivery.host_selection import Connect, HostSession
from relay.delivery.http_connection import Proxy
from relay.delivery.local_delivery import LocalDelivery
from relay.delivery.provider_replies import ProviderReplies
from relay.delivery.recipient_verification import CONNECT_S, RecipientVerifier
from relay.delivery.reports.bounces import Copies, Reporter
from relay.delivery.reports.receipts import ReceiptSender, ReceiptWatcher
from relay.delivery.reports.texts import TextSource
from relay.delivery.retry import DeferralCause, RetrySchedule
from relay.delivery.scheduler import DeliveryScheduler
from relay.delivery.site import Site
from relay.delivery.site_limits import SiteOptions, parse_rate
from relay.delivery.sites import Sites
from relay.delivery.smtp.connect import Target, connect
from relay.delivery.smtp.connection import Timeouts
from relay.formats.convert import convert
from relay.front_door.notifications.webhooks import Webhooks
from relay.front_door.sign_in.token_login import TokenLogin
from relay.operation.app.foundation import Foundation, show_parts
from relay.operation.app.memory import listener_bytes
from relay.operation.app.mta_sts import build_policies, count, counted, renewed
from relay.store.spool.types import Claim, NewMessage, PriorityLevel
from relay.submission.pickup.conversion import ConversionPool
from relay.submission.pickup.dispatch import Pickup
from relay.submission.pickup.processing import SubmissionProcessor
from relay.submission.pickup.start_limits import StartLimits
from relay.transport.checks.checker import SenderChecker
from relay.transport.gate.keeper import GateKeeper
from relay.transport.gate.wire import ListenerSetup, LoadState, Setup
from relay.transport.ingress.acceptance import Acceptance
from relay.transport.ingress.listener_role import PICKUP, SENDMAIL
from relay.transport.ingress.local_users import LocalUsers
from relay.transport.ingress.maildrop import MailDrop
from relay.transport.ingress.session_owner import IngressDependencies
from relay.transport.ingress.smtp_server import SmtpServer, offers_auth_in_clear
from relay.transport.ingress.strangers import StrangerChecks
from relay.transport.routing.resolver import LoopbackResolver, Resolver
from relay.transport.routing.routes import RouteChanges
from relay.transport.routing.sts_policies import StsPolicies
from relay.transport.routing.usable_hosts import Resolve

_RNG = random.Random()  # noqa: S311 - spreads load, not for security
_DOWN_S_MAX = 30.0
SUBMISSIONS_MAX = 8  # of one account, processed at the same time
_PICKUP_MESSAGE_BYTES_MAX = 1024**3  # the Graph API has a lower limit; base64 adds a third


@dataclass(frozen=True)
class Transport:
    """What accepts messages by SMTP and delivers them."""

    resolver: Resolver | LoopbackResolver  # asks the DNS
    policies: StsPolicies  # of domains; resolves next hops under these policies
    scheduler: DeliveryScheduler  # step 6
    verifier: RecipientVerifier  # asks next hops at RCPT
    strangers: StrangerChecks | None  # asks the DNS at RCPT; None: in a development relay
    acceptance: Acceptance  # step 5
    reporter: Reporter  # step 7
    smtp_servers: list[SmtpServer]  # one for each [[smtp]], and one for [sendmail]
    gate: GateKeeper | None  # runs the sessions of [[smtp]]; None: they run in this process
    pickup_server: SmtpServer  # on run/pickup.sock
    pickup: Pickup  # step 3
    receipts: ReceiptWatcher  # sends read receipts
    maildrop: MailDrop | None  # the drop directory of [sendmail]

    @property
    def smtp_fault(self) -> str:
        """Why a listener accepts no connections, or ""."""
        of_gate = self.gate.fault if self.gate is not None else ""
        return of_gate or next(filter(None, (server.fault for server in self.smtp_servers)), "")

    @property
    def full(self) -> list[str]:
        """The addresses of the listeners without places for strangers."""
        elsewhere = self.gate.full if self.gate is not None else ()
        servers = enumerate(self.smtp_servers)
        return [str(server.address) for n, server in servers if server.is_full or n in elsewhere]


def build_transport(base: Foundation) -> Transport:
    """Return the transport, not started."""
    settings, reporter = base.settings, _reporter(base)
    resolver = _resolver(base)
    policies = build_policies(base, resolver)
    scheduler = _scheduler(base, reporter, policies.resolve, connect=_connect(base, resolver))
    checker = None  # a development relay asks no name servers about senders
    if isinstance(resolver, Resolver):
        ask = resolver.answers_for_clients
        checker = SenderChecker(ask, clock=base.clock, metrics=base.metrics)
    acceptance = _acceptance(base, reporter, scheduler, checker=checker)
    verifier = RecipientVerifier(
        base.table,
        policies.resolve,
        partial(
            connect,
            ehlo_name=settings.hostname,
            timeouts=Timeouts(connect_s=CONNECT_S),
            get_token=base.tokens.token,
        ),
        clock=base.clock,
    )
    strangers = None
    if isinstance(resolver, Resolver):
        strangers = StrangerChecks(
            resolver.answers_for_clients, is_own=base.table.is_local_domain, clock=base.clock
        )
    ingress = _ingress(base, acceptance, verifier, strangers=strangers)
    pickup = Pickup(
        _submission_processor(base, reporter),
        socket=settings.pickup_socket,
        hostname=settings.hostname,
        rng=_RNG,
    )
    receipts = ReceiptSender(
        spool=base.spool,
        reporter=reporter,
        accounts=base.sources.accounts,
        offer=acceptance.on_accepted,
        copies=base.store.owed_copies,
        crash=base.crash,
        is_development=base.is_development,
    )
    local_servers, maildrop = _mail_of_machine(base, ingress)
    gate = build_gate(base)
    return Transport(
        resolver=resolver,
        policies=policies,
        scheduler=scheduler,
        verifier=verifier,
        strangers=strangers,
        acceptance=acceptance,
        reporter=reporter,
        smtp_servers=_smtp_servers(base, ingress, gate) + local_servers,
        gate=gate,
        pickup_server=_pickup_server(base, ingress),
        pickup=pickup,
        receipts=ReceiptWatcher(
            sender=receipts,
            ledger=base.spool.receipts,
            copies=base.store.owed_copies,
            clock=base.clock,
        ),
        maildrop=maildrop,
    )


def _smtp_servers(
    base: Foundation, ingress: IngressDependencies, gate: GateKeeper | None
) -> list[SmtpServer]:
    """Return the servers of [[smtp]]."""
    return [
        SmtpServer(
            listener,
            ingress,
            certificate=certificate,
            options=base.sources.listener_options(listener),
            elsewhere=None if gate is None else partial(gate.hand_on, number),
        )
        for number, (listener, certificate) in enumerate(
            zip(base.settings.smtp, base.certificates.smtp, strict=True)
        )
    ]


def connect_parts(
    base: Foundation,
    transport: Transport,
    webhooks: Webhooks,
    *,
    on_near: Callable[[UsedLimit], None],
) -> None:
    """Give each part the parts that were made after it. They depend on each other, so the builders
    cannot pass them all.
    """
    scheduler, reporter, admin = transport.scheduler, transport.reporter, base.spool.queue_admin
    reporter.copies = _copies(base, scheduler)
    admin.delivery, admin.reports.writer = scheduler, reporter
    admin.give_back = base.usage.give_back
    base.store.messages.on_read = transport.receipts.sender.read
    base.usage.on_near = on_near
    base.metrics.crowded.set_function(lambda: len(transport.full))
    if transport.gate is not None:
        transport.gate.accept = [server.accept for server in transport.smtp_servers]
    if base.reloader is not None:
        base.reloader.apply = partial(use_settings, base, transport)
        base.reloader.applied = lambda: webhooks.use(base.settings.webhook)


def use_settings(
    base: Foundation, transport: Transport, *, before: Settings, routes: RouteChanges
) -> None:
    """Let the transport use the new settings and the new route table. `before` are the settings
    until now, `routes` the changes of the table. Waiting mail is routed again, as at a start.
    """
    settings, delivery = base.settings, base.settings.delivery
    acceptance, reporter, scheduler = transport.acceptance, transport.reporter, transport.scheduler
    acceptance.expire_after_s = reporter.expire_after_s = delivery.expire_after
    acceptance.delay_warning_after_s = delivery.delay_warning_after
    acceptance.held_max = settings.policy.held_max
    base.milters.replace(settings.milter)
    show_parts(base)
    acceptance.use(
        base.srs.at(settings.mailboxes.srs_domain),
        forward_own_from=settings.mailboxes.forward_own_from,
    )
    if settings.reports != before.reports:
        reporter.rate = settings.reports.per_sender
        reporter.copies = _copies(base, scheduler)
        reporter.strangers = settings.reports.strangers
        scheduler.recorder.complaints = settings.reports.complaints
    # the servers of [[smtp]] come first; the server of [sendmail] has no settings to change
    for server, listener in zip(transport.smtp_servers, settings.smtp, strict=False):
        server.use(listener)
    if transport.gate is not None:
        transport.gate.use()
    old = before.delivery
    if (before.dns, old.port, old.proxy) != (settings.dns, delivery.port, delivery.proxy):
        assert isinstance(transport.resolver, Resolver)  # a development relay reloads nothing
        transport.resolver.use(
            settings.dns, port=delivery.port, proxy_host=_proxy_host(delivery.proxy)
        )
    providers, used = base.sources.providers(), scheduler.sites.options.providers
    is_other = (delivery, providers.entries) != (before.delivery, used.entries)
    is_other |= providers.of_microsoft != used.of_microsoft
    if is_other:
        scheduler.recorder.schedule = retry_schedule(settings)
        scheduler.sites.slots.limit_to(delivery.max_connections)
    scheduler.use(
        site_options(settings, scheduler.recorder.schedule, providers),
        _connect(base, transport.resolver),
        is_over=lambda options: is_other or routes.ends(options),
    )


async def queue_stats(base: Foundation, transport: Transport) -> dict[str, Any]:
    """Return the counts of the queue, and the sites that this node has paused after replies."""
    ahead_us = base.clock.time_us() - int(base.clock.monotonic() * 1e6)
    paused = [
        {
            "site": pause.site,
            "by": pause.provider,
            "until": rfc3339(ahead_us + int(pause.until_s * 1e6)),
        }
        for pause in transport.scheduler.sites.paused()
    ]
    return {**await base.spool.stats(), "paused_sites": paused}


def _submission_processor(base: Foundation, reporter: Reporter) -> SubmissionProcessor:
    settings, ready = base.settings, base.store.ready
    return SubmissionProcessor(
        ready=ready,
        inbox_report=reporter.inbox_report,
        postmaster=lambda: base.table.mailbox_for("postmaster") or DEAD_LETTER,
        may_send_as=partial(may_send_as, base.sources.accounts),
        may_submit=partial(may_submit, base.sources.accounts),
        accepted=base.spool.accepted_submissions,
        conversion=ConversionPool(
            convert,
            hostname=settings.hostname,
            clock=base.clock,
            in_threads=base.sources.converts_in_threads,
        ),
        limits=StartLimits(base.clock, concurrency=SUBMISSIONS_MAX, is_rush=ready.rush.is_rush),
        log=base.store_log,
        clock=base.clock,
        crash=base.crash,
        metrics=base.metrics,
        started_us=base.clock.time_us(),
    )


def _reporter(base: Foundation) -> Reporter:
    settings, sources = base.settings, base.sources
    return Reporter(
        hostname=settings.hostname,
        clock=base.clock,
        ids=base.ids,
        destination_of=base.table.destination_of,
        expire_after_s=settings.delivery.expire_after,
        metrics=base.metrics,
        rate=settings.reports.per_sender,
        texts=TextSource(sources.texts, partial(_language_of, sources.accounts)),
        expand=base.table.expand,
        mailbox_for=base.table.mailbox_for,
        graph_mailbox=base.table.graph_mailbox,
        login_address=base.table.login_address,
        signer=base.signer,
        strangers=settings.reports.strangers,
    )


def may_submit(accounts: AccountDirectory, mailbox: str) -> bool:
    """Return whether a mailbox has an account of its own that is not disabled: by_address() also
    finds the account that got the address of a removed one as an alias.
    """
    owner = accounts.by_address(mailbox)
    return owner is not None and owner.address == mailbox and not owner.is_disabled


def may_send_as(accounts: AccountDirectory, account: str, address: str) -> bool:
    """Return whether the account of a submission may send mail from `address`. An operator may
    release mail of an account that is disabled.
    """
    submitter = accounts.by_address(account) or Account(account)
    return submitter.owns(address) or submitter.may_send_as(address)


def _ingress(
    base: Foundation,
    acceptance: Acceptance,
    verifier: RecipientVerifier,
    *,
    strangers: StrangerChecks | None,
) -> IngressDependencies:
    settings, accounts = base.settings, base.sources.accounts
    return IngressDependencies(
        hostname=settings.hostname,
        acceptance=acceptance,
        accounts=accounts,
        check_token=TokenLogin(accounts, settings.state_dir, base.clock).check,
        quota=base.store,
        crash=base.crash,
        pressure=base.pressure,
        refusals=base.refusals,
        verify=verifier.rejection,
        strangers=strangers,
        memory_bytes=listener_bytes(settings),
    )


def _copies(base: Foundation, scheduler: DeliveryScheduler) -> Copies:
    """Return the address that gets copies of reports, and the function that sends them."""

    async def accept(copy: NewMessage, submission_key: str) -> None:
        accepted = await base.spool.accept(copy, submission_key=submission_key, claim=False)
        if not accepted.repeated:
            scheduler.accepted_unclaimed([copy])

    reports = base.settings.reports
    return Copies(reports.copy_to, frozenset(reports.copy_kinds), accept)


def _language_of(accounts: AccountDirectory, address: str) -> str:
    account = accounts.by_address(address)
    return account.language if account is not None else ""


def _resolver(base: Foundation) -> Resolver | LoopbackResolver:
    resolver, release_to = resolver_of(base.settings, base.clock), base.sources.release_to
    resolver.count_tlsa = partial(count, base.metrics, policy="tlsa")
    if base.sources.is_simulated is None:
        return resolver
    elsewhere = None
    if release_to is not None:
        elsewhere = resolver_of(base.settings, base.clock, nameservers=())
    return LoopbackResolver(resolver, release_to=release_to, elsewhere=elsewhere)


def resolver_of(
    settings: Settings, clock: Clock, *, nameservers: Sequence[Address] | None = None
) -> Resolver:
    """Return the resolver of a configuration. `nameservers` replace those of the configuration; ()
    stands for the name servers of the system.
    """
    dns = settings.dns
    return Resolver(
        dns if nameservers is None else dataclasses.replace(dns, nameservers=tuple(nameservers)),
        clock=clock,
        rng=_RNG,
        hostname=settings.hostname,
        own_addresses=[listener.listen for listener in settings.smtp],
        port=settings.delivery.port,
        proxy_host=_proxy_host(settings.delivery.proxy),
    )


def _proxy_host(url: str) -> str:
    proxy = Proxy.parse(url)
    return proxy.host if proxy is not None else ""


def retry_schedule(settings: Settings) -> RetrySchedule:
    """Return the times between attempts."""
    delivery = settings.delivery
    return RetrySchedule(delivery.retry, _RNG.random, delivery.indeterminate_max)


def site_options(
    settings: Settings, schedule: RetrySchedule, providers: ProviderReplies | None = None
) -> SiteOptions:
    """Return the options of sites, before a route changes them."""
    delivery = settings.delivery
    return SiteOptions(
        connections_max=delivery.max_connections_per_next_hop,
        rate=parse_rate(delivery.max_rate_per_next_hop),
        unreachable_s=min(_DOWN_S_MAX, schedule.step_s(DeferralCause()) / 2),
        waited_s=schedule.waited_s,
        providers=providers or ProviderReplies(),
    )


def _scheduler(
    base: Foundation, reporter: Reporter, resolve: Resolve, *, connect: Connect
) -> DeliveryScheduler:
    delivery = base.settings.delivery
    schedule = retry_schedule(base.settings)
    options = site_options(base.settings, schedule, base.sources.providers())
    contents = ContentCache(base.spool, budget_bytes=4 * ACTIVE_QUEUE_BYTES, signer=base.signer)
    recorder = AttemptRecorder(
        base.spool,
        contents,
        reporter,
        clock=base.clock,
        metrics=base.metrics,
        fallback_for=base.table.fallback_for,
        mailbox_for=base.table.mailbox_for,
        complaints=base.settings.reports.complaints,
        schedule=schedule,
        on_change=lambda _queue_id: base.changes.notify(),
        hostname=base.settings.hostname,
    )
    slots = ConnectionSlots(delivery.max_connections, close_idle=Site.close_idle)
    base.metrics.connections.labels("outgoing").set_function(lambda: slots.count)
    scheduler = DeliveryScheduler(
        recorder,
        sites=Sites(
            recorder,
            resolve=resolve,
            table=base.table,
            slots=slots,
            options=options,
            clock=base.clock,
            connect=connect,
        ),
        local=LocalDelivery(
            recorder, base.store, base.table, delivers_captured=base.is_development
        ),
        table=base.table,
        clock=base.clock,
        active_queue=ActiveQueue(),
        queue_admin=base.spool.queue_admin,
    )
    base.metrics.queue_unread.set_function(scheduler.unread_s)
    return scheduler


def _connect(base: Foundation, resolver: Resolver | LoopbackResolver) -> Connect:
    delivery = base.settings.delivery
    timeouts = Timeouts(
        connect_s=delivery.connect_timeout,
        command_s=delivery.command_timeout,
        data_s=min(delivery.command_timeout, Timeouts().data_s),
    )
    by_smtp = partial(
        connect,
        ehlo_name=base.settings.hostname,
        timeouts=timeouts,
        real_s=base.clock.real_s,
        get_token=base.tokens.token,
    )
    by_graph = partial(
        open_graph,
        get_token=base.tokens.token,
        proxy=Proxy.parse(delivery.proxy),
        timeouts=timeouts,
        real_s=base.clock.real_s,
    )

    async def open_session(target: Target) -> HostSession:
        return await (by_smtp if target.graph is None else by_graph)(target)

    to_target = counted(open_session, base.metrics)
    simulated = base.sources.simulated
    if simulated is None:
        return renewed(to_target, resolver)
    return renewed(lambda target: to_target(simulated(target)), resolver)


def _acceptance(
    base: Foundation,
    reporter: Reporter,
    scheduler: DeliveryScheduler,
    *,
    checker: SenderChecker | None,
) -> Acceptance:
    def takes_claim(next_hop: NextHop, sender: int, level: PriorityLevel) -> bool:
        """Return whether delivery claims a message, with its content, when it is accepted."""
        if base.pressure.state.has(PressureReason.MEMORY):
            return False
        return scheduler.has_room_for(next_hop, sender, level)

    def accepted(claims: Sequence[Claim]) -> None:
        scheduler.offer(claims)
        base.changes.notify()

    return Acceptance(
        hostname=base.settings.hostname,
        router=base.table,
        policy=base.sources.rules,
        reporter=reporter,
        spool=base.spool,
        accounts=base.sources.accounts,
        clock=base.clock,
        ids=base.ids,
        metrics=base.metrics,
        on_accepted=accepted,
        on_waiting=scheduler.accepted_unclaimed,
        on_first_end=scheduler.due_at,
        level_of=scheduler.active_queue.level_of,
        has_room=takes_claim,
        expire_after_s=base.settings.delivery.expire_after,
        delay_warning_after_s=base.settings.delivery.delay_warning_after,
        any_sender=base.sources.any_sender,
        srs=base.srs,
        signer=base.signer,
        forward_own_from=base.settings.mailboxes.forward_own_from,
        held_max=base.settings.policy.held_max,
        has_share=base.spool.queue_shares.refuses,
        milters=base.milters,
        checker=checker,
        usage=base.usage,
    )


def _mail_of_machine(
    base: Foundation, ingress: IngressDependencies
) -> tuple[list[SmtpServer], MailDrop | None]:
    """Return the server of the socket of [sendmail], and the reader of the drop directory."""
    sendmail, hostname = base.settings.sendmail, base.settings.hostname
    if sendmail is None:
        return [], None
    users = LocalUsers(hostname, next(iter(base.settings.own_domains), hostname), sendmail.users)
    listener = SmtpListener(Address(path=str(sendmail.socket)))
    maildrop = None
    if sendmail.drop is not None:
        report = partial(setattr, base.readiness, "impaired")
        renew = base.spool.renew_submission_keys
        maildrop = MailDrop(sendmail.drop, users, ingress, renew=renew, report=report)
        base.spool.maintenance.before_prune = maildrop.renew_keys
    return [SmtpServer(listener, ingress, role=SENDMAIL, users=users)], maildrop


def _pickup_server(base: Foundation, ingress: IngressDependencies) -> SmtpServer:
    listener = SmtpListener(
        listen=Address(path=str(base.settings.pickup_socket)),
        max_recipients=100_000,
        max_message_size=_PICKUP_MESSAGE_BYTES_MAX,
    )
    return SmtpServer(listener, ingress, role=PICKUP)


def why_in_process(settings: Settings) -> str:
    """Return why `relay serve` runs SMTP sessions in the main process; "" if a child does."""
    if not settings.smtp:
        return "there is no [[smtp]]"
    if settings.smtp_gate == "on":
        return ""
    if settings.smtp_gate == "off":
        return 'smtp_gate is "off"'
    if settings.milter:
        return "there are milters"
    if sys.platform != "linux":
        return "this is not Linux"
    return "" if len(os.sched_getaffinity(0)) > 1 else "there is one processor"


def build_gate(base: Foundation) -> GateKeeper | None:
    """Return the gate, not started; None if the sessions run in this process."""
    words = base.sources.gate_words
    if words is None or why_in_process(base.given):
        return None

    def setup() -> Setup:
        certificates = base.certificates.smtp
        return setup_of(base.settings.hostname, zip(base.settings.smtp, certificates, strict=True))

    return GateKeeper(
        words=words,
        setup=setup,
        load=lambda: LoadState(base.pressure.state, base.pressure.paused()),
    )


def setup_of(
    hostname: str, listeners: Iterable[tuple[SmtpListener, ServerCertificate | None]]
) -> Setup:
    """Return the part of listeners and certificates that the gate's child process gets."""
    return Setup(
        hostname,
        [
            ListenerSetup(
                dataclasses.replace(
                    smtp, tls=None, trusted_networks=(), proxy_networks=(), auth=smtp.takes_auth
                ),
                [pair.pem for pair in certificate.pairs] if certificate is not None else [],
                requires_tls=smtp.tls is not None and smtp.tls.require,
                offers_auth_in_clear=offers_auth_in_clear(smtp),
            )
            for smtp, certificate in listeners
        ],
    )
