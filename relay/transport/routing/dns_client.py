"""A DNS stub resolver.

Failures are NoAnswer with the reason. See RFC 1035, RFC 2308 (negative answers), RFC 6891 (EDNS),
RFC 6840 5.7 (AD).
"""

import asyncio
import errno
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.resolver
from dns._asyncio_backend import Backend
from dns.rdtypes.ANY.TLSA import TLSA
from dns.rdtypes.ANY.TXT import TXT

from relay.base.socket_address import Address
from relay.transport.routing.dns_cache import QUERIES_MAX, DnsQuestion, TimedAnswer, refused
from relay.transport.routing.mx_hosts import Answer, NoAnswer, NoName, NoRecords, Records

TTL_MAX_S = 86_400.0
NEGATIVE_TTL_MAX_S = 900.0
ONE_SERVER_TIMEOUT_S = 2.0  # then the next server, or the same again, until the time-out
EDNS_PAYLOAD_BYTES = 1232  # DNS flag day 2020: never fragmented
ANSWER_RECORDS_MAX = 500  # a stranger may choose the answer, which is parsed on the event loop
NAMES_MAX = 100  # records of an MX or PTR answer: a name takes longer

# else one digest of the wrong length would spoil all records of a host (RFC 7672 2.2)
TLSA._cert_length_by_mtype = {}  # noqa: SLF001

_from_wire = dns.message.from_wire


def _from_wire_in_bounds(wire: bytes, *args: Any, **options: Any) -> dns.message.Message:
    counts = [int.from_bytes(wire[at : at + 2]) for at in (4, 6, 8, 10)]  # RFC 1035 4.1.1
    if sum(counts) > ANSWER_RECORDS_MAX:
        raise OSError(f"more than {ANSWER_RECORDS_MAX} records")
    if counts[1] > NAMES_MAX:
        kind_at = 12 + dns.name.from_wire(wire, 12)[1]
        if wire[kind_at + 1] in (dns.rdatatype.MX, dns.rdatatype.PTR):  # the first octet is 0
            raise OSError(f"more than {NAMES_MAX} records with a name")
    if wire[3:4] and wire[3] & 15 == dns.rcode.REFUSED and (query := asyncio.current_task()):
        refused.add(query)
    return _from_wire(wire, *args, **options)


dns.message.from_wire = _from_wire_in_bounds


def _text_from_wire(cls: type[TXT], rdclass: Any, rdtype: Any, parser: Any, *_: Any) -> TXT:
    """Read a record as few strings: only their octets count, and each one takes time."""
    octets, at, text = parser.get_remaining(), 0, bytearray()
    while at < len(octets):
        text += octets[at + 1 : at + 1 + octets[at]]
        at += 1 + octets[at]
    return cls(rdclass, rdtype, [bytes(text[n : n + 255]) for n in range(0, len(text) or 1, 255)])


TXT.from_wire_parser = classmethod(_text_from_wire)  # type: ignore[assignment]

REFUSED = "answered REFUSED"  # the end of the text of a NoAnswer
# of this machine: no more files, or no memory
_OWN_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NAME = "relay-check.invalid"  # RFC 6761 6.4: never exists


class _Backend(Backend):
    async def make_socket(self, af: int, socktype: int, *args: Any, **options: Any) -> Any:
        """Of a cancelled call, uvloop would leave the socket for datagrams open."""
        opening = super().make_socket(af, socktype, *args, **options)  # type: ignore[no-untyped-call]
        if socktype != socket.SOCK_DGRAM:
            return await opening
        opened = asyncio.ensure_future(opening)
        try:
            return await asyncio.shield(opened)
        except asyncio.CancelledError:
            await (await opened).close()
            raise


