"""A development relay: the whole pipeline on loopback, with accounts that need no set-up.

`relay dev` and the test kit run one. Mail for other domains is captured (RFC 6761 6.2: example.test
never exists), or goes to the simulated internet: to test recipients, and to the domains of its
scenario. No other name server is queried, and no connection opened beyond loopback.
"""

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import asdict, replace
from starlette.types import ASGIApp

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import Clock, Ids, SystemClock, rfc3339, time_us_of
from relay.base.message.address import with_a_labels
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.observe.logs import get_logger
from relay.base.running_relay import RejectedError, TryLaterError, send_by_graph, send_content
from relay.base.settings.reader import load
from relay.base.settings.tree import Settings, SmtpListener
from relay.base.settings.validation import next_hops_by_name, senders_of
from relay.base.socket_address import Address
from relay.base.sockets import open_listener
from relay.base.task_set import TaskSet
from relay.delivery.provider_replies import load_provider_replies
from relay.delivery.reports.texts import load_texts
from relay.delivery.smtp.connect import Target
from relay.development.accounts import DOMAIN, DevelopmentAccounts
from relay.development.authority import DevelopmentCertificate
from relay.development.automatic_release import AutomaticRelease
from relay.development.clock_advances import ClockAdvances
from relay.development.demonstration import example
from relay.development.graph_faults import FaultyFrontDoor
from relay.development.internet import scenario_file
from relay.development.internet.overview import overview
from relay.development.internet.simulator import SimulatedInternet
from relay.development.mail_access.dovecot import find_dovecot
from relay.development.mail_access.server import MailAccess
from relay.development.mailpit import MailpitApi
from relay.development.mailpit_message import OutgoingMail
from relay.development.mcp import McpServer
from relay.development.option_fields import IN_CLEAR, MAIL, PORTS
from relay.development.options import (
    ANY,
    CA_OF_INTERNET,
    SMTP_ROLES,
    DevelopmentAddresses,
    DevelopmentOptions,
    write_config,
)
from relay.development.removal import MailRetention, Reset, development_spool, remove_message
from relay.development.search_index import SearchIndex
from relay.development.simulated_recipients import SimulatedRecipients
from relay.development.user_grants import UserGrants
from relay.front_door.api.dependencies import ApiDependencies, ClientSettings
from relay.front_door.api.message_source import MessageCopies
from relay.front_door.api.release import release_route
from relay.front_door.http.errors import bad_request, service_unavailable
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.http.tunnels import TunnelHosts
from relay.operation.app.compose import compose
from relay.operation.app.configuration import ListenerCertificates, route_places, warn_of_rules
from relay.operation.app.daemon import Daemon
from relay.operation.app.development_folder import DevelopmentFolder, OwnEntry
from relay.operation.app.foundation import Foundation, RelayDependencies
from relay.operation.app.settling import SETTLE_S, UnsettledError
from relay.store.journeys.document import Journey
from relay.store.mailbox.mailbox_list import MailboxList
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Selector
from relay.transport.ingress.smtp_server import ListenerOptions
from relay.transport.policy.globs import Globs
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import load_rules, unread_directories
from relay.transport.signing.key_files import load_keys

_ARRIVAL_S = 5.0  # delivery takes less, except on a very busy machine
_DEFERRED_MAX = 1000  # entries among which the next retry is looked for
# The configuration cannot have networks so wide. Nothing that such a client sends can leave.
_EVERYONE = ("0.0.0.0/0", "::/0")


