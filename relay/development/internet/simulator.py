"""The simulated internet: one name server, one web server, the mail hosts of all remote domains.

Each host has a loopback address of its own, made from its name, and all listen on one port. A host
listens from its first lookup; of the hosts without sessions, those not looked up for the longest
time are closed. A domain that the scenario does not describe has one host, mx1.DOMAIN, which
accepts everything but what test recipients ask for. Answers are not cached (TTL 0), so that a
scenario that is replaced is in force at once. RFC 5321 5.1, RFC 7505 (null MX), RFC 6761 6.4
(.invalid).
"""

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.base.shares import Shares
from relay.base.socket_address import Address
from relay.base.sockets import LACKING_ADDRESS, reserve_port
from relay.base.task_set import TaskSet
from relay.development.internet import policy_server
from relay.development.internet.behaviour import Action, Moment, ReceivedMail
from relay.development.internet.dns_server import NO_NAME, DnsServer, Records
from relay.development.internet.host_certificates import HostCertificates
from relay.development.internet.scenario import MxHost, RemoteDomain, Scenario
from relay.development.internet.scenario_state import ScenarioState
from relay.development.internet.smtp_host import HostOptions, SmtpHost

_log = get_logger("internet")

HOSTS_MAX = 256  # that listen at once; delivery has at most 200 connections
RECEIVED_MAX = 1000  # messages that are remembered
RECEIVED_BYTES_MAX = 64 * 1024**2
CONTENT_BYTES_MAX = 512 * 1024**2  # of the messages that are being received
_LOOPBACK = "127.0.0.1"
_ADDRESSES_TRIED = 4
_DEFAULT_HOST = "mx1."
_FAILED = "SERVFAIL"
_SERVICE = "._tcp."  # between port and host in the name of TLSA records (RFC 6698 3)
_WRONG_TLSA = f"3 1 1 {'00' * 32}"


