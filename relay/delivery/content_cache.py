"""The contents of claims being delivered, within a memory budget.

The contents read from the spool (only the header of a large one) stay within the budget. There are
two exceptions: a single content may be larger, and one content for a report may be added to a full
budget. A next hop uses at most as much of the budget as it leaves free, except for its first
content. A stalled next hop therefore leaves room for the others. See docs/design.md 7, invariant 8.

Contents that are encoded again for hosts are kept too, while a claim needs them. A small one has at
most 128 KiB. Of a large one only the plan is kept, by which it is encoded while it is read.
"""

import asyncio
from collections import deque
from itertools import dropwhile

from relay.base.message.content import LARGE_BYTES, Content, memory_part
from relay.base.message.header import Header, ParsedContent
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import DeferralClass, Deferred, Evidence, Outcome
from relay.base.observe.logs import get_logger
from relay.base.shares import Shares
from relay.base.task_set import shielded
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.attempt_result import same_outcome
from relay.delivery.fair_queue import ClaimQueue
from relay.formats.encode_for_host import EncodedForHost, Need, encode_for_host
from relay.store.spool.engine import SpoolEngine
from relay.store.spool.types import Claim, ContentKey, Key, SpoolError, SpoolUnavailableError
from relay.transport.signing.signature import NAME
from relay.transport.signing.signer import Signer, SigningError

_log = get_logger("delivery")
_ENCODED_AT_ONCE = 2  # each occupies a thread, which other mail needs too
_Encoding = asyncio.Future[EncodedForHost]


