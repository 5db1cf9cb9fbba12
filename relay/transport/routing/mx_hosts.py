"""MX selection: turn DNS answers into hosts to try, or the reason why there are none.

Pure functions. Hosts are ordered by MX preference, equals in random order; without MX records the
domain itself is the host (RFC 5321 5.1). A null MX takes no mail (RFC 7505). A missing answer or a
server failure is temporary; only definite answers are permanent. leading_back() says which hosts
are left out because this relay is among them, and they would send mail back (mail loop).
"""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_network
from itertools import zip_longest
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.mta_sts import NO_STS, StsFinding
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Failed
from relay.base.message.tls_policy import NEEDED, NO_TLSA, TlsaFinding, TlsDecision
from relay.base.socket_address import plain_ip

# limit: MX hosts of a domain
EXCHANGES_MAX = 16  # MX hosts of one domain that are considered; other MTAs take 5 to 10
ADDRESSES_MAX = 16  # addresses of one host
THIS_RELAY = "this relay"  # why an MX host is skipped
_THIS_HOST = ip_network("0.0.0.0/8")  # RFC 6890 2.2.2


class Records(Struct, frozen=True):
    """Records of the queried type, as text: an address each, or "PREFERENCE NAME"; `name` is whose
    they are where CNAMEs led there, else "".
    """

    values: tuple[str, ...]
    secure: bool = False
    name: str = ""


class NoRecords(Struct, frozen=True):
    """The name exists, without records of this type (NODATA)."""

    secure: bool = False


class NoName(Struct, frozen=True):
    """The name does not exist (NXDOMAIN)."""

    secure: bool = False


class NoAnswer(Struct, frozen=True):
    """No usable answer (SERVFAIL, REFUSED, time-out, nonsense); `text` says which."""

    text: str
    is_own: bool = False  # this relay could not ask: there was no place, or no time to send it
    is_refused: bool = False  # of a client's question: a name server said REFUSED, none answered


NOT_ASKED = NoAnswer("too many questions of clients wait", is_own=True)

# `secure`: the name servers validated the answer, with all that CNAMEs led to (AD, RFC 6840 5.8)
Answer = Records | NoRecords | NoName | NoAnswer


def is_own_fault(answer: Answer) -> bool:
    """Return whether there is no answer because this relay could not ask."""
    return isinstance(answer, NoAnswer) and answer.is_own


class Exchange(Struct, frozen=True):
    """One MX record; `name` is lower case without the final dot, "" for the root (RFC 7505).

    In an MxAnswer `skipped` is why the host is not tried, "" if it may be.
    """

    preference: int
    name: str
    skipped: str = ""

    def __str__(self) -> str:
        text = f"{self.preference} {self.name}"
        return f"{text}: {self.skipped}" if self.skipped else text


class Host(Struct, frozen=True):
    """A host to try, with its addresses in the order to try them; `tls` is None until with_tls()
    has decided it. A Unix socket has its path as the address and port 0.
    """

    name: str
    preference: int
    addresses: tuple[str, ...]
    port: int
    tls: TlsDecision | None = None
    tlsa: TlsaFinding = NO_TLSA
    lmtp: bool = False


class MxAnswer(Struct, frozen=True):
    """The hosts of an MX answer by preference, at most EXCHANGES_MAX, and the number of the rest.

    A domain without MX records is its own host (RFC 5321 5.1). Empty for next hops without MX.
    """

    hosts: tuple[Exchange, ...] = ()
    more: int = 0
    # the name servers validated it: it is for the domain, and for what that is an alias of
    domains: tuple[str, ...] = ()


NO_MX = MxAnswer()


class Hosts(Struct, frozen=True):
    """The hosts to try, best first; never empty. `mx` is the answer that they come from, `sts` what
    is known of the domain's MTA-STS policy. `find_tlsa` is None where no answer is validated.
    `unknown` is why another host may have the TLS that REQUIRETLS demands, if that is not known.
    """

    hosts: tuple[Host, ...]
    mx: MxAnswer = NO_MX
    sts: StsFinding = NO_STS
    unknown: str = ""
    find_tlsa: "Callable[..., Awaitable[tuple[Host, ...]]] | None" = None  # Resolver.find_tlsa


class NullMx(Struct, frozen=True):
    """The domain accepts no mail (RFC 7505)."""

    domain: str


class NoSuchDomain(Struct, frozen=True):
    """The domain does not exist."""

    domain: str


class NoAddress(Struct, frozen=True):
    """No mail host of the domain has an address; `what` names the protocol if only one counts."""

    domain: str
    mx: MxAnswer = NO_MX
    what: str = "address"


class MailLoop(Struct, frozen=True):
    """The best MX host of the domain is this relay, which does not host the domain."""

    domain: str
    mx: MxAnswer = NO_MX


class Unprotected(Struct, frozen=True):
    """No host can have the TLS that REQUIRETLS demands (RFC 8689 4.2.1)."""

    hosts: str
    mx: MxAnswer = NO_MX


class TemporaryFailure(Struct, frozen=True):
    """There is no definite answer now."""

    text: str
    status: str = "4.4.3"
    mx: MxAnswer = NO_MX
    kind: DeferralClass = DeferralClass.DNS


Unresolved = NullMx | NoSuchDomain | NoAddress | MailLoop | Unprotected | TemporaryFailure
Resolution = Hosts | Unresolved


