"""Resolve a next hop (a domain's MX or a smarthost) to the hosts to connect to.

Delivery calls it before it connects. A missing answer is never taken for "no such domain", and mail
is never routed back to this relay. This module decides which host is this relay; leading_back() in
`mx_hosts` decides which other hosts are left out because of it. Failures are values: NullMx,
NoSuchDomain, NoAddress, MailLoop, TemporaryFailure.

usable_records() says which TLSA records count (RFC 7671, RFC 7672); `relay/delivery/smtp/dane.py`
says what a host must show for them. See RFC 5321 5.1, RFC 7505 (null MX), RFC 8499 (terms).
"""

import asyncio
import random
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from msgspec import structs

from relay.base.clock import Clock
from relay.base.message.address import literal_address
from relay.base.message.nexthop import HERE, HopKind, NextHop
from relay.base.message.tls_policy import NO_TLSA, TlsaFinding, TlsaRecord
from relay.base.settings.tree import DnsSettings
from relay.base.settings.values import is_ip
from relay.base.socket_address import Address, is_loopback, plain_ip
from relay.base.sockets import is_of_this_machine
from relay.transport.routing.client_questions import ClientQuestions
from relay.transport.routing.dns_cache import DnsCache, DnsQuestion, TimedAnswer
from relay.transport.routing.mx_hosts import (
    Answer,
    Exchange,
    Host,
    Hosts,
    MailLoop,
    NoAddress,
    NoAnswer,
    NoName,
    NoRecords,
    Records,
    Resolution,
    TemporaryFailure,
    addresses_of,
    by_preference,
    exchanges_of,
    is_usable,
    leading_back,
    mx_answer,
)

if TYPE_CHECKING:
    from relay.transport.routing.dns_client import StubResolver

HOSTS_FILE_TTL_S = 30.0
_MX_PORT = 25  # RFC 5321 4.5.4.2
_SYSTEM_THREADS = 2
RECORDS_MAX = 16  # they are part of the keys of connections; one or two are usual
_DIGEST_BYTES = {1: 32, 2: 64}  # SHA-256 and SHA-512


