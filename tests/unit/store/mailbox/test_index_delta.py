"""The cost of a delta, counted in steps of SQLite's virtual machine: the changes, not the mailbox."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from relay.base.clock import SystemClock
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.query import DeltaQuery
from relay.store.mailbox.types import ChangeKind
from tests.support.manual_clock import ManualClock

SMALL, LARGE = 20, 2000
CHANGED = 5


class Box:
    """A Maildir with messages, and its index."""

    def __init__(self, path: Path, messages: int) -> None:
        self.path = path
        self.count = 0
        for folder in ("", ".Archive"):
            for name in ("tmp", "new", "cur"):
                (path / folder / name).mkdir(parents=True)
        self.add(messages)
        self.index = Indexes(ManualClock(now_us=SystemClock().time_us()))
        self.position = self.index.changes(path, "", 1).position

    def add(self, messages: int, folder: str = "") -> None:
        for _ in range(messages):
            self.count += 1
            name = f"{1_700_000_000 + self.count}.M{self.count}.h:2,"
            (self.path / folder / "cur" / name).write_bytes(b"Subject: house\r\n\r\nx")

    def delta(self, top: int = 100, **options: Any) -> list[ChangeKind]:
        query = DeltaQuery("inbox", self.position, top, **options)
        return [one.kind for one in self.index.delta(self.path, query).changed]


@contextmanager
def boxes(path: Path) -> Iterator[list[Box]]:
    made = [Box(path / str(count), count) for count in (SMALL, LARGE)]
    try:
        yield made
    finally:
        for box in made:
            box.index.close()


def steps_of_delta(box: Box) -> int:
    """Read a delta; return the steps of all statements on its snapshot."""
    steps = 0

    def count(event: dict[str, Any]) -> None:
        nonlocal steps
        steps += event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"]

    def connected(connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, count)

    box.delta()  # the index is up to date now
    apsw.connection_hooks.append(connected)
    try:
        assert box.delta() == [ChangeKind.CREATED] * CHANGED
    finally:
        apsw.connection_hooks.remove(connected)
    assert steps
    return steps


def test_a_delta_costs_the_changes_and_not_the_mailbox(tmp_path: Path) -> None:
    with boxes(tmp_path) as made:
        for box in made:
            box.add(CHANGED)
        small, large = map(steps_of_delta, made)
        assert large <= small * 1.2
