"""The web server with the MTA-STS policies of all domains: HTTPS on one loopback port.

It shows the certificate of the name that the client asks for. See RFC 8461 3.2 and 3.3.
"""

import asyncio
import re
import ssl
from collections.abc import Callable

from relay.base.socket_address import Address
from relay.base.sockets import open_listener
from relay.development.internet.host_certificates import HostCertificates
from relay.development.internet.scenario import RemoteDomain

HOST = "127.0.0.1"
WEB_NAME = "mta-sts."  # and a domain: the name of its web server
RECORD_NAME = "_mta-sts."  # and a domain: the name of its TXT record
# a policy changes with its scenario only, and no policy of an earlier one is kept
RECORD = '"v=STSv1; id=1;"'
_MAX_AGE_S = 86_400
_BACKLOG = 64
_CONNECTIONS_MAX = 64
_HEADER_BYTES_MAX = 16 * 1024
_REQUEST_S = 10.0
_request = re.compile(
    rb"GET /\.well-known/mta-sts\.txt HTTP/1\.[01]\r\n(?:[^\r\n]+\r\n)*?"
    rb"(?i:host): *mta-sts\.([a-z0-9._-]+)(?::[0-9]+)? *\r\n"
).match


def policy_of(domain: RemoteDomain) -> str:
    """Return the policy file of a domain, "" for none."""
    if domain.mta_sts is None:
        return ""
    lines = ["version: STSv1", f"mode: {domain.mta_sts}", f"max_age: {_MAX_AGE_S}"]
    return "\r\n".join([*lines, *(f"mx: {host.host}" for host in domain.hosts), ""])


class PolicyServer:
    """Answers with the policy of a domain between start() and stop(); `port` is its own before."""

    def __init__(
        self, certificates: HostCertificates, domain_of: Callable[[str], RemoteDomain | None]
    ) -> None:
        """Bind the port; requests wait for start(). Raises OSError."""
        self.connections: set[asyncio.StreamWriter] = set()
        self._tls: ssl.SSLContext = certificates.for_names(WEB_NAME)
        self._domain_of = domain_of
        self._listener = open_listener(Address(HOST, 0), backlog=_BACKLOG)
        self.port = self._listener.address.port
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to answer."""
        [sock] = self._listener.sockets
        self._server = await asyncio.start_server(
            self._serve, sock=sock, ssl=self._tls, limit=_HEADER_BYTES_MAX
        )

    def stop(self) -> None:
        """Close everything; also where there was no start()."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for connection in list(self.connections):
            connection.transport.abort()

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request, whose header is complete."""
        match = _request(request)
        domain = self._domain_of(match[1].decode()) if match else None
        body = policy_of(domain) if domain is not None else ""
        status = "200 OK" if body else "404 Not Found"
        fields = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
        return f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n{body}".encode()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the one request of a connection."""
        self.connections.add(writer)
        try:
            if len(self.connections) <= _CONNECTIONS_MAX:
                async with asyncio.timeout(_REQUEST_S):  # real time: a client
                    writer.write(self.answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self.connections.discard(writer)
            writer.close()