class Resolver:
    """Resolves next hops by DNS; smarthosts also by the system's host table."""

    def __init__(
        self,
        dns: DnsSettings,
        *,
        clock: Clock,
        rng: random.Random,
        hostname: str,
        own_addresses: Iterable[Address] = (),
        port: int = 25,
        proxy_host: str = "",
    ) -> None:
        """`port` is the port of MX hosts; `own_addresses` are the addresses of our SMTP listeners.
        Connections to graph:// beyond loopback go to `proxy_host`, if there is one. Hosts have TLSA
        records only with `dns.validating`.
        """
        self.count_tlsa: Callable[[str], None] = lambda _result: None  # of RFC 8460 4.3.2
        self._rng = rng
        self._clock = clock
        self._hostname = hostname.lower()
        listeners = [listener for listener in own_addresses if listener.host]
        self._own = frozenset(place for own in listeners for place in _places_of(own))
        # Separate threads: the system's lookup may hang, and the default ones write bodies.
        self._threads = ThreadPoolExecutor(_SYSTEM_THREADS, thread_name_prefix="dns")
        self.use(dns, port=port, proxy_host=proxy_host)

    def use(self, dns: DnsSettings, *, port: int, proxy_host: str = "") -> None:
        """Use other settings, and forget the answers of earlier name servers. Queries in progress
        go on.
        """
        self._timeout_s = dns.timeout
        self._port = port
        self._proxy_host = proxy_host
        self._kinds = ["A" if name == "ipv4" else "AAAA" for name in dict.fromkeys(dns.protocols)]
        self._what = "address" if len(self._kinds) > 1 else f"IPv{dns.protocols[0][-1]} address"
        self._servers = cache(partial(_servers_of, dns))  # made for the first question
        self._find_tlsa = self.find_tlsa if dns.validating else None
        self._dns = DnsCache(self._ask, clock=self._clock)
        self._of_clients = ClientQuestions(self._ask, self._dns)

    async def resolve(self, next_hop: NextHop) -> Resolution:
        """Return the hosts of a next hop, best first; equals in random order.

        Raises ValueError for LOCAL and CAPTURE, which have no hosts.
        """
        match next_hop.kind:
            case HopKind.MX:
                return await self._resolve_mx(next_hop.host)
            case HopKind.LMTP if next_hop.is_socket:
                return Hosts((Host(self._hostname, 0, (next_hop.host,), 0, lmtp=True),))
            case HopKind.SMTP | HopKind.SMTPS | HopKind.LMTP | HopKind.GRAPH:
                return await self._resolve_smarthost(next_hop)
            case _:
                raise ValueError(f"{next_hop} has no hosts")

    async def answers_for_clients(
        self, questions: Sequence[DnsQuestion], *, client: str, wait_s: float, is_kept: bool = False
    ) -> Sequence[Answer]:
        """Return the answers to questions that a client chose, in their order: see Ask."""
        ask = partial(self._of_clients.answer, client=client, wait_s=wait_s, is_kept=is_kept)
        return await asyncio.gather(*map(ask, questions))

    async def texts(self, name: str) -> Answer:
        """Return the TXT records of a name."""
        [answer] = await self._dns.answers((name, "TXT"))
        return answer

    async def addresses(self, name: str) -> tuple[str, ...] | NoAnswer:
        """Return the addresses of a host by the DNS, or by the system's host table; () if it has
        none.
        """
        answers: Sequence[Answer] = ()  # a single label is not in the DNS: localhost, containers
        if "." in name:
            answers = await self._dns.answers(*((name, kind) for kind in self._kinds))
        addresses = self._addresses_in(answers)
        return await self.addresses_by_system(name) if addresses == () else addresses

    async def addresses_by_system(self, name: str) -> tuple[str, ...] | NoAnswer:
        """Return the addresses of a host by the system's lookup; () if it has none."""
        [table] = await self._dns.answers((name, "HOST"))
        addresses = self._addresses_in([table])
        if name == "localhost" and isinstance(addresses, tuple):  # RFC 6761 6.3: loopback only
            addresses = tuple(address for address in addresses if ip_address(address).is_loopback)
        return addresses

    def _has_protocol(self, address: str) -> bool:
        return ("AAAA" if ":" in address else "A") in self._kinds

    def _addresses_in(self, answers: Sequence[Answer]) -> tuple[str, ...] | NoAnswer:
        """Return the addresses of a host by the protocols in use; a literal, or the host table, may
        have others.
        """
        addresses = addresses_of(answers, self._rng)
        if isinstance(addresses, NoAnswer):
            return addresses
        return tuple(filter(self._has_protocol, addresses))

    async def find_tlsa(
        self, hosts: Sequence[Host], *, must: bool, domains: tuple[str, ...]
    ) -> tuple[Host, ...]:
        """Return hosts with their TLSA records; with `must` a host without records is counted as a
        failure. `domains` are the names of the next hop whose validated answers lead to the hosts.
        """
        asked = [self.tlsa(host.name, host.port, must=must) for host in hosts]
        pairs = zip(hosts, await asyncio.gather(*asked), strict=True)
        return tuple(
            structs.replace(host, tlsa=tlsa.of(domains)) if tlsa is not NO_TLSA else host
            for host, tlsa in pairs
        )

    async def tlsa(
        self, host: str, port: int, *, must: bool = False, fresh: bool = False
    ) -> TlsaFinding:
        """Return the TLSA records of a host; `must` as in find_tlsa(), `fresh` ignores the cache.

        They count only where the name servers validated its addresses. The name that CNAMEs lead to
        comes first (RFC 7672 2.2.2, 2.2.3).
        """
        addresses = await self._dns.answers(*((host, kind) for kind in self._kinds))
        records = [answer for answer in addresses if isinstance(answer, Records)]
        failed = [answer for answer in addresses if isinstance(answer, NoAnswer)]
        if failed and not records:  # they were known a moment ago
            return self._no_tlsa(failed[0])
        secure = [answer for answer in records if answer.secure]
        names = dict.fromkeys((secure[0].name or host, host)) if secure else ()
        for name in names:
            question = (f"_{port}._tcp.{name}", "TLSA")
            if fresh:
                self._dns.forget(question)
            [answer] = await self._dns.answers(question)
            if isinstance(answer, NoAnswer):
                return self._no_tlsa(answer)
            if isinstance(answer, Records) and answer.secure:
                usable = usable_records(map(_tlsa_record, answer.values))
                return TlsaFinding(len(answer.values), usable, (name,))
        if must:
            self.count_tlsa("dane-required")
        return NO_TLSA

    def _no_tlsa(self, answer: NoAnswer) -> TlsaFinding:
        self.count_tlsa("dnssec-invalid")
        return TlsaFinding(trouble=f"its TLSA records are not known: {answer.text}")

    def forget_ended(self, *, are_all: bool) -> None:
        """Forget the answers of the DNS whose TTL has ended, or all."""
        self._dns.forget_ended(are_all=are_all)

    async def close(self) -> None:
        """Cancel the queries in progress."""
        await self._of_clients.close()
        await self._dns.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _resolve_mx(self, domain: str) -> Resolution:
        if literal := literal_address(domain):
            if not (is_usable(literal) and self._has_protocol(literal)):
                return NoAddress(domain, what=self._what)
            return self._hosts_unless_own(Host(domain, 0, (literal,), self._port), is_mx=True)
        [answer] = await self._dns.answers((domain, "MX"))
        exchanges = exchanges_of(domain, answer)
        if not isinstance(exchanges, tuple):
            return exchanges
        skipped = leading_back(exchanges, lambda host: host.name == self._hostname)
        better = [host for host in exchanges if host not in skipped]
        if not better:
            return MailLoop(domain, mx_answer(exchanges, (), skipped))
        lookup = await self._with_addresses(domain, exchanges, better, skipped=skipped)
        if isinstance(lookup, Hosts) and isinstance(answer, Records | NoRecords) and answer.secure:
            alias_of = answer.name if isinstance(answer, Records) else ""
            domains = (domain, alias_of) if alias_of else (domain,)
            return structs.replace(lookup, mx=structs.replace(lookup.mx, domains=domains))
        return lookup

    async def _with_addresses(
        self,
        domain: str,
        exchanges: Sequence[Exchange],
        better: Sequence[Exchange],
        *,
        skipped: dict[Exchange, str],
    ) -> Resolution:
        """Look up the addresses of the `better` MX hosts in parallel, and drop those that lead back
        here; `skipped` has the hosts that are known to lead back.
        """
        considered = by_preference(better, self._rng)
        questions = [(host.name, kind) for host in considered for kind in self._kinds]
        answers = await self._dns.answers(*questions)
        count = len(self._kinds)
        hosts: dict[Exchange, tuple[str, ...]] = {}
        no_answer: NoAnswer | None = None
        for number, exchange in enumerate(considered):
            addresses = self._addresses_in(answers[number * count :][:count])
            if isinstance(addresses, NoAnswer):
                no_answer = no_answer or addresses
                skipped[exchange] = addresses.text
            elif addresses:
                hosts[exchange] = addresses
            else:
                skipped[exchange] = f"no {self._what}"
        is_own = partial(self._is_own, port=self._port, is_mx=True)
        back = leading_back(list(hosts), lambda host: is_own(hosts[host]))
        mx = mx_answer(exchanges, considered, skipped | back)
        if not hosts and no_answer:
            text = f"no mail host of {domain} could be looked up: {no_answer.text}"
            return TemporaryFailure(text, mx=mx)
        if not hosts:
            return NoAddress(domain, mx, self._what)
        to_try = tuple(
            Host(host.name, host.preference, addresses, self._port)
            for host, addresses in hosts.items()
            if host not in back
        )
        if not to_try:
            return MailLoop(domain, mx)
        return Hosts(to_try, mx, find_tlsa=self._find_tlsa)

    async def _resolve_smarthost(self, next_hop: NextHop) -> Resolution:
        """A smarthost that cannot be found is a configuration error: its mail is deferred."""
        name, port, lmtp = next_hop.host, next_hop.port, next_hop.kind is HopKind.LMTP
        addresses: tuple[str, ...] | NoAnswer
        what, place, key = "next hop", name, "[[route]]"
        if next_hop.kind is HopKind.GRAPH and self._proxy_host and not _is_loopback(name):
            what, place, key = "proxy", self._proxy_host, "proxy in [delivery]"
        try:
            addresses = tuple(filter(self._has_protocol, [str(ip_address(place))]))
        except ValueError:  # a name, then
            addresses = await self.addresses(place)
        if isinstance(addresses, NoAnswer):
            return TemporaryFailure(f"the {what} {place} could not be looked up: {addresses.text}")
        if not addresses:
            return TemporaryFailure(f"the {what} {place} has no {self._what}; check {key}", "4.4.4")
        return self._hosts_unless_own(Host(name, 0, addresses, port, lmtp=lmtp))

    def _hosts_unless_own(self, host: Host, *, is_mx: bool = False) -> Resolution:
        if self._is_own(host.addresses, host.port, is_mx=is_mx):
            return MailLoop(host.name)
        return Hosts((host,), find_tlsa=self._find_tlsa)

    def _is_own(self, addresses: tuple[str, ...], port: int, *, is_mx: bool = False) -> bool:
        """Return whether one of the addresses leads back here. An MX host at this machine's port 25
        does, whatever program listens there.
        """
        return any(
            (str(ip), port) in self._own
            or (("", port) in self._own and is_of_this_machine(ip))
            or (is_mx and port == _MX_PORT and ip.is_loopback)
            for ip in map(plain_ip, addresses)
        )

    async def _ask(self, question: DnsQuestion) -> TimedAnswer:
        name, kind = question
        if kind == "HOST":
            return await self._ask_system(name), HOSTS_FILE_TTL_S
        if kind in ("A", "AAAA") and literal_address(f"[{name}]"):  # "MX 10 192.0.2.1."
            return Records((name,)), HOSTS_FILE_TTL_S
        return await self._servers().ask(question)

    async def _ask_system(self, name: str) -> Answer:
        """Use the system's lookup: /etc/hosts and others."""
        try:
            async with asyncio.timeout(self._timeout_s):  # real time: a name server
                addresses = await asyncio.get_running_loop().run_in_executor(
                    self._threads, _addresses_by_system, name
                )
        except TimeoutError:
            return NoAnswer(f"no answer within {self._timeout_s:g} s")
        except (OSError, UnicodeError):
            return NoName()
        return Records(addresses)


