"""What the DNS said, turned into hosts to try or a reason why there are none.

On the path: the resolver asks, these functions decide; delivery turns the reason into an outcome.
Holds: pure; silence and server failures are temporary, only definite answers are permanent.
Fails: never.
Standards: RFC 5321 5.1 (MX, implicit MX, loops), RFC 7505 (null MX), RFC 3463 (status codes).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from itertools import zip_longest
from typing import assert_never

from relay.message.outcome import DeferralClass, Deferred, Evidence, Failed

EXCHANGES_MAX = 16  # hosts of one domain that are looked at; others stop at 5 to 10
ADDRESSES_MAX = 16  # addresses of one host


@dataclass(frozen=True, slots=True)
class Records:
    """Records of the type asked for, as text: an address each, or "PREFERENCE NAME"."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoRecords:
    """The name exists, without records of this type (NODATA)."""


@dataclass(frozen=True, slots=True)
class NoName:
    """The name does not exist (NXDOMAIN)."""


@dataclass(frozen=True, slots=True)
class Silence:
    """No usable answer (SERVFAIL, REFUSED, time-out, nonsense); `text` says which."""

    text: str


Answer = Records | NoRecords | NoName | Silence


@dataclass(frozen=True, slots=True)
class Exchange:
    """One MX record; `name` is lower case without the final dot, "" for the root (RFC 7505)."""

    preference: int
    name: str


@dataclass(frozen=True, slots=True)
class Host:
    """A host to try; its addresses in the order in which to try them."""

    name: str
    preference: int
    addresses: tuple[str, ...]
    port: int


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where to try, best first; never empty."""

    hosts: tuple[Host, ...]


@dataclass(frozen=True, slots=True)
class NullMx:
    """The domain says that it takes no mail (RFC 7505)."""

    domain: str


@dataclass(frozen=True, slots=True)
class NoSuchDomain:
    """The domain does not exist."""

    domain: str


@dataclass(frozen=True, slots=True)
class NoAddress:
    """No mail host of the domain has an address."""

    domain: str


@dataclass(frozen=True, slots=True)
class Looped:
    """The best mail host of the domain is this relay, which does not know the domain."""

    domain: str


@dataclass(frozen=True, slots=True)
class TemporaryFailure:
    """Nothing definite is known now."""

    text: str
    status: str = "4.4.3"


Unresolved = NullMx | NoSuchDomain | NoAddress | Looped | TemporaryFailure
Resolution = Hosts | Unresolved


def exchanges_of(domain: str, answer: Answer) -> tuple[Exchange, ...] | Unresolved:
    """Choose the mail exchanges of `domain` from the answer to its MX question, in no order yet.

    Without MX records the domain is its own exchange (RFC 5321 5.1); that takes a definite NODATA.
    """
    match answer:
        case Silence(text):
            return TemporaryFailure(f"the MX records of {domain} could not be looked up: {text}")
        case NoName():
            return NoSuchDomain(domain)
        case NoRecords():
            return (Exchange(0, domain),)
        case Records(values):
            exchanges = tuple(map(_exchange, values))
            named = tuple(exchange for exchange in exchanges if exchange.name)
            return named or NullMx(domain)


def in_order(exchanges: Sequence[Exchange], chance: random.Random) -> list[Exchange]:
    """Sort by preference, equals in random order (RFC 5321 5.1), and keep EXCHANGES_MAX."""
    shuffled = list(exchanges)
    chance.shuffle(shuffled)
    shuffled.sort(key=lambda exchange: exchange.preference)
    return shuffled[:EXCHANGES_MAX]


def better_than_own(
    exchanges: Sequence[Exchange], is_own: Callable[[Exchange], bool]
) -> list[Exchange]:
    """Drop this relay and all that are not better: from those, mail would come back."""
    own = min((each.preference for each in exchanges if is_own(each)), default=None)
    return [each for each in exchanges if own is None or each.preference < own]


def addresses_of(four: Answer, six: Answer, chance: random.Random) -> tuple[str, ...] | Silence:
    """Merge the answers for A and AAAA: IPv4 first, then in turns; each family in random order.

    Empty when it is definite that there are none; Silence when one answer is missing for that.
    """
    families = []
    for answer in (four, six):
        usable = (
            [value for value in answer.values if _usable(value)]
            if isinstance(answer, Records)
            else []
        )
        chance.shuffle(usable)
        families.append(usable)
    turns = [each for pair in zip_longest(*families) for each in pair if each is not None]
    if turns:
        return tuple(dict.fromkeys(turns[:ADDRESSES_MAX]))
    return next((answer for answer in (four, six) if isinstance(answer, Silence)), ())


def outcome_of(unresolved: Unresolved) -> Failed | Deferred:
    """Say what an unresolved next hop means for the recipients behind it."""
    match unresolved:
        case NullMx(domain):
            text = f"{domain} accepts no mail: it publishes a null MX (RFC 7505)"
            return Failed(Evidence("5.1.10", text))
        case NoSuchDomain(domain):
            return Failed(Evidence("5.1.2", f"the domain {domain} does not exist (NXDOMAIN)"))
        case NoAddress(domain):
            return Failed(Evidence("5.4.4", f"no mail host of {domain} has an address"))
        case Looped(domain):
            text = f"mail for {domain} loops back to this relay, which does not host that domain"
            return Failed(Evidence("5.4.6", text))
        case TemporaryFailure(text, status):
            return Deferred(Evidence(status, text), DeferralClass.DNS)
        case _:
            assert_never(unresolved)


def _exchange(value: str) -> Exchange:
    preference, _, name = value.partition(" ")
    return Exchange(int(preference), name)


@lru_cache(maxsize=4096)
def _usable(address: str) -> bool:
    """Whether it names one host: 0.0.0.0 and :: would quietly mean ourselves, multicast nobody."""
    parsed = ip_address(address)
    return not (parsed.is_unspecified or parsed.is_multicast)
