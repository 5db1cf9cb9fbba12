"""The list of dead addresses is that of all nodes."""

import asyncio

import pytest

from relay.base.message.outcome import Evidence, Failed, Relayed
from relay.base.settings.tree import SuppressionSettings
from relay.store.spool.shared import suppression
from relay.store.spool.types import ClaimResult, SuppressedError
from tests.support.spools import new_message

DEAD = Failed(Evidence("5.1.1", "550 5.1.1 no such user", remote=True), at_rcpt=True)
TAKEN = Relayed(Evidence("2.0.0", "250 ok", remote=True))
X = "x@a.test"


async def test_nodes_that_record_at_once_count_an_address_once_and_both_refuse_it(at) -> None:
    nodes = [await at("one.test"), await at("two.test")]
    results = []
    for node in nodes:
        node.suppression.settings = SuppressionSettings()
        (claim,) = (await node.accept(new_message([("mx:a.test", X)]), sought=[X])).claims
        results.append(ClaimResult(claim, 5, {1: DEAD}))
    await asyncio.gather(*map(_record, nodes, results))
    assert await nodes[0].suppression.listed() == []
    (claim,) = (await nodes[0].accept(new_message([("mx:a.test", X)]), sought=[X])).claims
    nodes[0].suppression.settings = SuppressionSettings(after=1)
    await nodes[0].record(ClaimResult(claim, 5, {1: TAKEN}))
    (claim,) = (await nodes[0].accept(new_message([("mx:a.test", X)]), sought=[X])).claims
    await nodes[0].record(ClaimResult(claim, 5, {1: DEAD}))
    for node in nodes:
        with pytest.raises(SuppressedError):
            await node.accept(new_message([("mx:a.test", X)]), sought=[X])
        assert [row.count for row in await node.suppression.listed()] == [1]


async def test_nodes_that_add_at_once_never_exceed_the_limit(at, monkeypatch) -> None:
    monkeypatch.setattr(suppression, "LISTED_MAX", 3500)
    lists = [(await at(name)).suppression for name in ("one.test", "two.test")]
    names = [[f"{count}@{domain}.test" for count in range(2000)] for domain in "ab"]
    adding = (one.add(some, who="olga", reason="") for one, some in zip(lists, names, strict=True))
    done, refused = sorted(map(str, await asyncio.gather(*adding, return_exceptions=True)))
    assert done == "2000"
    added, _, reason = refused.partition(": ")
    assert added in ("Added 1000 addresses", "Added nothing")  # of a node that came later
    assert reason == "the list has at most 100,000 addresses"


async def _record(node, result) -> None:
    assert (await node.record(result))[0]


async def test_a_commit_is_one_statement_more_for_a_look_up_and_none_for_a_delivery(at) -> None:
    node = await at("one.test")
    node.suppression.settings = SuppressionSettings()
    statements: list[str] = []
    for counted in (None, 2, 1):
        statements.clear()
        sought = [X] if counted == 2 else []
        (claim,) = (await node.accept(new_message([("mx:a.test", X)]), sought=sought)).claims
        await node.record(ClaimResult(claim, 5, {1: TAKEN}))
        if counted is None:  # asyncpg asks for the types of columns once
            await node.accept(new_message([("mx:a.test", X)]), sought=[X])
            node._writer._connection.add_query_logger(lambda sent: statements.append(sent.query))
        else:
            assert len(statements) == counted + 1
