"""How a queue command reads and writes the entries of one transaction."""

import pytest

from relay.store.spool.types import ClaimResult
from tests.support.journeys import states
from tests.support.operator import OK, command, own_mx


@pytest.mark.parametrize("is_kept", [True, False])
async def test_a_new_entry_never_gets_the_number_of_one_that_has_ended(spool, make, is_kept):
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