class SimulatedInternet:
    """The servers, and the scenario in force (`state`).

    It holds its ports from the beginning, so that they are known before start(). `on_mail` is
    awaited before a host accepts a message; if it raises OSError, the host replies 451.
    """

    def __init__(self, clock: Clock, scenario: Scenario | None = None) -> None:
        """Raises OSError."""
        self.state = ScenarioState(scenario or Scenario(), clock)
        self.certificates = HostCertificates()
        self.on_mail: Callable[[ReceivedMail], Awaitable[None]] | None = None
        self._clock = clock
        self._memory = Shares("simulated hosts", CONTENT_BYTES_MAX)
        self._received: deque[ReceivedMail] = deque()
        self._received_bytes = 0
        self._hosts: OrderedDict[str, SmtpHost] = OrderedDict()  # the last one looked up last
        self._addresses: dict[str, str] = {}
        self._places: dict[str, Address] = {}  # of addresses that this system lacks
        self._tasks = TaskSet()
        self._reserved = reserve_port(_LOOPBACK)
        self.port = int(self._reserved.getsockname()[1])
        self._dns = DnsServer(self.records, ttl_s=0, negative_ttl_s=0, is_signed=self._is_signed)
        self.policies = policy_server.PolicyServer(self.certificates, self._domain_of)

    @property
    def nameserver(self) -> Address:
        """Where the name server answers."""
        return self._dns.address

    @property
    def received(self) -> Sequence[ReceivedMail]:
        """The messages that hosts have accepted, the oldest first; only the latest are kept."""
        return tuple(self._received)

    @property
    def hosts(self) -> Mapping[str, SmtpHost]:
        """The hosts that listen, by name."""
        return self._hosts

    @property
    def delayed(self) -> int:
        """How many sessions wait for the clock, or are silent for ever."""
        return sum(host.delayed for host in self._hosts.values())

    async def start(self) -> None:
        """Begin to answer."""
        await self._dns.start()
        await self.policies.start()

    async def stop(self) -> None:
        """Close everything."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(host.stop() for host in self._hosts.values()))
        await self._dns.stop()
        self.close()

    async def end_sessions(self) -> None:
        """Close all connections of hosts; a message that is not accepted yet never is."""
        await asyncio.gather(*(host.end_sessions() for host in self._hosts.values()))

    def close(self) -> None:
        """Release the ports, in place of stop() where there was no start()."""
        self._dns.close()
        self.policies.stop()
        self._reserved.close()

    def use(self, scenario: Scenario) -> None:
        """Replace the scenario; what the old one has counted is forgotten."""
        self.state = ScenarioState(scenario, self._clock)
        self._update_hosts()

    def edit(self, scenario: Scenario) -> None:
        """Use a scenario with other replies; see ScenarioState.edit()."""
        self.state.edit(scenario)
        self._update_hosts()

    def forget(self) -> None:
        """Forget the messages received, and what the scenario has counted."""
        self._received.clear()
        self._received_bytes = 0
        self.use(self.state.scenario)

    def covers(self, address: str) -> bool:
        """Return whether mail for `address` goes to a simulated host."""
        return self.state.covers(address)

    def place_of(self, address: str, port: int) -> tuple[str, int]:
        """Return where the host of an address listens; only Linux has all addresses of loopback."""
        place = self._places.get(address) if port == self.port else None
        return (place.host, place.port) if place else (address, port)

    # -- what hosts do, and what the name server answers

    def at(self, moment: Moment) -> Action:
        """Return what a host does, by the scenario in force."""
        return self.state.at(moment)

    def records(self, name: str, kind: str) -> Records:
        """Return what the name server answers; see DnsServer."""
        if fault := self.state.dns(name, kind):
            return fault
        if not name or name.endswith(".invalid"):
            return NO_NAME
        if kind == "MX":
            return self._exchanges(name)
        if kind == "TXT" and name.startswith(policy_server.RECORD_NAME):
            domain = self._domain_of(name.removeprefix(policy_server.RECORD_NAME))
            return [policy_server.RECORD] if domain and domain.mta_sts else ()
        if kind == "A" and name.startswith(policy_server.WEB_NAME):
            return [policy_server.HOST]
        if kind == "TLSA":
            return self._tlsa(name.rpartition(_SERVICE)[2])
        host = self._host_of(name)
        if kind != "A" or host is None or host.addresses == "none":
            return ()
        address = self._listening(name)
        return [address] if address else _FAILED

    def _exchanges(self, name: str) -> Records:
        domain = self._domain_of(name)
        if domain is None:
            return () if self._host_of(name) else [f"10 {_DEFAULT_HOST}{name}."]
        if domain.null_mx:
            return ["0 ."]
        hosts = domain.hosts if domain.has_mx else ()
        return [f"{host.preference} {host.host}." for host in hosts]

    def _is_signed(self, name: str) -> bool:
        """Return whether a name is the root, or belongs to a domain with DANE."""
        host = name.rpartition(_SERVICE)[2]
        domain = self._domain_of(name) or self.state.scenario.domain_at(host)
        return name in ("", ".") or domain.dane is not False

    def _tlsa(self, host: str) -> Records:
        match self.state.scenario.domain_at(host).dane:
            case "servfail":
                return _FAILED
            case "wrong":
                return [_WRONG_TLSA]
            case right:
                return [self.certificates.tlsa] if right else ()

    def _domain_of(self, name: str) -> RemoteDomain | None:
        return self.state.scenario.domain_of(name)

    def _host_of(self, name: str) -> MxHost | None:
        """Return what is known of a host, None if there is none of this name."""
        for domain in self.state.scenario.domains_at(name):
            return next(host for host in domain.hosts if host.host == name)
        return MxHost(name) if name.startswith(_DEFAULT_HOST) else None

    # -- hosts

    def _update_hosts(self) -> None:
        for name, host in self._hosts.items():
            host.options = self._options_of(name)

    def _listening(self, name: str) -> str:
        """Return the address at which the host listens; "" if it cannot."""
        if name in self._hosts:
            self._hosts.move_to_end(name)
            return self._addresses[name]
        if len(self._hosts) >= HOSTS_MAX and not self._close_unused():
            return ""
        host = SmtpHost(
            name, self.at, clock=self._clock, options=self._options_of(name), on_mail=self._accept
        )
        for number in range(_ADDRESSES_TRIED):
            address = address_of(name, number)
            if address in self._places:
                continue
            try:
                self._listen(host, address)
            except OSError as error:  # another host's name has led to the same address
                _log.warning("a simulated host cannot listen", host=name, error=error)
                continue
            self._hosts[name], self._addresses[name] = host, address
            self._tasks.start(host.start())
            return address
        return ""

    def _listen(self, host: SmtpHost, address: str) -> None:
        try:
            host.listen(Address(address, self.port))
        except OSError as error:
            if error.errno not in LACKING_ADDRESS:
                raise
            self._places[address] = host.listen(Address(_LOOPBACK, 0))

    def _close_unused(self) -> bool:
        """Close a host without sessions, if there is one; return whether there was."""
        unused = next((name for name, host in self._hosts.items() if not host.open), None)
        if unused is not None:
            self._places.pop(self._addresses.pop(unused), None)
            self._tasks.start(self._hosts.pop(unused).stop())
        return unused is not None

    def _options_of(self, name: str) -> HostOptions:
        domain, certificates = self.state.scenario.domain_at(name), self.certificates
        return HostOptions(
            tls=certificates.for_host(name, domain.certificate) if domain.tls != "none" else None,
            bad_tls=certificates.bad,
            memory=self._memory,
        )

    async def _accept(self, mail: ReceivedMail) -> None:
        if self.on_mail is not None:
            await self.on_mail(mail)
        self._received.append(mail)
        self._received_bytes += len(mail.content)
        while len(self._received) > RECEIVED_MAX or self._received_bytes > RECEIVED_BYTES_MAX:
            self._received_bytes -= len(self._received.popleft().content)


def address_of(name: str, number: int = 0) -> str:
    """Return the loopback address of a host: 127.0.0.0/8 without 127.0.0.0/16.

    `number` is for a name whose address is in use.
    """
    first, second, third, *_ = hashlib.sha256(f"{name} {number}".encode()).digest()
    return f"127.{1 + first % 254}.{second}.{1 + third % 254}"
