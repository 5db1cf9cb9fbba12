"""Routing: address to next hop (step 5, the route table) and next hop to hosts (step 6, the DNS).

Only Resolver uses the network. It never raises for what a name server answers, and only a definite
answer is permanent. The route table reads password files once, when it is made.
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
