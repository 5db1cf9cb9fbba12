"""The spool and the contents in memory of a process, which tell the ledger what is done with them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from relay.base.message.content import LARGE_BYTES, Content, LargeContent
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.content_cache import ContentCache
from relay.store.spool.sqlite.content_files import is_in_file
from relay.store.spool.types import Accepted, Claim, ClaimResult, DueBatch, DueQuery, SpoolError
from tests.simulation.ledger import Ledger
from tests.simulation.life import Life

CONTENTS_BYTES = 200_000  # of contents in memory, in addition to those of claims


class WatchedContents(ContentCache):
    """Tells the ledger of whom it made wait."""

    def __init__(self, witness: "Witness", ledger: Ledger) -> None:
        super().__init__(witness, budget_bytes=CONTENTS_BYTES)
        self._ledger = ledger

    async def wait_for_room(self, claim: Claim, claims: ClaimsInMemory) -> bool:
        self._ledger.attempted(claim)  # it has its connection, and waits for contents in memory
        with self._ledger.progress.waiting_for_room(claim.next_hop.host):
            return await super().wait_for_room(claim, claims)

    async def of(self, claim: Claim, *, for_report: bool = False) -> Content:
        self._ledger.attempted(claim)
        asked_s = self._ledger.world.time()
        content = await super().of(claim, for_report=for_report)
        if self._ledger.world.time() > asked_s:
            self._ledger.late(claim)
        return content


class Witness:
    """A Spool that sees what its processes do with the real one."""

    def __init__(self, spool: Any, ledger: Ledger, life: Life, disk: Any) -> None:
        self._spool = spool
        self._disk = disk
        self.contents: Any = None  # those in memory
        self._ledger = ledger
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spool, name)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Fail the world for an error of a judge, which the relay would take for one of the spool."""
        try:
            yield
        except Exception as error:
            self._ledger.world.fault(f"a judge failed: {error!r}")
            raise

    async def accept(self, message: Any, **more: Any) -> Accepted:
        world, was_full = self._ledger.world, self._disk.full
        self._ledger.accepts(message.facts.id)
        with self._ledger.progress.made():
            accepted = await self._spool.accept(message, **more)
        with self._judging():
            if accepted.repeated:
                world.reached["accepted: repeated"] += 1
                self._ledger.repeated(more["submission_key"])
                if accepted.queue_id in self._ledger.archive:
                    world.reached["accepted: repeated, behind its history"] += 1
            elif was_full and self._disk.full:
                world.fault(f"invariant 10: {message.facts.id} was taken on while the disk is full")
            if len({entry.content for entry in message.entries}) > 1:
                world.reached["accepted: in two versions"] += 1
            if not accepted.claims and message.entries:
                world.reached["accepted: as no claim"] += 1
            if any(isinstance(one, LargeContent) for one in message.contents):
                world.reached["accepted: large"] += 1
            elif any(is_in_file(one) for one in message.contents):
                world.reached["accepted: in a file"] += 1
            self._ledger.claimed(accepted.claims, self._life)
        return accepted

    async def record(self, claim_result: ClaimResult, **more: Any) -> Any:
        was_fenced = self._ledger.records(claim_result.claim)
        if claim_result.reports:
            self._life.doing.append("a report")
            self._life.may_die(self._ledger.world.rng)
        try:
            with self._ledger.progress.made():
                held, claims = await self._spool.record(claim_result, **more)
        finally:
            if claim_result.reports:
                self._life.doing.remove("a report")
        with self._judging():
            self._ledger.recorded(claim_result, held=held, was_fenced=was_fenced)
            self._ledger.claimed(claims, self._life)
        return held, claims

    async def claim_due(self, now_us: int, limit: int, look: DueQuery) -> DueBatch:
        kind = "sender" if look.sender is not None else "next hop" if look.next_hop else "onward"
        self._ledger.world.reached[f"look: {kind}"] += 1
        with self._ledger.progress.made():
            seen: DueBatch = await self._spool.claim_due(now_us, limit, look)
        with self._judging():
            self._ledger.claimed(seen.claims, self._life)
        return seen

    async def read_content(self, content_id: int, **more: Any) -> Content:
        if self._disk.unreadable:
            raise SpoolError("simulated")
        with self._ledger.progress.made():
            content: Content = await self._spool.read_content(content_id, **more)
        used_bytes, most = self.contents._room.taken, max(CONTENTS_BYTES, LARGE_BYTES)
        if self.contents._beyond is not None:  # one content for a report
            most += LARGE_BYTES
        if used_bytes > most:
            self._ledger.world.fault(f"invariant 8: {used_bytes} bytes of contents in memory")
        return content

    async def release(self, claims: Sequence[Claim]) -> None:
        await self._spool.release(claims)
        self._ledger.released(claims)
