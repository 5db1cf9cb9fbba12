"""Journeys as the spool reads them."""

import apsw

from relay.store.journeys.events import Event, Step
from relay.store.spool.sqlite.database import SqliteTables


async def test_a_journey_is_of_one_moment(spool, make, monkeypatch, tmp_path) -> None:
    """What is committed between two of its queries is in none of them."""
    message = make(events=(Event(Step.POLICY_AND_ROUTING, 1, {}),))
    await spool.accept(message, claim=False)
    original, fetched = SqliteTables.fetch, []

    def fetch(*words):
        rows = original(*words)
        if not fetched:
            with apsw.Connection(str(tmp_path / "spool.sqlite")) as other:
                other.execute("DELETE FROM event")
        fetched.append(rows)
        return rows

    monkeypatch.setattr(SqliteTables, "fetch", fetch)
    assert len((await spool.journey(message.facts.id)).steps) == 1
    assert (await spool.journey(message.facts.id)).steps == ()