def _servers_of(dns: DnsSettings) -> "StubResolver":
    # a large library, which a relay without MX routes and checks does not need
    from relay.transport.routing.dns_client import StubResolver  # noqa: PLC0415

    return StubResolver(dns.nameservers, timeout_s=dns.timeout, validating=dns.validating)


class LoopbackResolver:
    """The resolver of a relay that opens no connection beyond loopback, whatever a route says.

    It asks `simulated` for MX hosts; the name servers of that are on loopback. Of other hosts only
    loopback addresses, localhost and Unix sockets count, because the system's lookup may ask other
    name servers. One next hop may be elsewhere: `release_to`, which `elsewhere` resolves.
    """

    def __init__(
        self,
        simulated: Resolver,
        *,
        release_to: NextHop | None = None,
        elsewhere: Resolver | None = None,
    ) -> None:
        self.simulated = simulated
        self._release_to = release_to
        self._elsewhere = elsewhere or simulated

    def check(self, next_hop: NextHop) -> None:
        """Raise ValueError for a smarthost that is elsewhere."""
        if is_elsewhere(next_hop) and next_hop.without_route != self._release_to:
            text = "relay dev connects to loopback only, and to the host of --release-to"
            raise ValueError(f"found {next_hop}, which is not on this machine; {text}")

    async def resolve(self, next_hop: NextHop) -> Resolution:
        """Return the hosts of a next hop; hosts elsewhere are a temporary failure."""
        if next_hop.without_route == self._release_to:
            return await self._elsewhere.resolve(next_hop)
        if next_hop.kind is not HopKind.MX and not _is_loopback(next_hop.host):
            return _elsewhere(next_hop)
        lookup = await self.simulated.resolve(next_hop)
        if isinstance(lookup, Hosts) and not all(
            _is_loopback(address) for host in lookup.hosts for address in host.addresses
        ):
            return _elsewhere(next_hop)
        return lookup

    async def addresses(self, name: str) -> tuple[str, ...] | NoAnswer:
        """Return the addresses of a host by the system's lookup, not by the simulated DNS."""
        is_local = name.endswith(".localhost")  # RFC 6761 6.3
        return await self.simulated.addresses_by_system("localhost" if is_local else name)

    async def close(self) -> None:
        """Cancel the queries in progress."""
        await self.simulated.close()
        await self._elsewhere.close()


