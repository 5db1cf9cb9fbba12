"""Build the front door (step 1, sign-in, /relay/v1), the pages, and their HTTP servers.

A builder imports the rooms that only it needs, so that a relay without HTTP listeners or without
pages does not load them. It imports them at the start and not at the first request: an incomplete
installation is detected at once, and all modules have the same version.

unready() decides when /readyz answers 503: during a start or a stop, after a fault (`daemon`),
without the spool or the mail root, while an SMTP listener accepts no connections, and while
acceptance is paused.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec.structs import replace
from starlette.types import ASGIApp

from relay.base.accounts.account import Role, UnknownUserError
from relay.base.accounts.usage import AccountUsage
from relay.base.clock import SystemClock, advanced_us, first_id_after, now_at_least_us, rfc3339
from relay.base.pauses import Paused
from relay.base.shares import REFUSALS
from relay.base.socket_address import Address
from relay.delivery.oauth.client_secrets import secret_states
from relay.front_door import api
from relay.front_door.api.content_search import ContentSearch
from relay.front_door.api.dependencies import Principal
from relay.front_door.api.release import without_release_host
from relay.front_door.http.browsers import BrowserGuard
from relay.front_door.http.connection_limits import CONNECTIONS_MAX, ConnectionLimits
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.path_router import BasePath, PathRouter
from relay.front_door.http.protocol import AllowedHosts
from relay.front_door.notifications.webhooks import Webhooks
from relay.operation.app.configuration import parse_next_hop
from relay.operation.app.explain import explainer_of
from relay.operation.app.foundation import Foundation
from relay.operation.app.maintenance import prune_log
from relay.operation.app.memory import left_bytes
from relay.operation.app.pressure_monitor import open_files_limit
from relay.operation.app.transport import Transport, queue_stats
from relay.store.spool.engine import without_node_text
from relay.store.spool.queue_commands import RouteLookup
from relay.store.spool.shared.traffic import BOUNCES, TrafficCounter
from relay.transport.routing.resolver import LoopbackResolver

if TYPE_CHECKING:
    from relay.front_door.graph.dependencies import GraphDependencies
    from relay.front_door.notifications.subscriptions import Subscriptions

# the first segments of the paths of `further_api`
FURTHER_PREFIXES = ("api", "view", "search", "livez", "email")
_EVERYONE = Principal(name="development", role=Role.OPERATE)
_BUSIEST = 20
_GROUPS_SHOWN = 50  # of statistics
_FILES_PER_CONNECTION = 4  # HTTP may use a quarter: SMTP, databases and messages need the rest


@dataclass(frozen=True)
class FrontDoor:
    """The applications that programs use by HTTP."""

    control: ASGIApp  # /relay/v1 for run/control.sock: every client is an operator
    means: api.ApiDependencies  # what /relay/v1 and the pages show and change
    subscriptions: "Subscriptions | None" = None  # of the Graph API
    relay_v1: ASGIApp | None = None  # /relay/v1 for observe.metrics; None: no TCP listeners
    graph: Gateway | None = None  # the Graph API; None: http.listen is empty
    graph_means: "GraphDependencies | None" = None  # what the handlers of the Graph API need
    programs: ASGIApp | None = None  # Graph, /relay/v1 and sign-in; None: http.listen is empty
    sign_in_paths: Sequence[str] = ()  # of sign-in in `programs`, without the first segment
    sign_in_pages: Sequence[str] = ()  # the sign-in paths that users open in a browser
    prefixes: Sequence[str] = ()  # the first segments of all paths of programs
    further_api: ASGIApp | None = None  # see RelayDependencies; it authenticates its clients


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Pages:
    """The pages that users open in a browser."""

    app: ASGIApp | None = None  # None: [http] pages is off, or http.listen is empty
    prefixes: Sequence[str] = ()  # the first segments of the paths of pages
    end: Callable[[], Awaitable[None]] = _nothing  # closes live views, ends the time to undo


def build_front_door(base: Foundation, transport: Transport, webhooks: Webhooks) -> FrontDoor:
    """Return the applications; they ask `transport` where mail goes, and how much waits."""
    settings, accounts = base.settings, base.sources.accounts
    events = api.EventStreams(base.feed, changes=base.changes, clock=base.clock)
    means = _means(base, transport, events, webhooks=webhooks)
    door = FrontDoor(api.create_control_app(means), means)
    if not settings.http.listen and settings.observe.metrics is None:
        return door
    from relay.front_door.sign_in import access_tokens  # noqa: PLC0415 - see above
    from relay.front_door.sign_in.authentication import HttpAuthentication  # noqa: PLC0415

    key = partial(access_tokens.token_key, settings.state_dir)
    tokens = access_tokens.AccessTokens(key, base.clock)
    if (settings.state_dir / access_tokens.TOKEN_KEY_FILE).exists():
        with suppress(access_tokens.TokenKeyError):  # it is logged
            tokens.public_keys()
    authentication = HttpAuthentication(
        accounts, tokens, realm=settings.hostname, anonymous=settings.http.anonymous
    )
    everyone = _EVERYONE if base.sources.is_api_open else None
    create_app = partial(api.create_app, means, authentication, everyone=everyone)
    door = dataclasses.replace(door, relay_v1=create_app(names_accounts=True))
    if not settings.http.listen:
        return door
    from relay.front_door.graph.app import create_app as create_graph_app  # noqa: PLC0415
    from relay.front_door.graph.dependencies import GraphDependencies  # noqa: PLC0415
    from relay.front_door.sign_in import token_endpoint  # noqa: PLC0415
    from relay.operation.app.notifications import build_subscriptions  # noqa: PLC0415 - see above

    subscriptions = build_subscriptions(base, transport.resolver)
    http, left = settings.http, left_bytes(settings)
    dependencies = GraphDependencies(
        store=base.store,
        accounts=accounts,
        clock=base.clock,
        ids=base.ids,
        hostname=settings.hostname,
        public_url=http.public_url,
        crash=base.crash,
        max_upload=http.max_upload,
        profile=http.profile,
        pressure=base.pressure,
        has_share=base.spool.queue_shares.refuses,
        subscriptions=subscriptions,
        has_pages=base.is_development or http.pages,
        usage=base.usage,
    )
    gateway = create_graph_app(
        dependencies, authentication, http.max_body, memory_bytes=left, ready=base.readiness
    )
    users = base.sources.user_sign_in(tokens) if base.sources.user_sign_in else None
    sign_in = token_endpoint.create_sign_in_app(
        accounts,
        tokens,
        clock=base.clock,
        hostname=settings.hostname,
        public_url=settings.http.public_url,
        users=users,
    )
    before_graph = base.sources.before_graph
    versions: dict[str, ASGIApp] = dict.fromkeys(
        ("v1.0", "beta"), before_graph(gateway, authentication) if before_graph else gateway
    )
    paths: Sequence[str] = token_endpoint.SIGN_IN_PATHS
    if users is not None:
        paths = (*paths, *users.paths)
        versions |= dict.fromkeys(users.prefixes, sign_in)
    programs = PathRouter(versions, by_rest=dict.fromkeys(paths, sign_in), otherwise=create_app())
    return dataclasses.replace(
        door,
        graph=gateway,
        graph_means=dependencies,
        subscriptions=subscriptions,
        programs=programs,
        sign_in_paths=paths,
        sign_in_pages=users.pages if users else (),
        prefixes=(*versions, *api.PREFIXES),
        further_api=base.sources.further_api and base.sources.further_api(means, base.spool),
    )


def _means(
    base: Foundation, transport: Transport, events: api.EventStreams, *, webhooks: Webhooks
) -> api.ApiDependencies:
    development = base.sources.development

    def way_to(text: str) -> RouteLookup:
        """Return the function from address to next hop of a reroute. Raises ValueError."""
        resolver = transport.resolver
        check = resolver.check if isinstance(resolver, LoopbackResolver) else None
        route = parse_next_hop(text, lambda: base.table, check=check)
        return route if development is None else without_release_host(route, development)

    base.spool.queue_admin.way_to = way_to

    async def prune(older_than_s: float | None, dry_run: bool) -> Mapping[str, Any]:
        age_s = base.settings.spool.keep if older_than_s is None else older_than_s
        age_s += advanced_us(base.clock) / 1e6
        pruned = await base.spool.maintenance.prune_many(age_s, dry_run=dry_run)
        before_us = now_at_least_us(base.clock) - int(age_s * 1_000_000)
        if pruned["ended"] and not dry_run:
            await prune_log(base.spool, base.store.restored, before_us=before_us)
        return {**pruned, "refused": await base.refusals.prune(before_us, dry_run=dry_run)}

    def unready() -> str:
        """Return the reason for a 503 of /readyz, "" if there is none."""
        reason = base.readiness() or transport.smtp_fault or base.spool.unready()
        reason = reason or transport.scheduler.unreadable() or base.pressure.paused()
        reason = reason or base.pressure.idle_fault
        trouble = base.root.trouble if base.holds_root else ""
        if reason or not trouble:
            return reason
        return f"the mail root {base.root.path} is missing: {trouble}"

    sources = api.MessageSources(
        base.journeys,
        base.spool,
        base.store.messages,
        mailbox_for=base.table.mailbox_for,
        received=development.received_content if development else None,
    )
    search = ContentSearch(
        base.store.messages, base.spool, sources.copies, lists=base.store.lists, clock=base.clock
    )
    base.journeys.places.contents = lambda query, s: search.begin(query, lookup_s=s).matching
    return api.ApiDependencies(
        journeys=base.journeys,
        queue_admin=base.spool.queue_admin,
        restored=base.store.restored,
        submissions=base.store.ready,
        stats=partial(queue_stats, base, transport),
        traffic=partial(_traffic, base),
        way_to=way_to,
        target_of=base.table.target_of,
        changes=base.changes,
        metrics=base.metrics,
        samples=base.samples,
        clock=base.clock,
        ready=unready,
        impaired=partial(_impairment, base, transport),
        prune=prune,
        pressure=base.pressure,
        development=development,
        events=events,
        unlock=base.sources.accounts.unlock,
        usage=partial(_usage, base),
        refusals=base.refusals,
        reload=base.reloader.request if base.reloader else None,
        configuration=base.sources.active.as_read if base.sources.active else dict,
        sources=sources,
        explain=lambda question: explainer_of(base, transport).explain(question),
        pauses=base.pauses,
        webhooks=webhooks,
        suppression=base.spool.suppression,
        is_own=base.table.is_own_anywhere,
    )


async def _traffic(base: Foundation, by: str, since_s: float) -> dict[str, Any]:
    """Return the JSON of `relay stats`. History older than spool.keep is not there."""
    since_us = base.clock.time_us() - int(min(since_s, base.settings.spool.keep) * 1e6)
    provider_of = base.sources.providers().provider_of
    counter = TrafficCounter(by, provider_of, after=first_id_after(since_us))
    await base.spool.maintenance.count_traffic(counter)
    groups = counter.bounces() if by == BOUNCES else counter.groups(_GROUPS_SHOWN)
    return {"by": by, "since": rfc3339(since_us), "groups": groups}


def _usage(base: Foundation, account: str, is_reset: bool) -> Sequence[AccountUsage]:
    """Return what an account has sent today; for "" return the busiest accounts. `is_reset` sets
    the counts of the account to 0 first. Raises UnknownUserError.
    """
    if not (account or is_reset):
        return base.usage.busiest(_BUSIEST)
    known = base.sources.accounts.by_address(account)
    name = known.address if known else account
    # local users of the machine and users of Dovecot have no account here
    if known is None and not base.usage.today(name).messages:
        raise UnknownUserError(account)
    if is_reset:
        base.usage.reset(name)
    return [base.usage.today(name)]


def _impairment(base: Foundation, transport: Transport) -> str:
    """Return what does not work although /readyz answers 200, "" if all works."""
    fault = base.root.fault
    refusing = f"the mail store refuses all writes: {fault}" if fault else ""
    without_node = map(without_node_text, base.spool.maintenance.stores_without_node)
    paused = base.pauses.why(Paused.DELIVERY)
    rules = base.sources.active.impaired() if base.sources.active else ""
    down = [f'the milter "{name}" is down: {why}' for name, why in base.milters.down.items()]
    checker = transport.acceptance.checker
    down += [checker.impaired()] if checker else []
    down += [f"the places of strangers are full at {address}" for address in transport.full]
    down += [f"full: {', '.join(REFUSALS.full)}"] if REFUSALS.full else []
    secrets, now_us = secret_states(base.settings.oauth), base.clock.time_us()
    tokens = base.tokens.impaired((x, y.fault) for x, y in secrets.items() if y.fault)
    down += [f'[[oauth]] "{x}": {text}' for x, y in secrets.items() if (text := y.warning(now_us))]
    reasons = (refusing, paused, base.readiness.impaired, rules, tokens, *without_node, *down)
    return "; ".join(filter(None, reasons))


def build_pages(base: Foundation, front_door: FrontDoor) -> Pages:
    """Return the pages. They exist in a development relay and with http.pages."""
    is_on = base.is_development or base.settings.http.pages
    if not is_on or front_door.programs is None:
        return Pages()
    from relay.front_door import pages  # noqa: PLC0415 - see above

    if base.sources.are_pages_open:
        access = pages.Access(everyone=_EVERYONE)
    else:
        logins = pages.Logins(
            base.sources.accounts,
            SystemClock(),  # an advanced clock would end all logins
            relay=f"{base.settings.hostname} {base.settings.state_dir}",
            public_url=base.settings.http.public_url,
        )
        access = pages.Access(logins=logins)
    live_views = pages.LiveViews(base.changes, base.clock)
    deletions = pages.PendingDeletions(base.clock)
    app = pages.create_app(
        front_door.means,
        access,
        live_views=live_views,
        deletions=deletions,
        graph=front_door.graph_means if base.is_development else None,
    )

    async def end() -> None:
        live_views.close()
        await deletions.close()

    return Pages(app, pages.PREFIXES, end)


def build_http_servers(base: Foundation, front_door: FrontDoor, site: Pages) -> list[HttpServer]:
    """Return the servers of http.listen if it is set, of the control socket, and of observe.metrics
    if it is set.
    """
    http = base.settings.http
    limits = ConnectionLimits(
        connections=min(CONNECTIONS_MAX, open_files_limit() // _FILES_PER_CONNECTION),
        proxy_networks=http.proxy_networks,
    )
    guard = partial(
        BrowserGuard,
        clock=base.clock,
        own_origins=_origins(http.public_url),
        allows_loopback_pages=base.sources.hosts is not None,
    )
    servers = []
    if front_door.programs is not None:
        everything: ASGIApp = guard(front_door.programs)
        if site.app is not None:
            # CORS does not apply to pages, not even in a development relay.
            for_people = partial(guard, allows_loopback_pages=False, may_be_linked=True)
            sign_in = dict.fromkeys(front_door.sign_in_paths, everything)
            pages_of_sign_in = for_people(front_door.programs)
            prefixes = dict.fromkeys(site.prefixes, for_people(site.app))
            if (further := front_door.further_api) is not None:
                # A browser adds a stored password to each request, also to those of foreign pages.
                for_tests = for_people(further, trusts_authorization=False)
                prefixes |= dict.fromkeys(FURTHER_PREFIXES, for_tests)
                prefixes["mcp"] = for_people(front_door.programs, trusts_authorization=False)
                prefixes["relay"] = guard(front_door.programs, trusts_authorization=False)
            everything = PathRouter(
                prefixes,
                by_rest=sign_in | dict.fromkeys(front_door.sign_in_pages, pages_of_sign_in),
                otherwise=everything,
                in_browser=for_people(site.app),
                others=front_door.prefixes,
            )
        if path := urlsplit(http.public_url).path:
            everything = BasePath(everything, path, clock=base.clock)
        servers.append(
            HttpServer(
                everything,
                http.listen,
                clock=base.clock,
                limits=limits,
                hosts=_hosts(base),
                certificate=base.certificates.http,
                tunnel_hosts=base.sources.tunnel_hosts,
            )
        )
    control_socket = Address(path=str(base.settings.control_socket))
    servers.append(HttpServer(front_door.control, [control_socket], clock=base.clock))
    metrics = base.settings.observe.metrics
    if metrics is not None and front_door.relay_v1 is not None:
        app = guard(front_door.relay_v1, trusts_authorization=not base.is_development)
        hosts = _hosts(base)
        servers.append(HttpServer(app, [metrics], clock=base.clock, limits=limits, hosts=hosts))
    return servers


def _hosts(base: Foundation) -> AllowedHosts | None:
    hosts = base.sources.hosts
    if hosts is None:
        return None
    public_host = urlsplit(base.settings.http.public_url).hostname
    return replace(hosts, names=hosts.names | frozenset(filter(None, [public_host])))


def _origins(url: str) -> list[str]:
    """Return the origin of a URL in a list; an empty list for ""."""
    parts = urlsplit(url)
    return [f"{parts.scheme}://{parts.netloc}"] if url else []
