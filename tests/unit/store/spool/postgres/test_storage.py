"""What commands learn of a spool on a server, and which engine a URL chooses."""

import dataclasses
import sys

import pytest

from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store import spool as spools
from relay.store.spool.types import SpoolDamagedError, SpoolFormatError
from tests.support.commands import run_command
from tests.support.ports import free_port
from tests.support.postgres import database_of
from tests.support.spools import new_message, spool_on

SHOWN = f"postgresql://127.0.0.1:{free_port()}/relay"
NOBODY = SHOWN.replace("//", "//relay@")


def settings_of(tmp_path, url: str = NOBODY) -> Settings:
    return Settings("relay.test", tmp_path, spool=SpoolSettings(url))


def opened(settings: Settings):
    return spools.open(settings, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics())


def test_a_database_without_tables_has_no_spool(tmp_path, postgres_server, empty_database):
    stored = spools.storage(settings_of(tmp_path, empty_database))
    assert not stored.exists()
    postgres_server.sql("CREATE TABLE message ()", database=database_of(empty_database))
    assert stored.exists()
    assert not stored.is_marked_damaged()


async def wait_in(file, count: int) -> None:
    async with spool_on(file) as spool:
        for _ in range(count):
            await spool.accept(new_message([("mx:a.test", "x@a.test")]), claim=False)


@pytest.mark.parametrize(("count", "expected"), [(1, "has 1 entry"), (3, "has 3 entries")])
async def test_mail_that_waits_in_a_file_is_delivered_first(tmp_path, count, expected):
    await wait_in(tmp_path / "spool.sqlite", count)
    settings = settings_of(tmp_path)
    text = spools.left_behind(settings)
    assert f"{tmp_path}/spool.sqlite {expected} that no relay would deliver" in text
    assert "deliver them first" in text
    with pytest.raises(SpoolFormatError, match="deliver them first"):
        opened(settings)
    assert spools.left_behind(dataclasses.replace(settings, spool=SpoolSettings())) == ""


async def test_a_file_in_which_nothing_waits(tmp_path):
    assert spools.left_behind(settings_of(tmp_path)) == ""
    await wait_in(tmp_path / "spool.sqlite", 0)
    assert spools.left_behind(settings_of(tmp_path)) == ""
    (tmp_path / "spool.sqlite").write_bytes(b"")
    assert spools.left_behind(settings_of(tmp_path)) == ""


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "spool.sqlite").write_bytes(b"nothing of ours" * 100)
    with pytest.raises(SpoolDamagedError):
        spools.left_behind(settings_of(tmp_path))


PROGRAM = """\
import sys
sys.modules["asyncpg"] = None  # as if it were not installed
from pathlib import Path
from relay.store import spool
from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.observe.metrics import Metrics
from relay.base.settings.tree import Settings, SpoolSettings
from relay.store.spool.types import SpoolFormatError
settings = Settings("relay.test", Path(sys.argv[1]), spool=SpoolSettings("postgresql:///relay"))
for call in (
    lambda: spool.open(settings, clock=SystemClock(), crash=CrashPoints(), metrics=Metrics()),
    lambda: spool.load_engine(settings),
    lambda: spool.storage(settings),
):
    try:
        call()
    except SpoolFormatError as error:
        print(error)
"""


def test_without_the_extra(tmp_path):
    done = run_command([sys.executable, "-c", PROGRAM, tmp_path], check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(
        "expected asyncpg (in a checkout: pip install '.[postgres]')" in one for one in lines
    )