class ContentCache:
    """Reads contents, and keeps each until the result of its claim is recorded."""

    def __init__(
        self, spool: SpoolEngine, *, budget_bytes: int, signer: Signer | None = None
    ) -> None:
        self._spool = spool
        self._room = Shares("contents in delivery", budget_bytes)  # by next hop
        self._held: dict[Key, Content] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.roomless = ClaimQueue()  # claims in wait_for_room()
        self._signer = signer  # of what is encoded again
        self._encoding = asyncio.Semaphore(_ENCODED_AT_ONCE)
        self._encoded: dict[ContentKey, tuple[set[Key], dict[Need, _Encoding]]] = {}
        self._beyond: Key | None = None  # the claim whose content for a report is beyond the budget

    async def of(self, claim: Claim, *, for_report: bool = False) -> Content:
        """Return the content of a claim; a large one as its file. Raises SpoolError if it is
        damaged.

        A report does not wait until deliveries leave room: one content at a time may exceed the
        budget.
        """
        if claim.content is not None:
            return claim.content
        key = claim.key
        if key in self._held:
            return self._held[key]
        reserved = _reserved_bytes(claim)
        while not self._has_room(claim.next_hop, reserved):
            if for_report and self._beyond is None:
                self._beyond = key
                break
            await self._room_freed()
        self._room.add(claim.next_hop, reserved)
        try:
            # Content that this process has just written needs no check: large mail is read once.
            content = await self._spool.read_content(claim.content_id, check=not claim.is_fresh)
        except BaseException:
            self._end_beyond(key)
            self._give_back(claim.next_hop, reserved)
            raise
        self._give_back(claim.next_hop, reserved - len(memory_part(content)))
        self._held[key] = content
        return content

    async def encoded(self, claim: Claim, need: Need) -> EncodedForHost:
        """The content without what a host does not take, made once for all claims of the content
        that are being delivered. Raises CannotEncodeError, and SpoolError as of() does.
        """
        content = await self.of(claim)
        claims, made = self._encoded.setdefault(claim.content_id, (set(), {}))
        claims.add(claim.key)
        if need not in made:
            made[need] = asyncio.ensure_future(self._encode(claim, content, need))
        try:
            return await shielded(made[need])
        except OSError as error:
            made.pop(need, None)
            raise SpoolError(error.strerror or str(error)) from error

    async def _encode(self, claim: Claim, content: Content, need: Need) -> EncodedForHost:
        """Encode, and sign again what Relay had signed: its signature is above all other fields."""
        async with self._encoding:
            unsigned = _without_signature(content)
            made = await asyncio.to_thread(encode_for_host, unsigned, need)
        if not made.why:
            return EncodedForHost(content)
        if unsigned is content or self._signer is None:
            return made
        try:
            signed = await self._signer.sign([ParsedContent.of(made.content)], trusted=True)
        except SigningError as error:
            _log.error("signing failed", qid=claim.message.id, error=str(error))
            return made
        if signed.unsigned:
            _log.warning(
                "encoded again, and not signed", qid=claim.message.id, reason=signed.unsigned
            )
        return EncodedForHost(signed.contents[0].joined(), made.why)

    def without_own_signatures(self, content: Content) -> Content:
        """Return a content for a host that signs itself, without the signatures of our keys."""
        signer, name, parsed = self._signer, NAME.lower().encode(), ParsedContent.of(content)
        if signer is None or NAME not in parsed.header:  # nearly always
            return content
        fields = tuple(
            (key, octets)
            for key, octets in parsed.header.fields
            if key != name or not signer.has_signed(octets.partition(b":")[2])
        )
        return ParsedContent(Header(fields), parsed.rest).joined()

    def has_room_for(self, claim: Claim) -> bool:
        """Whether of() would not wait for room."""
        if claim.content is not None or claim.key in self._held:
            return True
        return self._has_room(claim.next_hop, _reserved_bytes(claim))

    async def wait_for_room(self, claim: Claim, claims: ClaimsInMemory) -> bool:
        """Wait for room as a claim that is not begun: it may expire or be withdrawn. Return False
        then: the caller must not attempt it. Claims that wait are asked in the order of their
        arrival.
        """
        came_from = claims.queue_of(claim)
        self.roomless.push(claim)
        claims.track(claim, self.roomless)
        while not self.has_room_for(claim):
            await self._room_freed()
        if self.roomless.get(claim.key) is not claim:  # it was taken, perhaps claimed again
            return False
        self.roomless.remove(claim.key)
        claims.track(claim, came_from)
        return True

    def release(self, claim: Claim) -> None:
        """Drop the content of a claim that has ended, and what only it needs of encoded ones."""
        if claim.content_id in self._encoded:
            claims, _ = self._encoded[claim.content_id]
            claims.discard(claim.key)
            if not claims:
                del self._encoded[claim.content_id]
        content = self._held.pop(claim.key, None)
        if content is not None:
            self._end_beyond(claim.key)
            self._give_back(claim.next_hop, len(memory_part(content)))

    def _end_beyond(self, key: Key) -> None:
        if self._beyond == key:
            self._beyond = None

    async def _room_freed(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter

    def _has_room(self, next_hop: NextHop, size: int) -> bool:
        """As in ActiveQueue: a stalled next hop leaves room for the others."""
        return not self._room.taken or self._room.has_room(next_hop, size)

    def _give_back(self, next_hop: NextHop, size_bytes: int) -> None:
        if not size_bytes:
            return
        self._room.give_back(next_hop, size_bytes)
        while self._waiting:  # each checks for room itself
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _without_signature(content: Content) -> Content:
    """Return a content without the signatures that are its first fields, the same without any."""
    if memory_part(content)[: len(NAME)].lower() != NAME.lower().encode():
        return content
    parsed = ParsedContent.of(content)
    fields = dropwhile(lambda field: field[0] == NAME.lower().encode(), parsed.header.fields)
    return ParsedContent(Header(tuple(fields)), parsed.rest).joined()


def _reserved_bytes(claim: Claim) -> int:
    return min(claim.content_size, LARGE_BYTES)


def unreadable(claim: Claim, error: SpoolError) -> dict[int, Outcome]:
    """The outcome of a claim whose content cannot be read. The second time in a row it is held,
    unless the spool was not there: that says nothing about the content.
    """
    evidence = Evidence("4.3.0", f"451 4.3.0 the message cannot be read: {error}")  # RFC 3463 3.4
    is_spool = isinstance(error, SpoolUnavailableError)
    cause = DeferralClass.INTERNAL if is_spool else DeferralClass.CONTENT
    return same_outcome(claim, Deferred(evidence, cause))
