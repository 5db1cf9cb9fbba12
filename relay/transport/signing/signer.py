"""Decide which keys sign a message, and sign all its contents with each usable key of one domain.

Messages of Relay's own users and reports that Relay writes are signed, for the domain of the only
author. RFC 6376 3.11 allows d= to differ from the domain in From, but DMARC wants it to be the same
(RFC 9989).
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from relay.base.clock import Clock
from relay.base.message.content import LARGE_BYTES
from relay.base.message.envelope import domain_of
from relay.base.message.header import ParsedContent
from relay.base.observe.metrics import Metrics
from relay.formats.read_header import sole_author
from relay.store.journeys.details import SignedWith
from relay.store.journeys.events import NO_SIGNING_KEYS
from relay.transport.signing import signature as signatures
from relay.transport.signing.keys import KeyRing, SigningKey

_QUICK_BYTES = 64 * 1024  # a smaller message is read and signed on the event loop
# How many large messages are signed at a time. Each occupies a thread for 0.1 s per 100 MB, and
# these threads also write, read and send all other mail.
_LARGE_AT_ONCE = 2
_STRANGER = "the client is not trusted"


class SigningError(Exception):
    """A message could not be signed; the text names the key and the error."""


class SignedContents(Struct, frozen=True):
    """The contents of a message with their signatures; `unsigned`: why a content has none."""

    contents: tuple[ParsedContent, ...]
    keys: tuple[SigningKey, ...] = ()  # the keys that signed
    unsigned: str = ""

    @property
    def signed_with(self) -> list[SignedWith]:
        """The keys, for the event of step 5."""
        return [SignedWith(key.domain, key.selector, key.private.algorithm) for key in self.keys]


def _failed(signer: str, error: Exception) -> SigningError:
    return SigningError(f"{signer}: {type(error).__name__}: {error}")


class Signer:
    """Signs with the keys in force, which a reload replaces."""

    def __init__(self, keys: Callable[[], KeyRing], *, clock: Clock, metrics: Metrics) -> None:
        self._keys = keys
        self._clock = clock
        self._metrics = metrics
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def sign(self, contents: Sequence[ParsedContent], *, trusted: bool) -> SignedContents:
        """Sign each content of a message; only mail of a `trusted` client is signed.

        Large bodies are read in threads. Raises SigningError.
        """
        ring = self._keys()
        if not ring:  # nearly always
            return SignedContents(tuple(contents), unsigned=NO_SIGNING_KEYS)
        if not trusted:
            return SignedContents(tuple(contents), unsigned=_STRANGER)
        now_us = self._clock.time_us()
        plans = [_plan(content, ring, now_us) for content in contents]
        with self._counted(plans):
            size = max(plan.content.size if plan.keys else 0 for plan in plans)
            # RSA takes milliseconds, in which the library lets other threads run
            is_slow = any(key.private.kind == "rsa" for plan in plans for key in plan.keys)
            if size > _QUICK_BYTES or is_slow:
                async with self._large if size > LARGE_BYTES else contextlib.nullcontext():
                    return await asyncio.to_thread(_signed, plans, now_us)
            return _signed(plans, now_us)

    def has_signed(self, value: bytes) -> bool:
        """Return whether the value of a DKIM-Signature names one of the keys."""
        pairs = [part.partition(b"=") for part in value.split(b";")]
        tags = {name.strip(): text.strip() for name, _, text in pairs}
        own = {(key.domain.encode(), key.selector.encode()) for key in self._keys().keys}
        return (tags.get(b"d", b"").lower(), tags.get(b"s", b"")) in own

    def sign_report(self, content: ParsedContent) -> SignedContents:
        """Sign a report or a notice, in the calling thread. Raises SigningError."""
        ring = self._keys()
        if not ring:
            return SignedContents((content,), unsigned=NO_SIGNING_KEYS)
        now_us = self._clock.time_us()
        plans = [_plan(content, ring, now_us)]
        with self._counted(plans):
            return _signed(plans, now_us)

    @contextlib.contextmanager
    def _counted(self, plans: Sequence["_Plan"]) -> Iterator[None]:
        count = self._metrics.dkim_signatures_by
        try:
            yield
        except SigningError:
            count(next(plan.domain for plan in plans if plan.keys), "failed").inc()
            raise
        for plan in plans:
            if plan.domain:
                count(plan.domain, "signed" if plan.keys else "ended").inc(len(plan.keys) or 1)


def _signed(plans: Sequence["_Plan"], now_us: int) -> SignedContents:
    """Sign in this thread. Raises SigningError."""
    hashes: dict[int, bytes] = {}
    contents = [_with_signatures(plan, hashes, now_us) for plan in plans]
    used = {key.name: key for plan in plans for key in plan.keys}
    unsigned = next((plan.unsigned for plan in plans if plan.unsigned), "")
    return SignedContents(tuple(contents), tuple(used.values()), unsigned)


def _with_signatures(plan: "_Plan", hashes: dict[int, bytes], now_us: int) -> ParsedContent:
    """Return the content with a signature of each key; `hashes`: by the id() of a shared body."""
    content = plan.content
    if not plan.keys:
        return content
    form, body = signatures.body_form(content), id(content.rest)
    if body not in hashes:
        try:
            hashes[body] = signatures.body_hash(content, form)
        except Exception as error:  # of the disk with a large body
            raise _failed(plan.domain, error) from error
    covered, fields = signatures.covered_fields(content.header), b""
    for key in plan.keys:
        field = signatures.unsigned_field(
            covered, key, body_hash=hashes[body], form=form, time_s=now_us // 1_000_000
        )
        try:
            signature = key.private.sign(signatures.to_sign(covered, field))
        except Exception as error:  # a library may raise any
            raise _failed(key.name, error) from error
        fields += signatures.complete_field(field, signature)
    return ParsedContent(content.header.prepend(fields), content.rest)


class _Plan(Struct, frozen=True):
    """The keys that sign a content: the usable keys of `domain`, or none and the reason."""

    content: ParsedContent
    domain: str = ""
    keys: tuple[SigningKey, ...] = ()
    unsigned: str = ""


def _plan(content: ParsedContent, ring: KeyRing, now_us: int) -> _Plan:
    author = sole_author(content.header)
    if author.fault:
        return _Plan(content, unsigned=author.fault)
    author_domain = domain_of(author.address)
    if not author_domain.isascii():
        return _Plan(content, unsigned="From has a domain that is no name")
    domain = ring.domain_for(author_domain)
    if not domain:
        return _Plan(content, unsigned=f"no signing key for {author_domain}")
    keys = tuple([key for key in ring.of_domain(domain) if key.is_usable(now_us)])
    return _Plan(content, domain, keys, "" if keys else f"the keys of {domain} have ended")
