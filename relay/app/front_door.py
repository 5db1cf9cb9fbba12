"""Build the front door (step 1, sign-in, /relay/v1), the pages, and the servers that have them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from msgspec.structs import replace
from starlette.types import ASGIApp

from relay import api, graph, pages
from relay.accounts.access_tokens import AccessTokens, token_key
from relay.accounts.account import Role
from relay.api.content_search import ContentSearch
from relay.api.dependencies import Principal
from relay.api.release import without_release_host
from relay.app.configuration import parse_next_hop
from relay.app.foundation import Foundation
from relay.app.pressure_monitor import open_files_limit
from relay.clock import SystemClock, advanced_us, now_at_least_us
from relay.http.authentication import HttpAuthentication
from relay.http.base_path import BasePath
from relay.http.browsers import BrowserGuard
from relay.http.connection_limits import CONNECTIONS_MAX, ConnectionLimits
from relay.http.gateway import Gateway, PathRouter
from relay.http.http_server import HttpServer
from relay.http.protocol import AllowedHosts
from relay.http.sign_in import SIGN_IN_PATHS, create_sign_in_app
from relay.routing.resolver import LoopbackResolver, Resolver
from relay.settings.tree import Address
from relay.spool.queue_commands import RouteLookup

_FILES_PER_CONNECTION = 4  # HTTP may use a quarter: SMTP, databases and messages need the rest


@dataclass(frozen=True)
class FrontDoor:
    """What programs reach by HTTP."""

    graph: Gateway  # the Graph API
    relay_v1: ASGIApp  # /relay/v1, health and metrics
    programs: ASGIApp  # both, and sign-in, by path
    control: ASGIApp  # /relay/v1 for run/control.sock: every client is an operator
    means: api.ApiDependencies  # what /relay/v1 and the pages show and change
    events: api.EventStreams  # that are open


@dataclass(frozen=True)
class Pages:
    """What people reach by HTTP."""

    app: ASGIApp | None  # None: [http] pages is off
    live_views: pages.LiveViews  # that are open


def build_front_door(base: Foundation, resolver: Resolver | LoopbackResolver) -> FrontDoor:
    """Return the applications; `resolver` says whether mail may be rerouted to a host."""
    settings, accounts = base.settings, base.sources.accounts
    tokens = AccessTokens(token_key(settings.state_dir), base.clock)
    authentication = HttpAuthentication(
        accounts, tokens, realm=settings.hostname, anonymous=settings.http.anonymous
    )
    events = api.EventStreams(base.feed, changes=base.changes, clock=base.clock)
    means = _means(base, resolver, events)
    gateway = graph.create_app(
        base.store, authentication, clock=base.clock, hostname=settings.hostname,
        http=settings.http, crash=base.crash, ready=base.readiness, pressure=base.pressure,
    )  # fmt: skip
    sign_in = create_sign_in_app(
        accounts, tokens, clock=base.clock, hostname=settings.hostname,
        public_url=settings.http.public_url,
    )  # fmt: skip
    relay_v1 = api.create_app(means, authentication)
    before_graph = base.sources.before_graph
    versions: dict[str, ASGIApp] = dict.fromkeys(
        ("v1.0", "beta"), before_graph(gateway, authentication) if before_graph else gateway
    )
    programs = PathRouter(
        versions, by_rest=dict.fromkeys(SIGN_IN_PATHS, sign_in), otherwise=relay_v1
    )
    control = api.create_control_app(means)
    return FrontDoor(gateway, relay_v1, programs, control=control, means=means, events=events)


def _means(
    base: Foundation, resolver: Resolver | LoopbackResolver, events: api.EventStreams
) -> api.ApiDependencies:
    development = base.sources.development

    def way_to(text: str) -> RouteLookup:
        """Return the function from address to next hop of a reroute. Raises ValueError."""
        check = resolver.check if isinstance(resolver, LoopbackResolver) else None
        route = parse_next_hop(text, lambda: base.table, check=check)
        return route if development is None else without_release_host(route, development)

    async def prune(older_than_s: float | None, dry_run: bool) -> Mapping[str, Any]:
        age_s = base.settings.spool.keep if older_than_s is None else older_than_s
        age_s += advanced_us(base.clock) / 1e6
        pruned = await base.spool.maintenance.prune_many(age_s, dry_run=dry_run)
        before_us = now_at_least_us(base.clock) - int(age_s * 1_000_000)
        return {**pruned, "refused": await base.refusals.prune(before_us, dry_run=dry_run)}

    def unready() -> str:
        """Return the reason for a 503 of /readyz, "" if there is none."""
        reason = base.readiness() or base.spool.health()
        if not reason and (trouble := base.root.trouble):
            return f"the mail root {base.root.path} is missing: {trouble}"
        return reason

    def impaired() -> str:
        """Return what does not work although /readyz is 200, "" if there is nothing."""
        fault = base.root.fault
        refusing = f"the mail store refuses all writes: {fault}" if fault else ""
        damaged = "damaged-keys" if base.store.keys.damage else ""
        return "; ".join(filter(None, (refusing, damaged)))

    sources = api.MessageSources(
        base.journeys,
        base.spool,
        base.store.messages,
        mailbox_for=base.table.mailbox_for,
        received=development.received_content if development else None,
    )
    base.journeys.places.contents = ContentSearch(
        base.store.messages, base.spool, sources.copies, clock=base.clock,
        received=development.received_content if development else None,
    )  # fmt: skip
    return api.ApiDependencies(
        journeys=base.journeys, queue_admin=base.spool.queue_admin, restored=base.store.restored,
        submissions=base.store.ready,
        stats=base.spool.stats,
        way_to=way_to, changes=base.changes, metrics=base.metrics, history=base.history,
        clock=base.clock, ready=unready, impaired=impaired, prune=prune, pressure=base.pressure,
        development=development, events=events, unlock=base.sources.accounts.unlock,
        refusals=base.refusals,
        sources=sources,
    )  # fmt: skip


def build_pages(base: Foundation, front_door: FrontDoor) -> Pages:
    """Return the pages, which are on in a development relay, or by http.pages."""
    live_views = pages.LiveViews(base.changes, base.clock)
    if not base.is_development and not base.settings.http.pages:
        return Pages(None, live_views)
    app = pages.create_app(front_door.means, _pages_access(base), live_views=live_views)
    return Pages(app, live_views)


def _pages_access(base: Foundation) -> pages.Access:
    if base.sources.are_pages_open:
        return pages.Access(everyone=Principal(name="development", role=Role.OPERATE))
    logins = pages.Logins(
        base.sources.accounts, SystemClock(),  # an advanced clock would end all logins
        relay=f"{base.settings.hostname} {base.settings.state_dir}",
        public_url=base.settings.http.public_url,
    )  # fmt: skip
    return pages.Access(logins=logins)


def build_http_servers(base: Foundation, front_door: FrontDoor, site: Pages) -> list[HttpServer]:
    """Return those of http.listen, the control socket, and observe.metrics if configured."""
    http = base.settings.http
    limits = ConnectionLimits(
        connections=min(CONNECTIONS_MAX, open_files_limit() // _FILES_PER_CONNECTION),
        proxy_networks=http.proxy_networks,
    )
    guard = partial(
        BrowserGuard, clock=base.clock, own_origins=_origins(http.public_url),
        allows_loopback_pages=base.sources.hosts is not None,
    )  # fmt: skip
    everything: ASGIApp = guard(front_door.programs)
    if site.app is not None:
        # CORS does not apply to pages, not even in a development relay.
        guarded = guard(site.app, allows_loopback_pages=False, may_be_linked=True)
        everything = PathRouter(
            dict.fromkeys(pages.PREFIXES, guarded),
            by_rest=dict.fromkeys(SIGN_IN_PATHS, everything), otherwise=everything,
        )  # fmt: skip
    if path := urlsplit(http.public_url).path:
        everything = BasePath(everything, path, clock=base.clock)
    servers = [
        HttpServer(
            everything, http.listen, limits=limits, hosts=_hosts(base),
            certificate=base.certificates.http,
        ),
        HttpServer(front_door.control, [Address(path=str(base.settings.control_socket))]),
    ]  # fmt: skip
    if (metrics := base.settings.observe.metrics) is not None:
        servers.append(HttpServer(guard(front_door.relay_v1), [metrics], limits=limits))
    return servers


def _hosts(base: Foundation) -> AllowedHosts | None:
    hosts = base.sources.hosts
    if hosts is None:
        return None
    public_host = urlsplit(base.settings.http.public_url).hostname
    return replace(hosts, names=hosts.names | frozenset(filter(None, [public_host])))


def _origins(url: str) -> list[str]:
    """Return the origin of a URL, nothing for ""."""
    parts = urlsplit(url)
    return [f"{parts.scheme}://{parts.netloc}"] if url else []
