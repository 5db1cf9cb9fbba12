"""The operators' desk: list the queue, count it, and change it by hand.

On the path: beside it; web and the command line ask, delivery gives up what only waits.
Holds: an entry changes once, whoever else asks at the same moment; what a connection has in work is
    left alone and told; a large order goes in slices, and mail goes on between them.
Fails: SpoolError; what was done until then stays done.
Standards: docs/design.md 4; docs/names.md (Commands).
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import apsw

from relay.clock import Clock
from relay.message.lifecycle import State
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.spool.operating import (
    LISTED_MAX,
    RECIPIENTS_MAX,
    Changed,
    InDelivery,
    Listed,
    NothingInDelivery,
    Operation,
    Order,
    Result,
    Tell,
)
from relay.spool.sqlite.engine.batch import Batch
from relay.spool.sqlite.engine.reader import Reader
from relay.spool.sqlite.engine.writer import Writer
from relay.spool.sqlite.operating.changing import Times, Work, change, put_back
from relay.spool.sqlite.operating.foreseeing import IN_FLIGHT, foresee
from relay.spool.sqlite.operating.listing import Listing
from relay.spool.sqlite.operating.selecting import Selection
from relay.spool.types import Key, Selector

_AT_ONCE = 200  # entries of one transaction: nobody waits long for the writer
_ROUNDS = 3  # in which a claim that was made in between is taken as well
_PAUSE_S_FIRST = 0.2
_PAUSE_S_MAX = 10.0
_log = get_logger("spool")


class QueueDesk:
    """A Desk over the spool's writer and a reader."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        *,
        remove_files: Callable[[Sequence[str]], None],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._remove_files = remove_files
        self._clock = clock
        self._metrics = metrics
        self._delivery: InDelivery = NothingInDelivery()
        self._giving_back: set[asyncio.Task[None]] = set()

    def attend(self, delivery: InDelivery) -> None:
        """From here on `delivery` has claims in memory."""
        self._delivery = delivery

    async def list(self, selector: Selector, *, limit: int) -> Listed:
        """Desk.list."""
        times = self._times()
        selection = Selection(selector, now_us=times.steady_us, keys_at_once=2 * limit)
        listing = Listing(ahead_us=times.ahead_us, entries_max=limit, recipients_max=RECIPIENTS_MAX)

        def look(cursor: apsw.Cursor) -> None:
            for key in selection.step(cursor):
                listing.add(cursor, key)

        while not (selection.has_ended or listing.is_full):
            await self._reader.run(look)
        return Listed(listing.entries, unknown=selection.unknown)

    async def carry_out(self, order: Order, *, tell: Tell = lambda _: None) -> Changed:
        """Desk.carry_out."""
        times = self._times()
        selection = Selection(order.selector, now_us=times.steady_us)
        answer = _Answer(order, ahead_us=times.ahead_us, tell=tell)
        while not selection.has_ended:
            keys = await self._reader.run(selection.step)
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                if order.dry_run:
                    await self._rehearse(some, answer)
                else:
                    # whoever asked may go, but not between taking a claim and what becomes of it
                    await asyncio.shield(self._do(some, answer))
        return answer.changed(unknown=selection.unknown)

    async def _rehearse(self, keys: Sequence[Key], answer: "_Answer") -> None:
        listed = answer.listing()
        waiting = self._waiting(answer.order, keys)
        rehearse = partial(
            _rehearse, order=answer.order, keys=keys, waiting=waiting,
            now_us=self._clock.steady_us(), listed=listed,
        )  # fmt: skip
        answer.add(await self._reader.run(rehearse), listed)

    async def _do(self, keys: Sequence[Key], answer: "_Answer") -> None:
        """Change one slice; what was claimed while it went on is taken in another round."""
        left = keys
        for _ in range(_ROUNDS):
            taken = self._take(answer.order, left)
            if left is not keys and not taken:
                break
            write = partial(
                _write, order=answer.order, keys=left, taken=taken, times=self._times(),
                listing=answer.listing,
            )  # fmt: skip
            try:
                work, listed = await self._writer.submit(write)
            except Exception:
                self._give_back(taken)
                raise
            self._follow_up(work)
            certain = (one for one, _ in work.results.values() if one is not Result.IN_FLIGHT)
            answer.add(certain, listed)
            left = [key for key in left if _is_in_flight(work, key)]
            if not left:
                return
        listed = answer.listing()
        await self._reader.run(partial(_show_in_flight, keys=left, listed=listed))
        answer.add([Result.IN_FLIGHT] * len(left), listed)

    def _waiting(self, order: Order, keys: Sequence[Key]) -> frozenset[Key]:
        """What _take() would take."""
        return (
            frozenset() if order.operation is Operation.RETRY else self._delivery.waiting_of(keys)
        )

    def _take(self, order: Order, keys: Sequence[Key]) -> frozenset[Key]:
        """Take the claims away that only wait; a retry has nothing to gain by that."""
        return frozenset() if order.operation is Operation.RETRY else self._delivery.withdraw(keys)

    def _follow_up(self, work: Work) -> None:
        """What is done once a change is durable."""
        if work.cancelled:
            self._metrics.recipients.labels(str(State.CANCELLED)).inc(work.cancelled)
        if work.files:
            self._reader.later(partial(self._remove_files, work.files))
        if work.next_hops:
            self._delivery.retry_now(work.next_hops)
        if work.due_us is not None:
            self._delivery.due_at(work.due_us)

    def _give_back(self, taken: Collection[Key]) -> None:
        """Have claims that were taken in vain put back, as soon as the spool can."""
        if taken:
            task = asyncio.get_running_loop().create_task(self._until_put_back(taken))
            self._giving_back.add(task)
            task.add_done_callback(self._giving_back.discard)

    async def _until_put_back(self, taken: Collection[Key]) -> None:
        pause_s = _PAUSE_S_FIRST
        while True:
            try:
                await self._writer.submit(partial(put_back, keys=taken))
            except Exception as error:  # noqa: BLE001 - any: nothing else gives them back
                # The next start releases them at the latest.
                _log.warning("claims not given back yet", claims=len(taken), error=str(error))
                await asyncio.sleep(pause_s)  # sleeps: limits retries after a fault
                pause_s = min(pause_s * 2, _PAUSE_S_MAX)
            else:
                self._delivery.retry_now(())
                return

    def _times(self) -> Times:
        return Times(steady_us=self._clock.steady_us(), wall_us=self._clock.time_us())


