"""Queries for due entries: bounded, in order, round robin; and the claims they take."""

import apsw
import pytest

from relay.base.message.nexthop import NextHop
from relay.store.spool.shared import claimed
from relay.store.spool.shared.damaged_entries import DAMAGED_DUE_US
from relay.store.spool.types import DueQuery, Selector
from tests.support.operator import command, reroute
from tests.support.spools import ids_of

A, B = NextHop.parse("mx:a.test"), NextHop.parse("mx:b.test")
NOW = 10**18  # after the due time of every entry in these tests


def raw(tmp_path, sql: str, *values) -> list:
    return apsw.Connection(str(tmp_path / "spool.sqlite")).execute(sql, values).fetchall()


async def test_a_query_reads_a_bounded_number_of_rows(spool, accept, monkeypatch) -> None:
    monkeypatch.setattr(claimed, "ROWS_MAX", 4)
    await accept("mx:a.test", "ann", 6)
    after_others = await accept("mx:b.test", "ann", 1)
    batch = await spool.claim_due(NOW, 9, DueQuery(without_hops=[A]))
    assert (ids_of(batch), batch.ended, batch.left_hops) == ([], False, {A})
    batch = await spool.claim_due(NOW, 9, DueQuery(without_hops=[A], after=batch.reached))
    assert (ids_of(batch), batch.ended) == (after_others, True)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entry SET next_hop = 'nonsense' WHERE message_id = ?",
        "UPDATE recipient SET notify = 'nonsense' WHERE message_id = ?",
        "UPDATE message SET source = 'nonsense' WHERE id = ?",
        "UPDATE message SET extra = '{' WHERE id = ?",
        "UPDATE entry SET extra = '{' WHERE message_id = ?",
        """UPDATE entry SET extra = '{"sender":5}' WHERE message_id = ?""",
        "DELETE FROM message WHERE id = ?",
        "DELETE FROM recipient WHERE message_id = ?",
    ],
)
async def test_an_unreadable_entry_is_held_and_the_others_are_claimed(
    spool, accept, tmp_path, damage: str
) -> None:
    broken, whole = await accept("mx:a.test", "ann", 2)
    raw(tmp_path, damage, broken)
    assert ids_of(await spool.claim_due(NOW, 9, DueQuery())) == [whole]
    sql = "SELECT state, claimed, due_us FROM entry WHERE message_id = ?"
    assert raw(tmp_path, sql, broken) == [("held", 0, DAMAGED_DUE_US)]
    (event,) = raw(tmp_path, "SELECT detail FROM event WHERE message_id = ?", broken)
    assert '"why":"damaged: ' in event[0]
    assert ids_of(await spool.claim_due(NOW, 9, DueQuery())) == []
    listed = await spool.queue_admin.list(Selector(all=True), limit=10)
    assert broken in {one["id"] for one in listed}


async def test_fields_of_a_younger_relay_are_ignored_and_kept(spool, make, tmp_path) -> None:
    await spool.accept(make({"mx:a.test": ["x@a.test"], "mx:b.test": ["x@b.test"]}), claim=False)
    assert raw(tmp_path, "SELECT extra FROM entry UNION ALL SELECT extra FROM message") == [
        ("",),
        ("",),
        ("",),
    ]
    younger = """{"sender":"a@b.test","later":[1]}"""
    raw(tmp_path, "UPDATE entry SET extra = ? WHERE number = 1", younger)
    raw(tmp_path, "UPDATE message SET extra = ?", younger)
    for operation in ("hold", "release"):
        await spool.queue_admin.execute(command(operation))
    await spool.queue_admin.execute(reroute("mx:c.test"))
    claimed = (await spool.claim_due(NOW, 9, DueQuery())).claims
    found = {(str(one.next_hop), one.entry_id, one.extra.sender) for one in claimed}
    assert found == {("mx:c.test", 1, "a@b.test"), ("mx:c.test", 2, "")}
    kept = raw(tmp_path, "SELECT extra ->> '$.later' FROM entry WHERE number = 1")
    assert kept == raw(tmp_path, "SELECT extra ->> '$.later' FROM message") == [("[1]",)]