def _tlsa_record(text: str) -> TlsaRecord:
    usage, selector, matching, data = text.split(" ", 3)
    return TlsaRecord(int(usage), int(selector), int(matching), bytes.fromhex(data))


def is_elsewhere(next_hop: NextHop) -> bool:
    """Whether it is a smarthost that is not on this machine."""
    is_smarthost = next_hop.kind not in (HopKind.MX, *HERE)
    return is_smarthost and not _is_loopback(next_hop.host)


def _elsewhere(next_hop: NextHop) -> TemporaryFailure:
    return TemporaryFailure(
        f"{next_hop} is not on this machine: a development relay connects to loopback only", "4.4.1"
    )


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("/") or is_loopback(host)


def _addresses_by_system(name: str) -> tuple[str, ...]:
    infos = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in infos))


def _places_of(listener: Address) -> Iterator[tuple[str, int]]:
    """Yield the addresses of a listener, "" for any of this machine, with its port."""
    host = listener.host
    with suppress(OSError):  # of a name without an address
        for ip in map(plain_ip, (host,) if is_ip(host) else _addresses_by_system(host)):
            yield "" if listener.systemd or ip.is_unspecified else str(ip), listener.port


def usable_records(records: Iterable[TlsaRecord]) -> tuple[TlsaRecord, ...]:
    """Return the records that can be used, at most RECORDS_MAX, always in the same order.

    () means that TLS is required, and nothing verified (RFC 7672 2.2). Usages 0 and 1 need a store
    of authorities, and are no part of DANE for SMTP (RFC 7672 3.1.3).
    """
    return tuple(sorted(filter(_is_usable, set(records))))[:RECORDS_MAX]


def _is_usable(record: TlsaRecord) -> bool:
    if record.usage not in (2, 3) or record.selector not in (0, 1):
        return False
    if record.matching:
        return len(record.data) == _DIGEST_BYTES.get(record.matching)
    return _can_be_read(record)


def _can_be_read(record: TlsaRecord) -> bool:
    """Return whether a record has a certificate, or the key of one."""
    # A large library, and few hosts have such a record.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415
    from cryptography.x509 import InvalidVersion, load_der_x509_certificate  # noqa: PLC0415

    try:
        (load_der_public_key if record.selector else load_der_x509_certificate)(record.data)
    except (ValueError, LookupError, InvalidVersion, UnsupportedAlgorithm):
        return False
    return True
