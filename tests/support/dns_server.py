"""The simulated internet's DNS server on a loop in a thread, answering from a dict.

    with DnsThread({"example.net": {"MX": ["10 mx.example.net"]}, "mx.example.net": {"A": ["127.0.0.1"]}}) as dns:
        Resolver(DnsSettings((dns.address,)), ...)

The zone may be changed while it runs. A name's value is a mapping type -> records, or one word for
every type: NXDOMAIN, SERVFAIL, REFUSED (any RCODE) or TIMEOUT (no answer at all). The word may also
stand for one type: {"MX": "SERVFAIL"}. A name that is not in the zone does not exist.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Self

import dns.flags
import dns.message
import dns.rdatatype
import uvloop

from relay.development.internet.dns_server import NO_NAME, DnsServer, Records

Zone = dict[str, Mapping[str, Records] | str]


class DnsThread:
    """Authoritative for everything. `asked` counts (name, type)."""

    def __init__(self, zone: Zone | None = None):
        self.zone: Zone = dict(zone or {})
        self.server = _CountingServer(self)
        self.queries: Counter[tuple[str, str]] = Counter()
        self.tcp_queries = 0
        self.insecure: set[str] | None = None  # the answers for others have AD; None: none has
        self.answer: Callable[..., bytes] | None = None  # in place of the server's own
        self.query_came = threading.Condition()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self.server.start())
        self.address = self.server.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self._run(self.server.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def records(self, name: str, kind: str) -> Records:
        """See relay.development.internet.dns_server.DnsServer."""
        entry = self.zone.get(name, NO_NAME)
        return entry if isinstance(entry, str) else entry.get(kind, ())

    def asked(self, name: str, kind: str) -> int:
        """How often `name` was asked for records of type `kind`."""
        return self.queries[name, kind]

    async def until_asked(self, name: str, kind: str) -> None:
        """Wait until `name` has been asked for, ten seconds at most."""

        def wait() -> bool:
            with self.query_came:
                return self.query_came.wait_for(lambda: self.asked(name, kind) > 0, timeout=30)

        assert await asyncio.to_thread(wait), f"nobody asked for {name} {kind}"

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


class _CountingServer(DnsServer):
    """Counts what is asked, not the names that a CNAME leads to."""

    def __init__(self, owner: DnsThread) -> None:
        super().__init__(owner.records)
        self._owner = owner

    def answer(self, data, *, tcp):
        [question] = dns.message.from_wire(data).question
        name = question.name.to_text(omit_final_dot=True).lower()
        with self._owner.query_came:
            self._owner.queries[name, dns.rdatatype.to_text(question.rdtype)] += 1
            self._owner.tcp_queries += tcp
            self._owner.query_came.notify_all()
        response = (self._owner.answer or super().answer)(data, tcp=tcp)
        insecure = self._owner.insecure
        if response and insecure is not None and name not in insecure:
            return response[:3] + bytes([response[3] | dns.flags.AD]) + response[4:]
        return response
