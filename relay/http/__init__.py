"""What graph and web share of HTTP, and the server that carries both.

On the path: in front of step 1: a client's bytes become a Call, a bearer token an Account,
and what a room returns or raises becomes an answer with its request id.
Touches: sockets; accounts through their Protocol.
Promises: bodies, headers, time and memory are bounded for every request; an unexpected fault is a
500 that says nothing of itself; no client can stall the daemon.
"""

from relay.http.connection_limits import CONNECTIONS_MAX, ConnectionLimits
from relay.http.errors import ApiError, try_later
from relay.http.gateway import Dispatch, Gateway, Limits, json_response
from relay.http.http_request import Call, ClientGoneError, bearer_account
from relay.http.http_server import HttpServer
from relay.http.protocol import HostNames

__all__ = [
    "CONNECTIONS_MAX",
    "ApiError",
    "Call",
    "ClientGoneError",
    "ConnectionLimits",
    "Dispatch",
    "Gateway",
    "HostNames",
    "HttpServer",
    "Limits",
    "bearer_account",
    "json_response",
    "try_later",
]
