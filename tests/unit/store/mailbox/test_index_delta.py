"""The cost of a delta, counted in steps of SQLite's virtual machine: the changes, not the mailbox."""

from pathlib import Path
from typing import Any

import apsw

from relay.store.mailbox.changes import ChangeKind
from relay.store.mailbox.query import DeltaQuery
from tests.support.indexed_mailbox import Mailbox

SMALL, LARGE = 20, 2000
CHANGED = 5


def steps_of_delta(path: Path, messages: int) -> int:
    """Read the delta of some changes; return the steps of all statements on its snapshot."""
    mailbox, steps = Mailbox(path), 0
    for _ in range(messages):
        mailbox.add()
    index = mailbox.index()
    position = index.changes(path, "", 1).position

    def delta() -> list[ChangeKind]:
        query = DeltaQuery("inbox", position, 100)
        return [one.kind for one in index.delta(path, query).changed]

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    def connected(connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, count)

    for _ in range(CHANGED):
        mailbox.add()
    delta()  # the index is up to date now
    apsw.connection_hooks.append(connected)
    try:
        assert delta() == [ChangeKind.CREATED] * CHANGED
    finally:
        apsw.connection_hooks.remove(connected)
        index.close()
    assert steps
    return steps


def test_a_delta_costs_the_changes_and_not_the_mailbox(tmp_path: Path) -> None:
    small, large = (steps_of_delta(tmp_path / str(size), size) for size in (SMALL, LARGE))
    assert large <= small * 1.2
