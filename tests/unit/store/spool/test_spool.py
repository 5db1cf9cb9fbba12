"""The spool's Protocol, on the real SQLite file."""

from pathlib import Path


async def test_other_users_cannot_read_the_files(spool, make, tmp_path: Path) -> None:
    await spool.accept(make())
    found = open_to_others(tmp_path)
    assert set(found) > {"spool.sqlite", "spool.sqlite-wal"}
    assert set(found.values()) == {0}


def open_to_others(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o077 for path in folder.glob("spool.sqlite*")}
