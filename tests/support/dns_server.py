"""A real DNS server on a free loopback port, UDP and TCP, that answers from a dict.

    with DnsServer({"example.net": {"MX": ["10 mx.example.net"]}, "mx.example.net": {"A": ["127.0.0.1"]}}) as dns:
        Resolver(nameservers=(dns.address,), ...)

The zone may be changed while it runs. A name's value is a mapping type -> records, or one word for
every type: NXDOMAIN, SERVFAIL, REFUSED (any RCODE) or TIMEOUT (no answer at all). The word may also
stand for one type: {"MX": "SERVFAIL"}. A name that is not in the zone does not exist. CNAMEs are
followed as a recursive server would.
"""

import asyncio
import contextlib
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Self

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataset
import dns.rdatatype
import dns.rrset

from relay.settings.tree import Address

Records = Sequence[str] | str
Zone = dict[str, Mapping[str, Records] | str]

_CNAMES_MAX = 8


class DnsServer:
    """Authoritative for everything. `queries` counts (name, type); `ttl_s` and `negative_ttl_s` go into answers."""

    def __init__(self, zone: Zone | None = None, *, ttl_s: int = 300, negative_ttl_s: int = 60):
        self.zone: Zone = dict(zone or {})
        self.ttl_s = ttl_s
        self.negative_ttl_s = negative_ttl_s
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries = 0
        self._asked = threading.Condition()
        self._tcp, self._udp = _bound_pair(self)
        self.port: int = self._tcp.server_address[1]
        self.address = Address("127.0.0.1", self.port)

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            for server in (self._tcp, self._udp)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *why: object) -> None:
        for server in (self._tcp, self._udp):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def asked(self, name: str, kind: str) -> int:
        """How often `name` was asked for records of type `kind`."""
        return self.queries[name, kind]

    async def until_asked(self, name: str, kind: str) -> None:
        """Wait until `name` has been asked for, ten seconds at most."""

        def wait() -> bool:
            with self._asked:
                return self._asked.wait_for(lambda: self.asked(name, kind) > 0, timeout=10)

        assert await asyncio.to_thread(wait), f"nobody asked for {name} {kind}"

    def answer(self, data: bytes, *, tcp: bool) -> bytes | None:
        """The response to one query in wire format; None where the zone says TIMEOUT."""
        query = dns.message.from_wire(data)
        name = query.question[0].name
        kind = dns.rdatatype.to_text(query.question[0].rdtype)
        with self._asked:
            self.queries[_key(name), kind] += 1
            self.tcp_queries += tcp
            self._asked.notify_all()
        response = dns.message.make_response(query, recursion_available=True)
        if not self._fill(response, name, kind):
            return None
        if not response.answer:
            response.authority.append(self._soa(name))
        limit = 65535 if tcp else max(512, query.payload)
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            truncated = dns.message.make_response(query, recursion_available=True)
            truncated.flags |= dns.flags.TC
            return truncated.to_wire()

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: str) -> bool:
        for _ in range(_CNAMES_MAX):
            entry = self.zone.get(_key(name), "NXDOMAIN")
            records = entry if isinstance(entry, str) else entry.get(kind, ())
            if isinstance(records, str):
                if records == "TIMEOUT":
                    return False
                response.set_rcode(dns.rcode.from_text(records))
                return True
            if records:
                response.answer.append(self._records(name, kind, records))
                return True
            alias = entry.get("CNAME") if isinstance(entry, Mapping) else None
            if not alias or isinstance(alias, str):
                return True
            response.answer.append(self._records(name, "CNAME", alias))
            name = dns.name.from_text(alias[0])
        return True

    def _records(self, name: dns.name.Name, kind: str, texts: Sequence[str]) -> dns.rrset.RRset:
        records = dns.rdataset.from_text_list(
            "IN", kind, self.ttl_s, texts, origin=dns.name.root, relativize=False
        )
        return dns.rrset.from_rdata_list(name, self.ttl_s, list(records))

    def _soa(self, name: dns.name.Name) -> dns.rrset.RRset:
        soa = f"ns.test. root.test. 1 3600 600 86400 {self.negative_ttl_s}"
        return dns.rrset.from_text(name, 3600, "IN", "SOA", soa)


def _key(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False


class _UdpServer(socketserver.ThreadingUDPServer):
    daemon_threads = True
    block_on_close = False


def _bound_pair(owner: DnsServer) -> tuple[_TcpServer, _UdpServer]:
    """Bind one port for both protocols; the system may give a TCP port whose UDP twin is taken."""

    class Tcp(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while len(size := self.rfile.read(2)) == 2:
                    query = self.rfile.read(struct.unpack("!H", size)[0])
                    if answer := owner.answer(query, tcp=True):
                        self.wfile.write(struct.pack("!H", len(answer)) + answer)

    class Udp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, socket = self.request
            if answer := owner.answer(data, tcp=False):
                socket.sendto(answer, self.client_address)

    for _ in range(50):
        tcp = _TcpServer(("127.0.0.1", 0), Tcp)
        try:
            return tcp, _UdpServer(tcp.server_address, Udp)
        except OSError:
            tcp.server_close()
    raise OSError("no loopback port is free for both UDP and TCP")
