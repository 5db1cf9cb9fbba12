"""Keys that sign in tests, the records of their public keys, and what a receiver makes of mail: dkimpy reads it.

RFC 6376 6.1 (what a receiver does), 3.6.1 (the record).
"""

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any, Literal

import dkim

from relay.transport.signing.keys import KeyRing, PrivateKey, SigningKey
from relay.transport.signing.private_keys import new_key, write_pem

Kind = Literal["rsa", "ed25519"]


@dataclass(frozen=True)
class DkimKeys:
    """Keys, their files and what the DNS has of them."""

    ring: KeyRing

    @classmethod
    def made(
        cls, folder: Path, keys: Mapping[tuple[str, str], Kind], *, first: int = 0
    ) -> "DkimKeys":
        """Write keys, by domain and selector, to files that only their owner reads. The keys differ
        within a call; `first` makes them differ from those of another call.
        """
        made = []
        for number, ((domain, selector), kind) in enumerate(keys.items(), first):
            private = _key(kind, number)
            file = folder / f"{domain}-{selector}.pem"
            file.write_bytes(write_pem(private))
            file.chmod(0o600)
            made.append(SigningKey(domain, selector, private, file))
        return cls(KeyRing(made))

    @property
    def config(self) -> dict[str, Any]:
        """The [[dkim]] entries of relay.toml."""
        return {
            "dkim": [
                {"domain": key.domain, "selector": key.selector, "key": str(key.file)}
                for key in self.ring.keys
            ]
        }

    def of_domain(self, domain: str) -> list[tuple[str, str]]:
        """Domain and selector of each key of a domain, in the order of relay.toml."""
        return [(key.domain, key.selector) for key in self.ring.of_domain(domain)]

    @functools.cached_property
    def records(self) -> dict[str, bytes]:
        """The TXT records, by name."""
        return {key.name: record_of(key) for key in self.ring.keys}

    def verified(self, octets: bytes) -> list[tuple[str, str]]:
        """Domain and selector of each signature, all of which hold. Raises AssertionError."""
        return verified(octets, self.records)


@functools.cache
def _key(kind: Kind, _number: int) -> PrivateKey:
    """Each is made once: one of RSA takes 0.2 s of CPU."""
    return new_key(kind)


def record_of(key: SigningKey) -> bytes:
    """The TXT record of a key."""
    public = base64.b64encode(key.private.public())
    return b"v=DKIM1; k=" + key.private.kind.encode() + b"; p=" + public


def signatures(octets: bytes) -> int:
    """How many DKIM-Signature fields a message has."""
    header, _, _ = octets.partition(b"\r\n\r\n")
    return len(message_from_bytes(header).get_all("DKIM-Signature", []))


def verified(octets: bytes, records: Mapping[str, bytes]) -> list[tuple[str, str]]:
    """Domain and selector of each signature, the first field first. Raises AssertionError if one does not hold."""

    def record(name: bytes, timeout: int = 5) -> bytes | None:
        return records.get(name.decode().rstrip("."))

    found = []
    for number in range(signatures(octets)):
        receiver = dkim.DKIM(octets)
        holds = receiver.verify(number, dnsfunc=record)
        named = receiver.domain.decode(), receiver.selector.decode()
        assert holds, f"signature {number} of {named} does not hold:\n{octets[:4000]!r}"
        found.append(named)
    return found


def foreign(
    octets: bytes, key: SigningKey, names: Sequence[bytes] = (b"From", b"Subject")
) -> bytes:
    """A message with the signature of another host before it, made by dkimpy."""
    algorithm = key.private.algorithm.encode()
    pem = write_pem(key.private)
    domain, selector = key.domain.encode(), key.selector.encode()
    made = dkim.sign(
        octets, selector, domain, pem, include_headers=names, signature_algorithm=algorithm
    )
    return bytes(made) + octets


def routing_of(journey: Mapping[str, Any]) -> dict[str, Any]:
    """The detail of step 5."""
    [found] = [one["detail"] for one in journey["steps"] if one["step"] == 5]
    return dict(found)


def named_keys(journey: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Domain and selector of the keys that step 5 names; [] if it says that the message is unsigned."""
    return [(one["domain"], one["selector"]) for one in routing_of(journey).get("dkim", ())]
