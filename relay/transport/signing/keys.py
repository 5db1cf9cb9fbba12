"""The signing keys, by their domains.

The keys of a domain also sign for the domains below it that have no keys. private_keys has the
cryptography; a relay without keys does not import it, because the library is large.
RFC 6376 3.1 (selectors), 3.10; RFC 6376 3.6.2.1 (where the DNS has the public key).
"""

import math
from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

from msgspec import Struct

DAY_US = 86_400_000_000
RSA_BITS_ADVISED = 2048  # RFC 8301 3.2
SOON_US = 14 * DAY_US  # before its end, a key needs a successor
_EPOCH = date(1970, 1, 1)


class PrivateKey(Protocol):
    """A private key; relay.transport.signing.private_keys has the classes of both kinds."""

    @property
    def algorithm(self) -> str:
        """The value of a=: rsa-sha256 or ed25519-sha256."""

    @property
    def kind(self) -> str:
        """The value of k= in the DNS record: rsa or ed25519."""

    @property
    def bits(self) -> int:
        """The size of the key."""

    def sign(self, octets: bytes) -> bytes:
        """Return the signature of the octets that a DKIM-Signature covers."""

    def public(self) -> bytes:
        """Return the public key as the DNS record has it, before base64 (RFC 6376 3.6.1)."""


class SigningKey(Struct, frozen=True):
    """One [[dkim]] entry; from `ends_us` on (wall time) it is not used for signing."""

    domain: str  # with A-labels
    selector: str
    private: PrivateKey
    file: Path
    ends_us: int | None = None

    @property
    def name(self) -> str:
        """The name of its record in the DNS."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def last_day(self) -> str:
        """The last day on which it signs (UTC), "" without an end."""
        if self.ends_us is None:
            return ""
        return (_EPOCH + timedelta(days=self.ends_us // DAY_US - 1)).isoformat()

    def is_usable(self, now_us: int) -> bool:
        """Whether the key may sign at a moment of wall time."""
        return self.ends_us is None or now_us < self.ends_us


class KeyRing:
    """All keys. Immutable."""

    def __init__(self, keys: Iterable[SigningKey] = ()) -> None:
        self.keys = tuple(keys)
        self._by_domain: dict[str, list[SigningKey]] = {}
        for key in self.keys:
            self._by_domain.setdefault(key.domain, []).append(key)

    def __bool__(self) -> bool:
        return bool(self.keys)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that have keys, in the order of relay.toml."""
        return tuple(self._by_domain)

    def of_domain(self, domain: str) -> tuple[SigningKey, ...]:
        """Return the keys of this domain, without those of domains above it."""
        return tuple(self._by_domain.get(domain, ()))

    def domain_for(self, domain: str) -> str:
        """Return the signing domain (d=) for the domain of an author, or "".

        It is the domain itself, or the longest domain above it that has keys. Both are in lower
        case with A-labels.
        """
        while domain:
            if domain in self._by_domain:
                return domain
            domain = domain.partition(".")[2]
        return ""

    def ending(self, now_us: int) -> list[SigningKey]:
        """Return, for each domain all of whose keys end within 14 days, the key that ends last."""
        last = [max(keys, key=_end) for keys in self._by_domain.values()]
        return [key for key in last if not key.is_usable(now_us + SOON_US)]


def _end(key: SigningKey) -> float:
    return math.inf if key.ends_us is None else key.ends_us
