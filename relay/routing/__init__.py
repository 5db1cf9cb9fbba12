"""Routing: step 5 (address → next hop, a table) and step 6 (next hop → hosts, the DNS).

Touches: the network through the resolver alone, and password files once, when the table is made.
Promises: the table never waits; the resolver never raises for what a name server says, and never
takes silence for a "no": only a definite answer is permanent.
"""

from relay.routing.dns_client import name_servers_answer
from relay.routing.mx_hosts import (
    Host,
    Hosts,
    Looped,
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
    Examination,
    HopLimits,
    HopTls,
    InvalidRecipient,
    LocalRecipient,
    RemoteRecipient,
    RouteTable,
)

__all__ = [
    "Examination",
    "HopLimits",
    "HopTls",
    "Host",
    "Hosts",
    "InvalidRecipient",
    "LocalRecipient",
    "Looped",
    "NoAddress",
    "NoResolver",
    "NoSuchDomain",
    "NullMx",
    "RemoteRecipient",
    "Resolution",
    "Resolver",
    "RouteTable",
    "TemporaryFailure",
    "Unresolved",
    "name_servers_answer",
    "outcome_of",
]