class StubResolver:
    """Queries the given name servers, without a cache."""

    def __init__(
        self,
        nameservers: Sequence[Address],
        *,
        timeout_s: float,
        validating: bool = False,
        resolv_conf: str = "/etc/resolv.conf",
    ) -> None:
        """Without `nameservers`, use `resolv_conf` as it is at each query. An answer can be secure
        only with `validating`.
        """
        self._resolv_conf = None if nameservers else Path(resolv_conf)
        self._read: tuple[int, ...] = ()  # which file that was
        self._timeout_s = timeout_s
        self._validating = validating
        self._backend = _Backend()
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.timeout = min(ONE_SERVER_TIMEOUT_S, timeout_s)
        self._resolver.use_edns(0, 0, EDNS_PAYLOAD_BYTES)
        if validating:
            self._resolver.set_flags(dns.flags.RD | dns.flags.AD)
        self._resolver.nameservers = [
            dns.nameserver.Do53Nameserver(server.host, server.port) for server in nameservers
        ]

    async def ask(self, question: DnsQuestion) -> TimedAnswer:
        """Send a query. The name server follows CNAMEs; truncated answers are repeated by TCP."""
        name, kind = question
        try:
            absolute = dns.name.from_text(name, dns.name.root)
        except dns.exception.DNSException:
            return NoName(), TTL_MAX_S  # not a valid DNS name
        if self._resolv_conf is not None:
            self._configure_from(self._resolv_conf)
        try:
            limit_s = self._timeout_s + ONE_SERVER_TIMEOUT_S
            async with asyncio.timeout(limit_s):  # real time: a name server
                answer = await self._resolver.resolve(
                    absolute,
                    kind,
                    raise_on_no_answer=False,
                    lifetime=self._timeout_s,
                    search=False,
                    backend=self._backend,
                )
        except dns.resolver.NXDOMAIN as error:
            [response] = error.kwargs["responses"].values()
            return NoName(self._is_secure(response)), _negative_ttl_s(response)
        except (TimeoutError, dns.exception.Timeout):
            return NoAnswer(f"no answer within {self._timeout_s:g} s"), 0.0
        except dns.resolver.NoNameservers as error:
            return _why(error), 0.0
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return NoAnswer(f"the answer cannot be used: {_reason(error)}"), 0.0
        secure = self._is_secure(answer.response)
        if answer.rrset is None:
            return NoRecords(secure), _negative_ttl_s(answer.response)
        values = tuple(_text(record, kind) for record in answer.rrset)
        owner = answer.canonical_name.to_text(omit_final_dot=True).lower() if secure else name
        records = Records(values, secure, owner if owner != name else "")
        return records, min(float(answer.chaining_result.minimum_ttl), TTL_MAX_S)

    def _configure_from(self, resolv_conf: Path) -> None:
        """Read the file if it has changed: the network may start later, or change."""
        try:
            status = resolv_conf.stat()
            read = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if read != self._read:
                self._resolver.read_resolv_conf(str(resolv_conf))
                self._read = read
        except (OSError, ValueError, dns.exception.DNSException):
            self._read = ()
            self._resolver.nameservers = []  # the lookup is then a temporary failure that says so

    def _is_secure(self, response: dns.message.QueryMessage) -> bool:
        return self._validating and bool(response.flags & dns.flags.AD)


def _text(record: dns.rdata.Rdata, kind: str) -> str:
    if kind == "TXT":  # its strings without anything between them (RFC 7208 3.3, RFC 6376 3.6.2.2)
        assert isinstance(record, TXT)
        return b"".join(record.strings).decode("utf-8", "surrogateescape")
    text = str(record)
    return text.lower().rstrip(".") if kind == "MX" else text


def _negative_ttl_s(response: dns.message.QueryMessage) -> float:
    """The SOA's minimum (RFC 2308 5); without an SOA a negative answer is not cached."""
    for rrset in response.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return min(float(rrset.ttl), float(rrset[0].minimum), NEGATIVE_TTL_MAX_S)
    return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return " ".join(str(error).split()) or "no reason given"


def _why(error: dns.resolver.NoNameservers) -> NoAnswer:
    """Say why no name server answered: the result of the last one."""
    attempts = error.kwargs.get("errors") or []
    if not attempts:
        return NoAnswer("no name server is configured")
    server, _, port, reason, _ = attempts[-1]
    if isinstance(reason, OSError) and reason.errno in _OWN_ERRORS:
        return NoAnswer(f"no query was sent: {_reason(reason)}", is_own=True)
    host = str(server).removeprefix("Do53:").partition("@")[0]  # dnspython's notation
    return NoAnswer(f"name server {host} port {port} answered {reason}")


async def look_up(
    nameservers: Sequence[Address], questions: Iterable[DnsQuestion], *, timeout_s: float
) -> Mapping[DnsQuestion, Answer]:
    """Return the answers for a command: all queries run in parallel, so that silent name servers
    cost one time-out. Without `nameservers`, the system's are used.

    The text of a TXT record is its strings joined; octets that are not UTF-8 are surrogates.
    """
    servers, slots = StubResolver(nameservers, timeout_s=timeout_s), asyncio.Semaphore(QUERIES_MAX)

    async def answer(question: DnsQuestion) -> Answer:
        async with slots:
            return (await servers.ask(question))[0]

    tasks = {query: asyncio.create_task(answer(query)) for query in dict.fromkeys(questions)}
    if not tasks:
        return {}
    try:
        await asyncio.wait(tasks.values(), timeout=timeout_s)  # real time: name servers
    finally:
        for task in tasks.values():
            task.cancel()
    await asyncio.wait(tasks.values())
    late = NoAnswer(f"no answer within {timeout_s:g} s")  # also of those that waited for a slot
    return {query: late if task.cancelled() else task.result() for query, task in tasks.items()}


async def validated(nameservers: Sequence[Address], *, timeout_s: float) -> bool | None:
    """Return whether the name servers mark the signed answer for the root as validated; None
    without an answer. Without `nameservers`, the system's are asked.
    """
    servers = StubResolver(nameservers, timeout_s=timeout_s, validating=True)
    answer, _ = await servers.ask((".", "SOA"))
    return None if isinstance(answer, NoAnswer) else answer.secure


async def name_servers_answer(nameservers: Sequence[Address], *, timeout_s: float) -> str:
    """Check the name servers for `relay check`: "" if they answer, otherwise why not.

    Any definite answer is good, also "no such name". Without `nameservers`, the system's are used.
    """
    answer, _ = await StubResolver(nameservers, timeout_s=timeout_s).ask((_NAME, "MX"))
    return answer.text if isinstance(answer, NoAnswer) else ""
