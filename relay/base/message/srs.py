"""Rewrite the reverse-path of mail that is forwarded to other domains, and reverse it (SRS).

With the Sender Rewriting Scheme (libsrs2.org), a forwarder sends from an address of its own domain,
so that SPF passes. The local part contains the original sender, so that reports can be sent back
(relay/transport/ingress/forwarding.py does both):

    SRS0=HHHHHHHHHH=TT=example.org=ann@alias.test   ann@example.org, by the forwarder alias.test
    SRS1=HHHHHHHHHH=alias.test==XXXX=TT=example.org=ann@next.test   the same, by a second forwarder

SRS1 names the first forwarder and keeps the text of its SRS0, so that a report goes back in two
steps, however many forwarders there are. H is an HMAC-SHA256 of all other parts, cut to 50 bits in
base32; T is the day modulo 1024. SRS1 has no field for the day: the day is only in the hash, and
each valid day is tried.

Hosts on the way may change the case of an address: the case of ASCII letters is ignored. Quotes are
put around the whole local part. As with other forwarders, a local part may have more than the 64
octets that every host must accept (RFC 5321 4.5.3.1.1); a path never has more than 256.
"""

import base64
import hmac
import re
from functools import lru_cache
from hashlib import sha256

from relay.base.message.address import (
    PATH_OCTETS_MAX,
    AddressError,
    parse_mailbox,
    plain_local_part,
    to_ascii_domain,
    written_local_part,
)

VALID_DAYS = 21
_AHEAD_DAYS = 1  # by which the clock may have been set back since then
_DAY_US = 86_400_000_000
_STAMPS = 1024  # days until a stamp repeats
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # base32, RFC 4648 6
_HASH_LENGTH = 10
_ADDRESSES_KEPT = 4096  # more than a message has; each is read several times, with up to 23 hashes

_tagged = re.compile(r"SRS([01])[=+-]", re.IGNORECASE | re.ASCII).match


class SrsError(ValueError):
    """An address is not one that this key wrote, or it is too old; the text says which."""


def is_srs(address: str) -> bool:
    """Whether the address has the form that Srs writes, with or without quotes."""
    local_part = address.removeprefix('"')
    return local_part[4:5] == "=" and _tagged(local_part) is not None


class Srs:
    """Rewrites and reverses addresses with one key."""

    def __init__(self, key: bytes, domain: str = "") -> None:
        """Addresses are written with `domain`, or with the domain of the forwarder if it is ""."""
        self._key = key
        self._domain = domain
        self._read_on = lru_cache(_ADDRESSES_KEPT)(self._read)

    def at(self, domain: str) -> "Srs":
        """Return the same with another domain."""
        return self if domain == self._domain else Srs(self._key, domain)

    def digest(self) -> str:
        """Return a digest that identifies the key; it is as secret as the key."""
        return sha256(self._key).hexdigest()

    def rewritten(self, sender: str, domain: str, *, now_us: int) -> str:
        """Return the address that replaces `sender`; `domain` is that of the forwarder.

        A sender that another forwarder has rewritten gets an SRS1 address. A sender without a
        domain, or whose path would become too long, is returned as it is.
        """
        local_part, at, host = sender.rpartition("@")
        try:
            domain, host = to_ascii_domain(self._domain or domain), to_ascii_domain(host)
        except AddressError:
            return sender
        plain = plain_local_part(local_part)
        day = now_us // _DAY_US
        if first := _first_forwarder(plain, host):
            written = f"SRS1={self._hash('SRS1', day, *first, domain)}={'='.join(first)}"
        else:
            stamp = _DIGITS[day // 32 % 32] + _DIGITS[day % 32]
            digest = self._hash("SRS0", stamp, host, plain, domain)
            written = f"SRS0={digest}={stamp}={host}={plain}"
        address = f"{written_local_part(written)}@{domain}"
        fits = at and len(address.encode()) <= PATH_OCTETS_MAX - 2
        return address if fits else sender

    def original(self, address: str, *, now_us: int) -> str:
        """Return the sender that `address` stands for; for SRS1 the address that the first
        forwarder wrote. Raises SrsError.
        """
        if not is_srs(address):
            raise SrsError("no SRS address")
        return self._read_on(address, now_us // _DAY_US)

    def _read(self, address: str, today: int) -> str:
        local_part, _, domain = address.rpartition("@")
        plain = plain_local_part(local_part)
        read = self._read_first if plain[3] == "0" else self._read_next
        try:
            user, host = read(plain[5:], to_ascii_domain(domain), today)
            return parse_mailbox(f"{written_local_part(user)}@{host}", smtputf8=True)
        except SrsError:
            raise
        except ValueError:  # too few parts, or an address that cannot be used
            raise SrsError("forged") from None

    def _read_first(self, text: str, domain: str, today: int) -> tuple[str, str]:
        """Return local part and domain from the text after "SRS0="."""
        digest, stamp, host, user = text.split("=", 3)
        if not _equal(digest, self._hash("SRS0", stamp, host, user, domain)):
            raise SrsError("forged")
        high, low = (_DIGITS.index(digit) for digit in stamp.upper())
        if (today + _AHEAD_DAYS - high * 32 - low) % _STAMPS > VALID_DAYS + _AHEAD_DAYS:
            raise SrsError(f"older than {VALID_DAYS} days")
        return user, host

    def _read_next(self, text: str, domain: str, today: int) -> tuple[str, str]:
        """Return local part and domain from the text after "SRS1="."""
        digest, host, rest = text.split("=", 2)
        days = range(today - VALID_DAYS, today + _AHEAD_DAYS + 1)
        hashes = (self._hash("SRS1", day, host, rest, domain) for day in days)
        if not any(_equal(digest, expected) for expected in hashes):
            raise SrsError(f"forged, or older than {VALID_DAYS} days")
        return f"SRS0{rest}", host

    def _hash(self, *parts: object) -> str:
        """Return the hash of parts, in which the case of ASCII letters is ignored."""
        octets = "\0".join(map(str, parts)).encode().lower()
        digest = hmac.digest(self._key, octets, "sha256")
        return base64.b32encode(digest)[:_HASH_LENGTH].decode()


def _first_forwarder(plain: str, host: str) -> tuple[str, str] | None:
    """Return the host of the first forwarder, and the text after "SRS0" in its address.

    None for an address that no forwarder wrote.
    """
    match = _tagged(plain)
    if match is None:
        return None
    if match[1] == "0":
        return host, plain[4:]
    parts = plain[5:].split("=", 2)
    if len(parts) < 3 or not parts[2].startswith(("=", "+", "-")):
        return None
    try:
        _, _, first = parse_mailbox(f"a@{parts[1]}").rpartition("@")
    except AddressError:
        return None
    return first, parts[2]


def _equal(digest: str, expected: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(digest.encode().upper(), expected.encode())
