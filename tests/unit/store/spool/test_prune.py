"""What maintenance.prune removes of a spool that has lost rows."""

from contextlib import closing

import apsw
import pytest


@pytest.mark.parametrize(
    "lost",
    [
        "DELETE FROM entry WHERE message_id = ?",
        "UPDATE entry SET state = 'final', due_us = NULL WHERE message_id = ?",
    ],
)
async def test_the_history_of_a_lost_entry_goes_with_its_age(spool, make, clock, tmp_path, lost):
    queue_id = (await spool.accept(make())).queue_id
    with closing(apsw.Connection(str(tmp_path / "spool.sqlite"))) as connection:
        connection.execute(lost, (queue_id,))
    clock.advance(60)
    assert await spool.maintenance.prune(120) == 0
    assert await spool.maintenance.prune(30) == 1
    assert await spool.journey(queue_id) is None
    assert (await spool.counts()).unaccounted == 1
