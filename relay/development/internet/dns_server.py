"""A DNS server on one loopback port, UDP and TCP, that answers what a function returns.

It is authoritative for every name. CNAMEs are followed as a recursive server would do, and answers
that do not fit into a datagram are truncated. A query that cannot be read is ignored. Connections,
their number and their idle time are bounded. See RFC 1035, RFC 2308 (negative answers), RFC 6891
(EDNS), RFC 7766 (TCP).
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataset
import dns.rdatatype
import dns.rrset

from relay.base.socket_address import Address
from relay.base.sockets import Listener, open_datagram_socket, open_listener
from relay.base.task_set import TaskSet

Records = Sequence[str] | str
NO_NAME = "NXDOMAIN"
NO_REPLY = "TIMEOUT"

_HOST = "127.0.0.1"
_CNAMES_MAX = 8
_CONNECTIONS_MAX = 64
_IDLE_S = 10.0
_BACKLOG = 64
_PORTS_TRIED = 50
_DATAGRAM_BYTES_MIN = 512  # RFC 1035 4.2.1: what a client without EDNS takes
_MESSAGE_BYTES_MAX = 65_535


@dataclass(eq=False, repr=False)
class DnsServer:
    """Answers between start() and stop(); `ttl_s` and `negative_ttl_s` go into answers.

    `records` returns the records of a name and a type, as text; none if the name has others. A word
    instead is an RCODE ("NXDOMAIN", "SERVFAIL", "REFUSED"), or "TIMEOUT" for no answer. The name is
    in lower case, without the final dot. `address` is a free port of 127.0.0.1, the same for UDP
    and TCP; it is bound at once, which raises OSError. What it says of a name that `is_signed` has
    AD, as if it had validated it (RFC 6840 5.7).
    """

    records: Callable[[str, str], Records]
    ttl_s: int = 300
    negative_ttl_s: int = 60
    is_signed: Callable[[str], bool] = lambda _name: False

    def __post_init__(self) -> None:
        self._listener, self._datagrams = _bound_pair()
        self.address = self._listener.address
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._connections = TaskSet()

    async def start(self) -> None:
        """Begin to answer."""
        loop = asyncio.get_running_loop()
        made = await loop.create_datagram_endpoint(lambda: _Datagrams(self), sock=self._datagrams)
        self._udp = made[0]
        [sock] = self._listener.sockets
        self._tcp = await asyncio.start_server(self._connected, sock=sock)

    async def stop(self) -> None:
        """Close the sockets and the connections."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        self.close()
        await self._connections.end()

    def close(self) -> None:
        """Release the port, in place of stop() where there was no start()."""
        self._listener.close()
        self._datagrams.close()

    def answer(self, data: bytes, *, tcp: bool) -> bytes:
        """Return the response to a query, in wire format; b"" for none."""
        try:
            query = dns.message.from_wire(data)
        except (dns.exception.DNSException, ValueError, OSError, struct.error):
            return b""
        if query.flags & dns.flags.QR or len(query.question) != 1:
            return b""
        [question] = query.question
        response = dns.message.make_response(query, recursion_available=True)
        try:
            if not self._fill(response, question.name, dns.rdatatype.to_text(question.rdtype)):
                return b""
        except dns.exception.DNSException:  # the zone's text is no record
            response.set_rcode(dns.rcode.SERVFAIL)
        is_failure = response.rcode() == dns.rcode.SERVFAIL
        if query.flags & dns.flags.AD and not is_failure and self.is_signed(_key(question.name)):
            response.flags |= dns.flags.AD
        if not response.answer:
            response.authority.append(self._soa(question.name))
        limit = _MESSAGE_BYTES_MAX if tcp else max(_DATAGRAM_BYTES_MIN, query.payload)
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            truncated = dns.message.make_response(query, recursion_available=True)
            truncated.flags |= dns.flags.TC
            return truncated.to_wire()

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: str) -> bool:
        """Put the answer into `response`; return whether there is one."""
        for _ in range(_CNAMES_MAX):
            key = _key(name)
            records = self.records(key, kind)
            if records == NO_REPLY:
                return False
            if isinstance(records, str):
                response.set_rcode(dns.rcode.from_text(records))
                return True
            if records:
                response.answer.append(self._rrset(name, kind, records))
                return True
            alias = self.records(key, "CNAME")
            if isinstance(alias, str) or not alias:
                return True
            response.answer.append(self._rrset(name, "CNAME", alias))
            name = dns.name.from_text(alias[0])
        return True

    def _rrset(self, name: dns.name.Name, kind: str, texts: Sequence[str]) -> dns.rrset.RRset:
        records = dns.rdataset.from_text_list(
            "IN", kind, self.ttl_s, texts, origin=dns.name.root, relativize=False
        )
        return dns.rrset.from_rdata_list(name, self.ttl_s, list(records))

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        soa = f"ns.test. root.test. 1 3600 600 86400 {self.negative_ttl_s}"
        return dns.rrset.from_text(name, 3600, "IN", "SOA", soa)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.start(self._converse(reader, writer))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if len(self._connections) <= _CONNECTIONS_MAX:
                await self._answer_all(reader, writer)
        except (TimeoutError, OSError, EOFError):
            pass  # an idle client as well
        finally:
            writer.close()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(_IDLE_S):  # real time: a client
                size = int.from_bytes(await reader.readexactly(2), "big")
                query = await reader.readexactly(size)
            if answer := self.answer(query, tcp=True):
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(_IDLE_S):  # real time: a client
                    await writer.drain()


def _key(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _bound_pair() -> tuple[Listener, socket.socket]:
    """Bind one port for both; the system may give a TCP port that is in use for UDP."""
    for _ in range(_PORTS_TRIED):
        listener = open_listener(Address(_HOST, 0), backlog=_BACKLOG)
        try:
            return listener, open_datagram_socket(Address(_HOST, listener.address.port))
        except OSError:
            listener.close()
    raise OSError(errno.EADDRINUSE, "no loopback port is free for both UDP and TCP")


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, client: tuple[str, int]) -> None:
        if answer := self._server.answer(data, tcp=False):
            with suppress(OSError):
                self._transport.sendto(answer, client)