class _Answer:
    """What an order's slices have come to so far."""

    def __init__(self, order: Order, *, ahead_us: int, tell: Tell) -> None:
        self.order = order
        self._tell = tell
        self._ahead_us = ahead_us
        self._counts = dict.fromkeys(Result, 0)
        self._entries: list[dict[str, Any]] = []
        self._recipients_left = RECIPIENTS_MAX

    def listing(self) -> Listing:
        """What may still be listed, to be taken in by add()."""
        return Listing(
            ahead_us=self._ahead_us,
            entries_max=LISTED_MAX - len(self._entries),
            recipients_max=self._recipients_left,
        )

    def add(self, results: Iterable[Result], listing: Listing) -> None:
        """Take in what is certain."""
        for result in results:
            self._counts[result] += 1
        self._entries += listing.entries
        self._recipients_left = listing.recipients_left
        self._tell(self._counts[Result.DONE])

    def changed(self, *, unknown: Sequence[str]) -> Changed:
        """The whole answer."""
        return Changed(self._counts, self._entries, tuple(unknown), dry_run=self.order.dry_run)


def _write(
    batch: Batch,
    *,
    order: Order,
    keys: Sequence[Key],
    taken: Collection[Key],
    times: Times,
    listing: Callable[[], Listing],
) -> tuple[Work, Listing]:
    """Change and list in one transaction, so that entries are shown as the change left them."""
    work, listed = change(batch, order, keys, taken=taken, times=times), listing()
    for key, (result, note) in work.results.items():
        if result is not Result.IN_FLIGHT:
            for one in (key, *work.made.get(key, ())):
                listed.add(batch.cursor, one, result=str(result), note=note)
    return work, listed


def _rehearse(
    cursor: apsw.Cursor,
    *,
    order: Order,
    keys: Sequence[Key],
    waiting: Collection[Key],
    now_us: int,
    listed: Listing,
) -> list[Result]:
    """Say what would become of entries; of those that are claimed, `waiting` would be taken."""
    results = []
    for key in keys:
        foreseen = foresee(cursor, order, key, waiting=waiting, now_us=now_us)
        if foreseen is not None:
            results.append(foreseen[0])
            listed.add(cursor, key, result=str(foreseen[0]), note=foreseen[1])
    return results


def _show_in_flight(cursor: apsw.Cursor, *, keys: Sequence[Key], listed: Listing) -> None:
    for key in keys:
        listed.add(cursor, key, result=str(Result.IN_FLIGHT), note=IN_FLIGHT)


def _is_in_flight(work: Work, key: Key) -> bool:
    return key in work.results and work.results[key][0] is Result.IN_FLIGHT