def exchanges_of(domain: str, answer: Answer) -> tuple[Exchange, ...] | Unresolved:
    """Return the MX hosts of `domain` from the answer to its MX query, unordered.

    After a definite NODATA the domain is its own MX host (RFC 5321 5.1).
    """
    match answer:
        case NoAnswer(text):
            return TemporaryFailure(f"the MX records of {domain} could not be looked up: {text}")
        case NoName():
            return NoSuchDomain(domain)
        case NoRecords():
            return (Exchange(0, domain),)
        case Records(values):
            exchanges = tuple(map(_exchange, values))
            named = tuple(exchange for exchange in exchanges if exchange.name)
            return named or NullMx(domain)


def by_preference(exchanges: Sequence[Exchange], rng: random.Random) -> list[Exchange]:
    """Sort by preference, equals in random order (RFC 5321 5.1); keep EXCHANGES_MAX."""
    shuffled = list(exchanges)
    rng.shuffle(shuffled)
    shuffled.sort(key=lambda exchange: exchange.preference)
    return shuffled[:EXCHANGES_MAX]


def leading_back(
    exchanges: Sequence[Exchange], is_own: Callable[[Exchange], bool]
) -> dict[Exchange, str]:
    """Return the hosts that would send mail back, each with the reason why it is not tried: this
    relay, and the hosts that are not preferred to it.
    """
    own = [host for host in exchanges if is_own(host)]
    best = min((host.preference for host in own), default=None)
    if best is None:  # nearly always
        return {}
    return {
        host: THIS_RELAY if host in own else "not preferred to this relay"
        for host in exchanges
        if host.preference >= best
    }


def mx_answer(
    exchanges: Sequence[Exchange], considered: Sequence[Exchange], skipped: Mapping[Exchange, str]
) -> MxAnswer:
    """Return the evidence of an MX answer: the hosts that were considered come before others."""
    left_out = sorted(set(exchanges).difference(considered), key=_place)
    listed = [*considered, *left_out][:EXCHANGES_MAX]
    return MxAnswer(
        tuple(replace(host, skipped=skipped.get(host, "")) for host in sorted(listed, key=_place)),
        max(0, len(exchanges) - len(listed)),
    )


def addresses_of(answers: Sequence[Answer], rng: random.Random) -> tuple[str, ...] | NoAnswer:
    """Merge the answers for A, AAAA or both: alternately, the first kind first, each in random
    order.

    Return () if the host has no address, and NoAnswer if that is not known because an answer is
    missing.
    """
    families = []
    for answer in answers:
        addresses = answer.values if isinstance(answer, Records) else ()
        usable = [address for address in addresses if is_usable(address)]
        rng.shuffle(usable)
        families.append(usable)
    merged = [address for pair in zip_longest(*families) for address in pair if address is not None]
    if merged:
        return tuple(dict.fromkeys(merged[:ADDRESSES_MAX]))
    return next((answer for answer in answers if isinstance(answer, NoAnswer)), ())


def outcome_of(
    unresolved: Unresolved, is_own: Callable[[str], bool] = lambda _domain: False
) -> Failed | Deferred:
    """Return the outcome for the recipients of a next hop that could not be resolved. It is
    temporary for an own domain: its configuration or its DNS is wrong, and can be corrected.
    """
    if not isinstance(unresolved, TemporaryFailure | Unprotected) and is_own(unresolved.domain):
        name = unresolved.domain
        text = f"{name} has no MX host that is preferred to this relay; check [[route]] and the DNS"
        return Deferred(Evidence("4.4.4", text), DeferralClass.DNS)  # RFC 3463 3.5
    match unresolved:
        case NullMx(domain):
            text = f"{domain} accepts no mail: it publishes a null MX (RFC 7505)"
            return Failed(Evidence("5.1.10", text))  # RFC 7505 3, 4.1
        case NoSuchDomain(domain):
            # RFC 5321 5.1; RFC 3463 3.2
            return Failed(Evidence("5.1.2", f"the domain {domain} does not exist (NXDOMAIN)"))
        case NoAddress(domain, what=what):
            return Failed(Evidence("5.4.4", f"no mail host of {domain} has an {what}"))
        case MailLoop(domain):
            text = f"mail for {domain} loops back to this relay, which does not host that domain"
            return Failed(Evidence("5.4.6", text))
        case Unprotected(hosts):
            text = (
                "the message demands REQUIRETLS, and no DANE, MTA-STS policy or route vouches for"
            )
            return Failed(Evidence(NEEDED, f"{text} {hosts}"))
        case TemporaryFailure(text, status, kind=kind):
            return Deferred(Evidence(status, text), kind)
        case _:
            assert_never(unresolved)


def _place(exchange: Exchange) -> tuple[int, str]:
    """Return the place in an MX answer as it is shown; equals are tried in random order."""
    return exchange.preference, exchange.name


def _exchange(value: str) -> Exchange:
    preference, _, name = value.partition(" ")
    return Exchange(int(preference), name)


def is_usable(address: str) -> bool:
    """Whether an address is unicast; 0.0.0.0/8 and :: would connect to this machine."""
    ip = plain_ip(address)
    return not (ip.is_unspecified or ip.is_multicast or ip in _THIS_HOST)
