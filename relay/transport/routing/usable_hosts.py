"""Usable hosts: which hosts a next hop has, and with which TLS. Delivery, `explain` and the
verification of recipients ask here.

The steps are find_hosts(), with_policy(), with_tls(); usable_hosts() takes all of them.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass
from relay.base.message.tls_policy import (
    CONFIGURATION,
    OPTIONAL,
    REQUIRETLS,
    TlsDemand,
    TlsPolicy,
    decide_tls,
)
from relay.base.socket_address import is_loopback
from relay.transport.routing.mx_hosts import (
    NO_MX,
    Host,
    Hosts,
    MxAnswer,
    NoSuchDomain,
    NullMx,
    Resolution,
    TemporaryFailure,
    Unprotected,
)
from relay.transport.routing.route_table import HopOptions, RouteTable

OTHER_FAMILY = "no address of the family of source_address"
# Returns the hosts of a next hop in the order to try them, or why there are none: of Resolver, or
# of StsPolicies.
Resolve = Callable[[NextHop], Awaitable[Resolution]]


async def usable_hosts(
    resolve: Resolve, table: RouteTable, next_hop: NextHop, *, demand: TlsDemand = ""
) -> Resolution:
    """Return the hosts of a next hop, each with its TLS."""
    via, by = table.options_for(next_hop), table.tls_demanded_by(next_hop)
    found = await with_policy(await find_hosts(resolve, next_hop, via), by, demand)
    return with_tls(found, via, by, demand=demand)


async def find_hosts(resolve: Resolve, next_hop: NextHop, via: HopOptions) -> Resolution:
    """Return the hosts of a next hop, with their TLSA records where these count: those of MX hosts,
    and of others whose route demands DANE.
    """
    found = await resolve(next_hop)
    if not isinstance(found, Hosts) or found.find_tlsa is None:
        return found
    must = via.tls.level == "dane"
    if not must and not found.mx.hosts:
        return found
    domains = found.mx.domains if found.mx.hosts else (next_hop.host,)
    hosts = await found.find_tlsa(found.hosts, must=must, domains=domains)
    return replace(found, hosts=hosts)


async def with_policy(found: Resolution, by: str, demand: TlsDemand = "") -> Resolution:
    """Return hosts with the MTA-STS policy of their domain; wait for it if it has to be fetched and
    may count.
    """
    if not isinstance(found, Hosts) or found.sts.fetch is None:  # nearly always
        return found
    if demand == OPTIONAL or (by != CONFIGURATION and demand != REQUIRETLS):
        return found
    return replace(found, sts=await found.sts.fetch())


def with_tls(found: Resolution, via: HopOptions, by: str, *, demand: TlsDemand = "") -> Resolution:
    """Return the hosts of a next hop, each with its TLS; `by` is RouteTable.tls_demanded_by(),
    `demand` that of the message. A Unix socket fulfils each demand: it does not leave the machine.
    """
    if not isinstance(found, Hosts):
        return found
    decided = {
        one.name: decide_tls(
            one.name,
            via.tls,
            by=by,
            has_login=_sends_login(one, via),
            sts=found.sts,
            tlsa=one.tlsa,
            demand=demand if one.port else "",
            vouched=via.requiretls,
        )
        for one in found.hosts
    }
    hosts = tuple([replace(one, tls=decided[one.name]) for one in found.hosts])
    if not any(one.skipped for one in decided.values()):  # nearly always
        return replace(found, hosts=hosts)
    kept = tuple(one for one in hosts if not decided[one.name].skipped)
    skipped = tuple(
        replace(one, skipped=decided[one.name].skipped) if one.name in decided else one
        for one in found.mx.hosts
    )
    mx = replace(found.mx, hosts=skipped)
    if kept:
        troubles = (one.tlsa.trouble for one in found.hosts if demand == REQUIRETLS)
        return replace(found, hosts=kept, mx=mx, unknown=next(filter(None, troubles), ""))
    whys = "; ".join(f"{name}: {decided[name].skipped}" for name in sorted(decided))
    text = f"no host may be used: {whys}"
    if demand == REQUIRETLS:
        unknown = [found.sts.trouble, found.sts.unasked, *(one.tlsa.trouble for one in found.hosts)]
        if not (why := next(filter(None, unknown), "")):
            return Unprotected(", ".join(sorted(decided)), mx)
        text = f"REQUIRETLS needs what the domain publishes, which is not known now: {why}"
    # RFC 8461 5.1, RFC 7672 2.1.2
    return TemporaryFailure(text, "4.7.5", mx, DeferralClass.TLS)


def _sends_login(host: Host, via: HopOptions) -> bool:
    """Whether a login goes to another machine, whatever addresses the DNS gives the host."""
    return via.login is not None and host.name != "localhost" and not is_loopback(host.name)


def policy_of(host: Host) -> TlsPolicy:
    """Return the policy of a host that has its TLS."""
    assert host.tls is not None
    return host.tls.policy


def of_family(addresses: Sequence[str], source: str) -> Sequence[str]:
    """Return the addresses that can be reached from a source address; "": the system chooses."""
    if not source:
        return addresses
    return [address for address in addresses if (":" in address) == (":" in source)]


def mx_of(found: Resolution, source: str) -> MxAnswer:
    """Return the MX answer of a lookup, with what is skipped because of a source address."""
    mx = NO_MX if isinstance(found, NullMx | NoSuchDomain) else found.mx
    if not source or not isinstance(found, Hosts):
        return mx
    other = {host.name for host in found.hosts if not of_family(host.addresses, source)}
    return replace(
        mx,
        hosts=tuple(
            replace(each, skipped=OTHER_FAMILY) if each.name in other else each for each in mx.hosts
        ),
    )
