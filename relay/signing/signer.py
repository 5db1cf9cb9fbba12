"""Decide who signs a message, and sign it: all its contents, with each usable key of one domain.

Messages of Relay's own users are signed, and the reports that Relay writes, for the domain of the
only author (RFC 6376 3.11: d= need not be that of From, but DMARC wants it to be, RFC 9989).
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

from relay.clock import Clock
from relay.journeys.events import NO_SIGNING_KEYS
from relay.message.address import AddressError, to_ascii_domain
from relay.message.content import LARGE_BYTES
from relay.message.envelope import domain_of
from relay.message.header import ParsedContent
from relay.mime.read_header import sole_author
from relay.observe.metrics import Metrics
from relay.signing.canonical import body_form, body_hash
from relay.signing.keys import KeyRing, SigningKey
from relay.signing.signature import signature_field

# A smaller message is signed on the event loop if its keys are quick: a thread costs more.
_QUICK_BYTES = 64 * 1024
_QUICK_KIND = "ed25519"
# Large messages that are signed at a time: each occupies a thread for 0.1 s per 100 MB, and the
# same threads write, read and send all other mail.
_LARGE_AT_ONCE = 2
_STRANGER = "the client is not trusted"


class SigningError(Exception):
    """A message could not be signed; the text names the key and the error."""


class SignedContents(Struct, frozen=True):
    """The contents of a message with their signatures; `unsigned` says why one has none."""

    contents: tuple[ParsedContent, ...]
    keys: tuple[SigningKey, ...] = ()  # that signed
    unsigned: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return this for the event of step 5: `dkim`, `unsigned`, or both if copies differ."""
        used = [
            {"domain": key.domain, "selector": key.selector, "algorithm": key.private.algorithm}
            for key in self.keys
        ]
        found = {"dkim": used, "unsigned": self.unsigned}
        return {name: value for name, value in found.items() if value}


class Signer:
    """Signs with the keys in force, which a reload replaces."""

    def __init__(self, keys: Callable[[], KeyRing], *, clock: Clock, metrics: Metrics) -> None:
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def sign(self, contents: Sequence[ParsedContent], *, trusted: bool) -> SignedContents:
        """Sign each content of a message; `trusted` says that its client is no stranger.

        What takes long is done in a thread. Raises SigningError.
        """
        ring = self._keys()
        if not ring:  # nearly always
            return SignedContents(tuple(contents), unsigned=NO_SIGNING_KEYS)
        if not trusted:
            return SignedContents(tuple(contents), unsigned=_STRANGER)
        now_us = self._clock.time_us()
        plans = [_plan(content, ring, now_us) for content in contents]
        if all(plan.is_quick for plan in plans):
            return self._signed(plans, now_us)
        is_large = any(plan.content.size > LARGE_BYTES for plan in plans)
        async with self._large if is_large else contextlib.nullcontext():
            return await asyncio.to_thread(self._signed, plans, now_us)

    def sign_report(self, content: ParsedContent) -> SignedContents:
        """Sign a report or a notice, in the calling thread. Raises SigningError."""
        ring = self._keys()
        if not ring:
            return SignedContents((content,), unsigned=NO_SIGNING_KEYS)
        now_us = self._clock.time_us()
        return self._signed([_plan(content, ring, now_us)], now_us)

    def _signed(self, plans: Sequence["_Plan"], now_us: int) -> SignedContents:
        contents, hashes = [], dict[int, bytes]()  # by the identity of a body that forks share
        for plan in plans:
            content = plan.content
            if plan.domain and not plan.keys:
                self._count(plan.domain, "ended")
            if not plan.keys:
                contents.append(content)
                continue
            fields, signer = [], plan.domain
            try:
                body = id(content.rest)
                if body not in hashes:
                    hashes[body] = body_hash(content)
                for key in plan.keys:
                    signer = key.name
                    fields.append(self._field(plan, key, body=hashes[body], now_us=now_us))
            except Exception as error:  # of a library, or of the disk with a large body
                self._count(plan.domain, "failed")
                text = f"{signer}: {type(error).__name__}: {error}"
                raise SigningError(text) from error
            contents.append(ParsedContent(content.header.prepend(b"".join(fields)), content.rest))
        used = {key.name: key for plan in plans for key in plan.keys}
        unsigned = next((plan.unsigned for plan in plans if plan.unsigned), "")
        return SignedContents(tuple(contents), tuple(used.values()), unsigned)

    def _field(self, plan: "_Plan", key: SigningKey, *, body: bytes, now_us: int) -> bytes:
        header, form = plan.content.header, body_form(plan.content)
        field = signature_field(header, key, body_hash=body, form=form, time_s=now_us // 1_000_000)
        self._count(key.domain, "signed")
        return field

    def _count(self, domain: str, result: str) -> None:
        self._metrics.dkim_signatures.labels(domain=domain, result=result).inc()


class _Plan(Struct, frozen=True):
    """Who signs a content: the usable keys of `domain`, or nobody and why."""

    content: ParsedContent
    domain: str = ""
    keys: tuple[SigningKey, ...] = ()
    unsigned: str = ""

    @property
    def is_quick(self) -> bool:
        if not self.keys:
            return True
        is_small = self.content.size <= _QUICK_BYTES
        return is_small and all(key.private.kind == _QUICK_KIND for key in self.keys)


def _plan(content: ParsedContent, ring: KeyRing, now_us: int) -> _Plan:
    author = sole_author(content.header)
    if author.fault:
        return _Plan(content, unsigned=author.fault)
    try:
        found = to_ascii_domain(domain_of(author.address))
    except AddressError:
        return _Plan(content, unsigned="From has a domain that is no name")
    domain = ring.domain_for(found)
    if not domain:
        return _Plan(content, unsigned=f"no signing key for {found}")
    keys = tuple([key for key in ring.of_domain(domain) if key.is_usable(now_us)])
    return _Plan(content, domain, keys, "" if keys else f"the keys of {domain} have ended")
