"""How a queue command reads and writes the entries of one transaction."""

from collections import Counter
from typing import Any

import pytest

from relay.store.spool.shared.queue_admin import change
from relay.store.spool.sqlite.writer import Batch
from relay.store.spool.types import ClaimResult
from tests.support.journeys import states
from tests.support.operator import HOUR_US, OK, command, own_mx

OPERATIONS = (
    command("hold"),
    command("hold", until_us=HOUR_US),  # of what is held
    command("release", as_before=True),
    command("reroute", to=own_mx),
    command("retry"),
    command("cancel"),
)


class CountingBatch:
    """A transaction that counts its statements but those for events."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.used: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.used[name] += name not in ("append_events", "counts")
        return getattr(self._batch, name)


async def test_the_number_of_statements_does_not_grow_with_that_of_entries(
    spool, accept, clock
) -> None:
    def statements(batch: Batch, keys: list[tuple[str, int]]) -> list[int]:
        counts = []
        for order in OPERATIONS:
            counting = CountingBatch(batch)
            times = {"now_us": clock.queue_us(), "at_us": clock.time_us()}
            done = change(counting, order, keys, engine=None, taken=(), **times)
            assert len(done.results) == len(keys)
            counts.append(counting.used.total())
        return counts

    few = [(one, 1) for one in await accept("smtp://hub.test:25", "ann@a.test", 2)]
    many = [(one, 1) for one in await accept("smtp://hub.test:25", "ann@a.test", 50)]
    expected = await spool._writer.submit(lambda batch: statements(batch, few))
    assert await spool._writer.submit(lambda batch: statements(batch, many)) == expected
    assert max(expected) < 10


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_new_entry_never_gets_the_number_of_one_that_has_ended(
    spool, make, is_kept
) -> None:
    """An engine may remove an entry that has ended; its recipients stay."""
    hub = {"smtp://hub.test:25": ["x@a.test", "y@b.test"], "mx:c.test": ["z@c.test"]}
    accepted = await spool.accept(make(hub))
    waits, ends = accepted.claims
    await spool.record(ClaimResult(ends, 5, {one.id: OK for one in ends.recipients}))
    await spool.release([waits])
    if not is_kept:
        remove = "DELETE FROM entry WHERE state = 'final'"
        assert await spool._writer.submit(lambda batch: batch.execute(remove)) == 1
    answer = await spool.queue_admin.execute(command("reroute", to=own_mx))
    assert [one["entry"] for one in answer.entries] == [1, 3]
    expected = {"x@a.test": "queued", "y@b.test": "queued", "z@c.test": "relayed"}
    assert states(await spool.journey(accepted.queue_id)) == expected
