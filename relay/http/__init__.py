"""The HTTP server, requests and responses that graph and api share, and bearer tokens.

The server makes an HttpRequest of the octets of a client, and a response of what the handler
returns or raises. Bodies, headers, time, connections and memory are bounded for every request. An
unexpected exception becomes a 500 without internals; its traceback is logged with the request id.
"""

from relay.http.connection_limits import CONNECTIONS_MAX, ConnectionLimits
from relay.http.errors import ApiError, service_unavailable
from relay.http.gateway import Gateway, PathRouter, RequestLimits, json_response
from relay.http.http_request import ClientDisconnectedError, HttpRequest, bearer_account
from relay.http.http_server import HttpServer
from relay.http.protocol import AllowedHosts

__all__ = [
    "CONNECTIONS_MAX",
    "AllowedHosts",
    "ApiError",
    "ClientDisconnectedError",
    "ConnectionLimits",
    "Gateway",
    "HttpRequest",
    "HttpServer",
    "PathRouter",
    "RequestLimits",
    "bearer_account",
    "json_response",
    "service_unavailable",
]
