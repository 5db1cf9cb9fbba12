"""What counts as a change of a mailbox, by events and by times: not that somebody reads it."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from relay.base.clock import SystemClock
from relay.front_door.notifications import mailbox_watch
from relay.front_door.notifications.mailbox_watch import MailboxChanges
from relay.store.mailbox.index.database import FILE_NAME as INDEX
from relay.store.mailbox.state_file import FILE_NAME as STATES

ADDRESS = "alice@example.test"


class Watched:
    """A mailbox that is watched; `found` are the changes that were reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[str] = []
        self.changes = MailboxChanges(self.found.append, SystemClock())

    async def reported(self, *, by_time: bool) -> bool:
        """Whether there was a change since the last call."""
        if by_time:
            await self.changes.look({ADDRESS: self.path})
        else:
            for _ in range(3):  # the events are there already, the loop has to read them
                await asyncio.sleep(0)
        found = bool(self.found)
        self.found.clear()
        return found


def read(path: Path) -> None:
    with suppress(apsw.SQLError):
        apsw.Connection(str(path)).execute("SELECT * FROM one").fetchall()


def write(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("CREATE TABLE IF NOT EXISTS one (a); INSERT INTO one VALUES (1)")
    connection.close()


def is_long_ago(mailbox: Path) -> None:
    for path in (mailbox, *mailbox.rglob("*")):
        os.utime(path, times=(time.time() - 60, time.time() - 60))


@pytest.fixture(params=[False, True])
def by_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(mailbox_watch, "INotify", None)  # the system has none
    return request.param


@pytest.fixture
async def watched(tmp_path: Path, by_time: bool) -> AsyncIterator[Watched]:
    for name in ("new", "cur", "tmp"):
        (tmp_path / name).mkdir()
    for name in (INDEX, STATES):
        write(tmp_path / name)
    is_long_ago(tmp_path)
    made = Watched(tmp_path)
    yield made
    made.changes.close()


async def test_reading_is_no_change(watched: Watched, by_time: bool) -> None:
    assert await watched.reported(by_time=True)
    for name in (INDEX, STATES):
        read(watched.path / name)
    assert not await watched.reported(by_time=by_time)


@pytest.mark.parametrize("what", ["states", "message", "folder"])
async def test_what_is_a_change(watched: Watched, by_time: bool, what: str) -> None:
    assert await watched.reported(by_time=True)
    match what:
        case "states":
            write(watched.path / STATES)
        case "message":
            (watched.path / "new" / "1.a.b").write_bytes(b"Subject: x\r\n\r\n")
        case "folder":
            for name in ("new", "cur", "tmp"):
                (watched.path / ".Other" / name).mkdir(parents=True)
    assert await watched.reported(by_time=by_time)
