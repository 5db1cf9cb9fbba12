"""Routing: from an address to its next hop (step 5), and from a next hop to its hosts (step 6).

`route_table` finds the next hop or the rejection of an address; it reads password files once, when
it is created. `resolver` finds the hosts with DNS and is the only user of the network. It returns
every answer of a name server as a value; only a definite one is a permanent failure.
"""

from relay.routing.dns_client import name_servers_answer
from relay.routing.mx_hosts import (
    Host,
    Hosts,
    MailLoop,
    NoAddress,
    NoSuchDomain,
    NullMx,
    Resolution,
    TemporaryFailure,
    Unresolved,
    outcome_of,
)
from relay.routing.resolver import NoResolver, Resolver
from relay.routing.route_table import (
    HopLimits,
    HopTls,
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RouteTable,
    RoutingResult,
)

__all__ = [
    "HopLimits",
    "HopTls",
    "Host",
    "Hosts",
    "InvalidRecipient",
    "LocalRecipient",
    "MailLoop",
    "NoAddress",
    "NoResolver",
    "NoSuchDomain",
    "NullMx",
    "RemoteRecipient",
    "Resolution",
    "Resolver",
    "RouteTable",
    "RoutingResult",
    "TemporaryFailure",
    "Unresolved",
    "name_servers_answer",
    "outcome_of",
]
