"""What maintenance.prune removes and what it keeps."""

from contextlib import closing

import apsw
import pytest

from relay.base.message.outcome import DeferralClass, Deferred, Evidence
from relay.store.spool.types import ClaimResult, EntrySchedule
from tests.support.operator import OK


async def finished(spool, make) -> str:
    (claim,) = (await spool.accept(make())).claims
    await spool.record(ClaimResult(claim, 5, {1: OK}))
    return claim.message.id


@pytest.mark.parametrize(
    ("lost", "recipients"),
    [
        ("DELETE FROM entry WHERE message_id = ?", ["x@a.test"]),
        ("UPDATE entry SET state = 'final', due_us = NULL WHERE message_id = ?", ["x@a.test"]),
        ("DELETE FROM entry WHERE message_id = ?", ["done@a.test", "x@a.test"]),
    ],
)
async def test_a_message_with_live_recipients_of_a_lost_entry_is_kept(
    spool, make, clock, tmp_path, lost, recipients
) -> None:
    (claim,) = (await spool.accept(make({"mx:a.test": recipients}))).claims
    if len(recipients) > 1:
        due_us = clock.queue_us() + 1
        outcomes = {1: OK, 2: Deferred(Evidence("4.2.0", "450 no"), DeferralClass.RECIPIENT)}
        await spool.record(ClaimResult(claim, 5, outcomes, EntrySchedule(due_us, due_us)))
    gone = await finished(spool, make)
    clock.advance(60)
    with closing(apsw.Connection(str(tmp_path / "spool.sqlite"))) as connection:
        connection.execute(lost, (claim.message.id,))
    would = await spool.maintenance.prune_many(30, dry_run=True)
    assert would == {"messages": 1, "submissions": 0, "kept": 1, "ended": True}
    assert await spool.maintenance.prune(30) == 1
    assert await spool.journey(gone) is None
    assert await spool.journey(claim.message.id) is not None
