"""What must be equal on all nodes: each says digests of it, and which differ."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from relay.store.spool.postgres.nodes import (
    NodeIdentity,
    NodeRow,
    ServerSession,
    differences,
    node_warnings,
    salted,
)
from relay.store.spool.postgres.spool import PostgresSpool
from relay.store.spool.postgres.storage import PostgresStorage
from tests.support.spool_nodes import open_node
from tests.support.tables import each_row

PARTS = {"rules": "r", "srs_key": "secret", "accounts of the store main": "a"}
_SESSION = ServerSession(1, "", "")


def row(name: str, digests: dict[str, str], state: str = "alive", version: str = "1") -> NodeRow:
    text = msgspec.json.encode(digests).decode() if digests else ""
    return NodeRow(1, state, 0, NodeIdentity(name, "", version=version), 0, _SESSION, text)


@pytest.fixture
async def nodes(postgres_url: str, tmp_path: Path) -> AsyncIterator[list[PostgresSpool]]:
    made = [
        open_node(postgres_url, tmp_path, NodeIdentity(name, name, version=version))
        for name, version in (("one", "0.9"), ("two", "0.9"), ("old", "0.8"))
    ]
    for node in made:
        node.agreed = lambda: PARTS
        await node.start()
        await node.keeper.stop()  # the test beats
    yield made
    for node in made:
        await node.stop()


async def beat(*nodes: PostgresSpool) -> None:
    for node in nodes:
        await node.keeper.beat()


def lines(log: str) -> list[str]:
    return [one.partition("difference=")[2] for one in log.splitlines() if "differ in" in one]


async def test_a_difference_is_said_once_and_until_it_has_gone(nodes, postgres_url, capfd):
    one, two, old = nodes
    old.agreed = lambda: PARTS | {"srs_key": "with another default"}
    await beat(old, one, two, one)
    assert lines(capfd.readouterr().err) == []
    two.agreed = lambda: PARTS | {"srs_key": "another"}
    await beat(two, one, two, one)
    said = '"srs_key: not the same at one and at two"'
    assert lines(capfd.readouterr().err) == [said, said]  # each node once
    storage = PostgresStorage(postgres_url, store="main", domains=())
    assert storage.warnings() == [
        f"nodes differ in what must be equal: {said.strip(chr(34))}",
        "nodes have several versions (old: 0.8; one, two: 0.9): bring all to the newest",
    ]
    two.agreed = lambda: PARTS
    await beat(two, one, two)
    assert lines(capfd.readouterr().err) == []
    assert storage.warnings() == [
        "nodes have several versions (old: 0.8; one, two: 0.9): bring all to the newest"
    ]


def test_digests_cannot_be_compared_with_those_of_another_spool_or_part() -> None:
    first = msgspec.json.decode(salted({"a": "x", "b": "x"}, "salt"))
    other = msgspec.json.decode(salted({"a": "x", "b": "x"}, "other salt"))
    assert len({*first.values(), *other.values()}) == 4
    assert salted({"a": "x"}, "salt") == salted({"a": "x"}, "salt")


@each_row(
    "rows, found",
    [
        ([], []),
        ([row("one", {"rules": "x"}), row("two", {"rules": "x"})], []),
        ([row("one", {"rules": "x"}), row("two", {})], []),
        ([row("one", {"rules": "x"}), row("two", {"rules": "y"}, "dead")], []),
        ([row("one", {"rules": "x"}), row("two", {"rules": "y"}, version="2")], []),
        (
            [
                row("one", {"accounts of the store a": "x"}),
                row("two", {"accounts of the store b": "y"}),
            ],
            [],
        ),
        (
            [row("one", {"rules": "x"}), row("two", {"rules": "y"}), row("three", {"rules": "x"})],
            ["rules: not the same at one, three and at two"],
        ),
    ],
)
def test_only_what_living_nodes_have_in_common_can_differ(rows: list[NodeRow], found: list[str]):
    assert differences(rows) == found
    assert [one for one in node_warnings(rows) if "versions" not in one] == [
        f"nodes differ in what must be equal: {text}" for text in found
    ]
