"""Usable hosts: which hosts a next hop has, and with which TLS. Delivery, `explain` and the
verification of recipients ask here.

The steps are find_hosts(), with_policy(), with_tls(); usable_hosts() takes all of them.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec.structs import replace

from relay.base.message import tls_policy
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass
from relay.base.socket_address import is_loopback
from relay.transport.routing import mx_hosts
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import HopOptions

OTHER_FAMILY = "no address of the family of source_address"
# Returns the hosts of a next hop in the order to try them, or why there are none: a method of
# Resolver or StsPolicies.
Resolve = Callable[[NextHop], Awaitable[mx_hosts.Resolution]]


async def usable_hosts(
    resolve: Resolve, table: RouteTable, next_hop: NextHop, *, demand: tls_policy.TlsDemand = ""
) -> mx_hosts.Resolution:
    """Return the hosts of a next hop, each with its TLS."""
    via, by = table.options_for(next_hop), table.tls_demanded_by(next_hop)
    lookup = await with_policy(await find_hosts(resolve, next_hop, via), by, demand)
    return with_tls(lookup, via, by, demand=demand)


async def find_hosts(resolve: Resolve, next_hop: NextHop, via: HopOptions) -> mx_hosts.Resolution:
    """Return the hosts of a next hop. MX hosts, and hosts whose route demands DANE, come with their
    TLSA records.
    """
    lookup = await resolve(next_hop)
    if not isinstance(lookup, mx_hosts.Hosts) or lookup.find_tlsa is None:
        return lookup
    must = via.tls.level == "dane"
    if not must and not lookup.mx.hosts:
        return lookup
    domains = lookup.mx.domains if lookup.mx.hosts else (next_hop.host,)
    hosts = await lookup.find_tlsa(lookup.hosts, must=must, domains=domains)
    return replace(lookup, hosts=hosts)


async def with_policy(
    lookup: mx_hosts.Resolution, by: str, demand: tls_policy.TlsDemand = ""
) -> mx_hosts.Resolution:
    """Return hosts with the MTA-STS policy of their domain. Wait for a fetch only if the policy may
    count.
    """
    if not isinstance(lookup, mx_hosts.Hosts) or lookup.sts.fetch is None:  # nearly always
        return lookup
    if demand == tls_policy.OPTIONAL or (
        by != tls_policy.CONFIGURATION and demand != tls_policy.REQUIRETLS
    ):
        return lookup
    return replace(lookup, sts=await lookup.sts.fetch())


def with_tls(
    lookup: mx_hosts.Resolution, via: HopOptions, by: str, *, demand: tls_policy.TlsDemand = ""
) -> mx_hosts.Resolution:
    """Return the hosts of a next hop, each with its TLS. `by` comes from
    RouteTable.tls_demanded_by(), `demand` from the message. A Unix socket fulfils each demand: it
    does not leave the machine.
    """
    if not isinstance(lookup, mx_hosts.Hosts):
        return lookup
    decided = {
        host.name: tls_policy.decide_tls(
            host.name,
            via.tls,
            by=by,
            has_login=_sends_login(host, via),
            sts=lookup.sts,
            tlsa=host.tlsa,
            demand=demand if host.port else "",
            vouched=via.requiretls,
        )
        for host in lookup.hosts
    }
    hosts = tuple([replace(host, tls=decided[host.name]) for host in lookup.hosts])
    if not any(decision.skipped for decision in decided.values()):  # nearly always
        return replace(lookup, hosts=hosts)
    kept = tuple(host for host in hosts if not decided[host.name].skipped)
    skipped = tuple(
        replace(host, skipped=decided[host.name].skipped) if host.name in decided else host
        for host in lookup.mx.hosts
    )
    mx = replace(lookup.mx, hosts=skipped)
    if kept:
        troubles = (host.tlsa.trouble for host in lookup.hosts if demand == tls_policy.REQUIRETLS)
        return replace(lookup, hosts=kept, mx=mx, unknown=next(filter(None, troubles), ""))
    whys = "; ".join(f"{name}: {decided[name].skipped}" for name in sorted(decided))
    text = f"no host may be used: {whys}"
    if demand == tls_policy.REQUIRETLS:
        unknown = [lookup.sts.trouble, lookup.sts.unasked]
        unknown += [host.tlsa.trouble for host in lookup.hosts]
        if not (why := next(filter(None, unknown), "")):
            return mx_hosts.Unprotected(", ".join(sorted(decided)), mx)
        text = f"REQUIRETLS needs what the domain publishes, which is not known now: {why}"
    # RFC 8461 5.1, RFC 7672 2.1.2
    return mx_hosts.TemporaryFailure(text, "4.7.5", mx, DeferralClass.TLS)


def _sends_login(host: mx_hosts.Host, via: HopOptions) -> bool:
    """Whether a login goes to another machine, whatever addresses the DNS gives the host."""
    return via.login is not None and host.name != "localhost" and not is_loopback(host.name)


def policy_of(host: mx_hosts.Host) -> tls_policy.TlsPolicy:
    """Return the policy of a host that has its TLS."""
    assert host.tls is not None
    return host.tls.policy


def of_family(addresses: Sequence[str], source: str) -> Sequence[str]:
    """Return the addresses that can be reached from a source address; "": the system chooses."""
    if not source:
        return addresses
    return [address for address in addresses if (":" in address) == (":" in source)]


def mx_of(lookup: mx_hosts.Resolution, source: str) -> mx_hosts.MxAnswer:
    """Return the MX answer of a lookup, with what is skipped because of a source address."""
    mx = (
        mx_hosts.NO_MX if isinstance(lookup, mx_hosts.NullMx | mx_hosts.NoSuchDomain) else lookup.mx
    )
    if not source or not isinstance(lookup, mx_hosts.Hosts):
        return mx
    out = {host.name for host in lookup.hosts if not of_family(host.addresses, source)}
    hosts = [replace(host, skipped=OTHER_FAMILY) if host.name in out else host for host in mx.hosts]
    return replace(mx, hosts=tuple(hosts))