class DevelopmentRelay:
    """A composed development relay. Call start() once, then stop() once.

    `token` has the role operate. It implements the DevelopmentControls of the API.
    """

    def __init__(self, folder: DevelopmentFolder, options: DevelopmentOptions) -> None:
        """Write the configuration, issue the certificate, compose the rooms. Blocks.

        Raises OSError, SettingsError for faults in the rules or the scenario, and
        AlreadyRunningError for a directory in use.
        """
        self.folder = folder
        self._options = options = options.with_ports()
        self._may_release = Globs.of(map(with_a_labels, options.release_allow))
        self.clock = AdvanceableClock(advanced_s=folder.advanced_s())
        self.token = options.token or secrets.token_urlsafe(32)
        web = () if options.listen_all or options.https is None else (options.https.host,)
        own_host = () if web == (ANY,) else web
        self.certificate = DevelopmentCertificate(
            folder.path,
            (*options.hosts, *own_host),
            ca_dir=options.ca_dir,
            clock=SystemClock(),  # that of the clients is not advanced
            proxy_names=options.proxy_names,
        )
        self._scenario = scenario_file.read_scenarios(options.scenarios)
        self._scenario_turn = asyncio.Lock()
        self.internet = SimulatedInternet(self.clock, self._scenario.scenario)
        try:
            self.daemon: Daemon = self._compose()
        except BaseException:
            self.internet.close()
            raise
        self.simulated_recipients = SimulatedRecipients(
            self.daemon.base.store,
            clock=self.clock,
            ids=Ids(self.clock),
            smtp=lambda: self.addresses.for_this_machine().smtp,
        )
        self.internet.on_mail = self.simulated_recipients.keep
        settling = self.daemon.settling
        settling.others.append(self.simulated_recipients.in_progress)
        self._advances = ClockAdvances(
            self.clock,
            folder,
            partial(settling.settle, is_delayed=lambda: self.internet.delayed > 0),
            counts=lambda: self.daemon.base.samples.sample().counts,
        )
        base = self.daemon.base
        self._index = SearchIndex(folder.path / OwnEntry.SEARCH_INDEX, base, self._sources)
        base.journeys.places.index = self._index
        base.store.messages.on_state = self._index.note_state
        self._tasks = TaskSet()
        self._mail_access = self._mail_access_of(base)
        self._mailboxes: dict[str, list[Address]] = {name: [] for name in MAIL}
        self._reset = Reset(
            self.daemon, folder.path / OwnEntry.TRASH, quiet=self._quiet, forget=self._forget
        )

    def _mail_access_of(self, base: Foundation) -> MailAccess:
        options, settings = self._options, base.settings
        is_open = not (options.token or options.strict_senders or options.private)
        return MailAccess(
            find_dovecot(),
            check_login=self._accounts.by_user_name if is_open else self._accounts.by_smtp_login,
            open_mailbox=base.store.open_mailbox,
            run=settings.run_dir,
            max_message_size=max(listener.max_message_size for listener in settings.smtp),
        )

    def _compose(self) -> Daemon:
        options = self._options
        write_config(self.folder, options, self.internet)
        settings = load(self.folder.config, {})
        places = route_places(self.folder.config, settings)
        if options.release_to is not None:
            route = options.release_to.route(self.folder.path)
            settings = dataclasses.replace(settings, route=(*settings.route, route))
        if options.is_exposed:
            open_to_all = partial(dataclasses.replace, trusted_networks=_EVERYONE)
            settings = dataclasses.replace(settings, smtp=tuple(map(open_to_all, settings.smtp)))
        self._rules = _rules_of(settings, self.clock)
        texts = load_texts(settings.reports)
        keys = load_keys(settings.dkim, self.folder.config)
        providers = load_provider_replies(settings.delivery.providers, self.folder.config)
        self._accounts = DevelopmentAccounts(
            MailboxList(settings.mailboxes.root),
            domains=settings.mailboxes.domains,
            operator_token=self.token,
            token=options.token,
            strict=options.strict_users,
            clock=self.clock,
            arrival=self._arrival,
        )
        sources = RelayDependencies(
            self._accounts,
            lambda: self._rules,
            lambda: texts,
            lambda: keys,
            lambda: providers,
            route_places=lambda: places,
            is_simulated=self.internet.covers,
            simulated=self._simulated,
            release_to=self.release_to,
            # A web page of another site could create an account otherwise, by DNS rebinding.
            hosts=AllowedHosts(frozenset(options.hosts), any_address=options.is_exposed),
            certificates=ListenerCertificates(
                tuple(
                    self.certificate.server if listener.tls else None for listener in settings.smtp
                ),
                self.certificate.server,
            ),
            tunnel_hosts=self.certificate.proxy.hosts if self.certificate.proxy else TunnelHosts(),
            any_sender=not options.strict_senders,
            listener_options=self._options_of,
            crash_at=options.crash_at,
            development=self,
            further_api=partial(self._mailpit, settings),
            are_pages_open=not options.token,
            is_api_open=not options.asks_for_token,
            converts_in_threads=options.converts_in_threads,
            user_sign_in=lambda tokens: UserGrants(
                self._accounts,
                tokens,
                clock=self.clock,
                default_user=f"alice@{options.domains[0]}",
                needs_token=bool(options.token),
            ),
            before_graph=partial(
                FaultyFrontDoor,
                scenario=lambda: self.internet.state,
                realm=settings.hostname,
                clock=self.clock,
            ),
        )
        return compose(settings, sources, clock=self.clock)

    def _simulated(self, target: Target) -> Target:
        """Return where to connect; hosts of the internet have no other authority than its own."""
        if target.port != self.internet.port:
            return target
        address, port = self.internet.place_of(target.address, target.port)
        authority = self.internet.certificates.authority
        tls = replace(target.tls, ca=self.folder.path / CA_OF_INTERNET, ca_digest=authority)
        return dataclasses.replace(target, address=address, port=port, tls=tls)

    def _mailpit(self, settings: Settings, means: ApiDependencies, spool: SpoolEngine) -> ASGIApp:
        """Return Mailpit's API. Make that of agents too, which is /mcp."""
        bytes_max = max(listener.max_message_size for listener in settings.smtp)
        check_login = self._accounts.check_operator if self._options.asks_for_token else None
        self._sources = means.sources
        self.respond_to_agent = McpServer(means, self._options, self._submit).respond
        api = MailpitApi(means, spool, check_login=check_login, send=self._submit)
        self._events = api.events
        return api.application(message_bytes_max=bytes_max)

    def _submit(self, mail: OutgoingMail) -> str:
        """Submit a message by SMTP; return its queue id. Blocks. Raises ApiError."""
        here = self.addresses.for_this_machine().smtp
        try:
            return send_content(here, mail.content, sender=mail.sender, recipients=mail.recipients)
        except TryLaterError as error:
            raise service_unavailable(str(error), retry_after_s=1) from None
        except RejectedError as error:
            raise bad_request(str(error)) from None

    def _options_of(self, listener: SmtpListener) -> ListenerOptions:
        """Return what is different on a listener of SMTP: who logs in, and what its log says."""
        options, has_tls = self._options, listener.tls is not None
        is_open = not options.strict_senders and not (options.token and has_tls)
        accounts = self._accounts
        return ListenerOptions(
            accounts.by_user_name if is_open else accounts.by_smtp_login,
            accounts.by_user_name if is_open else None,
            login_in_clear=is_open or not options.token,
            tls_hint=self._hint_with_tls if has_tls else self._hint_without_tls,
            odd_domain=options.domains[0],
        )

    def _hint_with_tls(self) -> str:
        here = self.addresses.for_this_machine()
        return f"clients must trust the CA file {here.ca}; {here.smtp} is without TLS"

    def _hint_without_tls(self) -> str:
        here = self.addresses.for_this_machine()
        ways = {"TLS from the first octet": here.submissions, "STARTTLS": here.submission}
        others = [f"{address} has {way}" for way, address in ways.items() if address is not None]
        return f"{here.smtp} has no TLS; {', '.join(others) or 'no other port is open'}"

    async def start(self) -> None:
        """Start it, and write the configuration with the ports in use.

        Raises OSError for a port in use; stop() must be called even then.
        """
        await self._reset.begin()
        await self.internet.start()
        await self.daemon.transport.policies.forget()  # those of another scenario
        if self._options.release_auto and (route := release_route(self)) is not None:
            base = self.daemon.base
            automatic = AutomaticRelease(base, route, await base.feed.now())
            self.daemon.settling.others.append(automatic.in_progress)
            self._tasks.start(automatic.run(), name="automatic release")
        await self.daemon.start()
        await self._open_mailboxes()
        at = self.addresses
        listeners = {name: getattr(at, name) for name in PORTS}
        options = dataclasses.replace(self._options, **listeners)
        write_config(self.folder, options, self.internet)

        retention = MailRetention(
            self.daemon.base.store,
            development_spool(self.daemon.base.spool),
            keep=self._options.keep,
            keeps_mailbox=self._keeps_mailbox,
            clock=self.clock,
            removing=partial(self._events.removing, "prune"),
        )
        self._tasks.start(retention.run(), name="retention")
        if self._options.indexes_ahead:
            self._tasks.start(self._index.run(), name="search index")

    async def _open_mailboxes(self) -> None:
        """Listen for mail programs. Raises OSError."""
        for name, address in self._options.listeners.items():
            tls = None if name in IN_CLEAR else self.certificate.server.context
            for place in self._options.everywhere(address) if name in MAIL else ():
                listener = open_listener(place, backlog=64)
                self._mailboxes[name].append(listener.address)
                await self._mail_access.serve(name.removesuffix("s"), listener, tls)

    async def stop(self) -> None:
        """Stop it; mail in delivery has a few seconds to end."""
        self._tasks.cancel()
        await self._advances.stop()
        await self._reset.end()
        await self._mail_access.stop()
        await self.simulated_recipients.stop()
        try:
            await self.daemon.stop()
        finally:
            await self._index.close()
            await self.internet.stop()

    def received_content(self, queue_id: str) -> bytes | None:
        """See DevelopmentControls."""
        matching = (mail for mail in reversed(self.internet.received) if mail.queue_id == queue_id)
        mail = next(matching, None)
        return mail.content if mail else None

    async def remove_message(self, journey: Journey, copies: MessageCopies) -> bool:
        """See DevelopmentControls."""
        return await remove_message(self.daemon, copies, journey)

    async def reset(self) -> int:
        """Delete all messages, mailboxes and accounts that were made; return how many messages.

        Raises SpoolError, StoreError.
        """
        async with self._mail_access.emptied():
            return await self._events.removing("truncate", self._reset.run)

    def _keeps_mailbox(self, address: str) -> bool:
        subscriptions = self.daemon.subscriptions
        is_watched = subscriptions is not None and subscriptions.has(address)
        return is_watched or self._accounts.keeps(address) or self._mail_access.is_open(address)

    async def _quiet(self) -> None:
        """End what remote hosts do at present."""
        await self.internet.end_sessions()
        await self.simulated_recipients.stop()
        await self.daemon.transport.policies.forget()

    def _forget(self) -> None:
        self._accounts.forget()
        self.internet.forget()

    @property
    def clients(self) -> ClientSettings:
        """See DevelopmentControls."""
        here, domain = self.addresses.for_this_machine(), self._options.domains[0]
        return ClientSettings(
            smtp_host=here.smtp.host,
            smtp_port=here.smtp.port,
            submission_port=here.submission.port if here.submission else 0,
            submissions_port=here.submissions.port if here.submissions else 0,
            http_port=here.http.port,
            https_port=here.https.port if here.https else 0,
            sender=f"alice@{domain}",
            recipient=f"bob@{domain}",
            needs_token=bool(self._options.token),
            host_names=self._options.hosts,
            mailboxes=here.mailboxes,
            no_mailboxes=tuple(dict.fromkeys(filter(None, map(find_dovecot().why_not, IN_CLEAR)))),
        )

    async def send_example(self, key: str) -> str:
        """See DevelopmentControls."""
        clients = self.clients
        draft = example(clients.sender, clients.recipient)
        address = self.addresses.for_this_machine().http
        token, mailbox = clients.sender.partition("@")[0], ""
        if clients.needs_token:
            token, mailbox = self.token, clients.sender
        try:
            await asyncio.to_thread(
                send_by_graph, address, draft, token=token, mailbox=mailbox, key=key
            )
        except (RejectedError, OSError) as error:
            return str(error)
        return ""

    def reload_rules(self) -> int:
        """Load the rules again, and return how many there are. Blocks.

        Raises SettingsError; then the rules in force stay.
        """
        self._rules = _rules_of(self.daemon.base.settings, self.clock)
        return self._rules.rule_count

    @property
    def release_to(self) -> NextHop | None:
        """See DevelopmentControls."""
        target = self._options.release_to
        return None if target is None else target.next_hop

    def may_release(self, address: str) -> bool:
        """See DevelopmentControls."""
        return self.release_to is not None and self._may_release.match(address)

    @property
    def scenario_toml(self) -> str:
        """See DevelopmentControls."""
        return self._scenario.toml

    def used_replies(self) -> Sequence[Mapping[str, Any]]:
        """See DevelopmentControls."""
        return [dataclasses.asdict(reply) for reply in self.internet.state.used()]

    async def use_scenario(self, content: str | Mapping[str, Any]) -> None:
        """See DevelopmentControls."""
        if isinstance(content, str):
            await self._use(partial(scenario_file.parse_scenario, content))
        else:
            await self._use(partial(scenario_file.scenario_of, content))

    async def use_shipped_scenario(self, name: str) -> None:
        """See DevelopmentControls."""
        await self._use(partial(scenario_file.read_shipped_scenario, name))

    async def _use(self, read: Callable[[], scenario_file.ScenarioText]) -> None:
        async with self._scenario_turn:
            before, self._scenario = self._scenario, await asyncio.to_thread(read)
            self.internet.use(self._scenario.scenario)
            transport, both = self.daemon.transport, (before.scenario, self._scenario.scenario)
            await transport.policies.forget()
            names = {
                name for scenario in both for domain in scenario.domain for name in domain.names
            }
            transport.scheduler.retry_now([NextHop(HopKind.MX, name) for name in names])

    async def add_reply(self, domain: str, reply: Mapping[str, Any]) -> None:
        """See DevelopmentControls."""
        await self._edit(lambda text: scenario_file.with_reply(text, domain, reply))

    async def remove_reply(self, domain: int, reply: int) -> None:
        """See DevelopmentControls."""
        await self._edit(lambda text: scenario_file.without_reply(text, domain, reply))

    async def _edit(
        self, edit: Callable[[scenario_file.ScenarioText], scenario_file.ScenarioText]
    ) -> None:
        async with self._scenario_turn:
            self.edit_scenario(await asyncio.to_thread(edit, self._scenario))

    def internet_overview(self) -> Mapping[str, Any]:
        """See DevelopmentControls."""
        return overview(self.internet)

    def edit_scenario(self, read: scenario_file.ScenarioText) -> None:
        """Use a scenario with other entries; what those that stay have counted, stays."""
        self._scenario = read
        self.internet.edit(read.scenario)

    @property
    def can_demonstrate(self) -> bool:
        """Whether its users, rules and API are those that demonstrate() needs."""
        options = self._options
        has_users = options.domains == (DOMAIN,) and not options.token and not options.strict_users
        return has_users and not options.rules and not self._scenario.scenario.graph

    async def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Return when nothing is queued and due, or in progress.

        Raises UnsettledError. See relay/operation/app/settling.py.
        """
        await self.daemon.settling.settle(timeout_s)

    async def is_quiet(self, timeout_s: float) -> bool:
        """See DevelopmentControls."""
        try:
            await self.settle(timeout_s)
        except UnsettledError:
            return False
        return True

    async def _arrival(self, has_arrived: Callable[[], bool]) -> None:
        """Wait until mail has arrived, or no accepted mail is on its way; five seconds at most."""
        without_requests = dataclasses.replace(self.daemon.settling, graph=None)  # it is one itself
        with suppress(UnsettledError):
            await without_requests.settle(_ARRIVAL_S, has_ended=has_arrived)

    async def advance_clock(self, seconds: float) -> None:
        """Advance the clock from timer to timer, and settle after each. A caller that is cancelled
        does not stop it.

        Raises ValueError for the number, and AdvanceError if the clock does not get so far.
        """
        await self._advances.advance(seconds)

    @property
    def is_advancing(self) -> bool:
        """See DevelopmentControls."""
        return self._advances.in_progress

    @property
    def last_advance(self) -> Mapping[str, Any] | None:
        """See DevelopmentControls."""
        last = self._advances.last
        return None if last is None else asdict(last)

    async def next_retry_s(self) -> float | None:
        """See DevelopmentControls."""
        selector = Selector(state=RecipientState.DEFERRED)
        listed = await self.daemon.base.spool.queue_admin.list(selector, limit=_DEFERRED_MAX)
        now_us = self.clock.time_us()
        waits_us = (time_us_of(row["due"]) - now_us for row in listed if row["due"])
        next_us = min((wait_us for wait_us in waits_us if wait_us > 0), default=None)
        return None if next_us is None else next_us / 1_000_000

    @property
    def addresses(self) -> DevelopmentAddresses:
        """Where it listens; of several addresses the first."""
        web = self.daemon.http_servers[0]
        http = next(address for address in web.bound if not web.has_tls(address))
        https = next(filter(web.has_tls, web.bound), None)
        smtp: dict[str, Any] = {
            name: addresses[0] for name, addresses in self.mail_listeners.items() if addresses
        }
        ca, bundle = self.certificate.ca, self.certificate.bundle
        return DevelopmentAddresses(http, https, ca=ca, bundle=bundle, **smtp)

    @property
    def mail_listeners(self) -> dict[str, list[Address]]:
        """All addresses where SMTP, IMAP and POP3 listen, by the name of the option."""
        servers = self.daemon.transport.smtp_servers
        return self._mailboxes | {
            name: [server.address for server in servers if server.role.name == role]
            for name, role in SMTP_ROLES.items()
        }


def _rules_of(settings: Settings, clock: Clock) -> RuleBook:
    rules = load_rules(
        settings.policy.directory,
        local_domains=settings.mailboxes.domains,
        # that of the release target has no domain
        routes=next_hops_by_name(route for route in settings.route if route.domain),
        loaded=rfc3339(clock.time_us()),
        senders=senders_of(settings.route),
    )
    warn_of_rules(rules)
    if unread := unread_directories(settings.policy.directory):
        get_logger("development").warning("rules of tenants", detail=unread)
    return RuleBook(rules)
