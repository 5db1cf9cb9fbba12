"""The spool's Protocol, on the real SQLite file."""

from pathlib import Path

from relay.store.journeys.message_list import SCAN_MAX
from relay.store.spool.shared.columns import MESSAGE_COLUMNS, message_row


async def test_other_users_cannot_read_the_files(spool, make, tmp_path: Path) -> None:
    await spool.accept(make())
    found = open_to_others(tmp_path)
    assert set(found) > {"spool.sqlite", "spool.sqlite-wal"}
    assert set(found.values()) == {0}


def open_to_others(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite*")}


async def test_a_long_history_has_addresses_to_choose_from(spool, make) -> None:
    """A statement of SQLite has at most 32,766 values."""
    message = make()
    await spool.accept(message)
    row = message_row(message.facts)
    rows = [(f"{number:016}", *row[1:]) for number in range(SCAN_MAX)]
    marks = ", ".join("?" * len(row))
    sql = f"INSERT INTO message ({', '.join(MESSAGE_COLUMNS)}) VALUES ({marks})"
    await spool.change(lambda transaction: transaction.execute_each(sql, rows))
    assert "x@a.test" in await spool.recent_addresses(account=None, limit=SCAN_MAX)
