"""A damaged spool is refused; recovery copies what can be read and deletes nothing."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from relay.journeys.events import Event, Step
from relay.message.outcome import DeferralClass, Deferred, Evidence, Relayed
from relay.observe.metrics import Metrics
from relay.spool.engine import SpoolFault, SpoolFinding, VerifyMode
from relay.spool.sqlite.content_files import INLINE_BYTES_MAX
from relay.spool.sqlite.database import open_database, read_anchor
from relay.spool.sqlite.migrate import check_files
from relay.spool.sqlite.recover import recover_spool
from relay.spool.sqlite.spool_files import (
    contents_of,
    damage_mark_of,
    last_commit_of,
    log_of,
    recovery_mark_of,
)
from relay.spool.sqlite.verify import SpoolVerifier
from relay.spool.types import (
    DueQuery,
    EntrySchedule,
    Selector,
    Settlement,
    SpoolDamagedError,
    SpoolError,
    SpoolUnavailableError,
)
from tests.support import next_schema
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock
from tests.support.spools import AS_0_2_0, new_spool

OK = Relayed(Evidence("2.0.0", "250 2.0.0 ok"))
LATER = Deferred(Evidence("4.2.0", "450 4.2.0 later"), DeferralClass.RECIPIENT)
LARGE = b"Subject: large\r\n\r\n" + b"x" * INLINE_BYTES_MAX
MESSAGES = 400
PAGE = 4096
KILLED = """
import os, signal, sys
from pathlib import Path
from relay.spool.sqlite import recover
from tests.support.spools import new_spool

act, left = getattr(recover, sys.argv[2]), int(sys.argv[3])

def killed(*args, **kwargs):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return act(*args, **kwargs)

setattr(recover, sys.argv[2], killed)
recover.recover_spool(Path(sys.argv[1]), stamp="first")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture
async def filled(path: Path, make, open_spool, clock) -> Path:
    """A stopped spool with a queue, one large content, history and submission keys."""
    spool = open_spool(path)
    await spool.start()
    await spool.accept(make(content=LARGE))
    due_us = clock.queue_us() + 1000
    events = (Event(Step.POLICY_AND_ROUTING, 1, {"next_hops": {"mx:a.test": ["x@a.test"]}}),)

    async def one(number: int) -> None:
        message = make(events=events)
        (claim,) = (await spool.accept(message, submission_key=f"draft.{number}")).claims
        outcome = OK if number % 2 else LATER
        await spool.settle(Settlement(claim, 5, {1: outcome}, EntrySchedule(due_us, due_us)))

    await asyncio.gather(*map(one, range(MESSAGES)))
    await spool.stop()
    return path


def pages_of(path: Path, table: str) -> list[int]:
    """The leaf pages of a table, in order."""
    connection = apsw.Connection(str(path))
    rows = connection.execute(
        "SELECT pageno FROM dbstat WHERE name = ? AND pagetype = 'leaf' ORDER BY path", (table,)
    ).fetchall()
    connection.close()
    return [row[0] for row in rows]


def damage(path: Path, page: int) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(b"\xff" * PAGE)


def damaged_copy_of(path: Path, stamp: str = "now") -> Path:
    return path.with_name(f"{path.name}.damaged-{stamp}")


async def listed(open_spool, path: Path) -> dict[str, str]:
    spool = open_spool(path)
    await spool.start()
    entries = await spool.queue_admin.list(Selector(all=True), limit=1000)
    assert (await spool.counts()).unaccounted == 0
    await spool.stop()
    return {one["id"]: one["state"] for one in entries}


async def test_the_mail_root_is_known_after_a_recovery(filled: Path, open_spool) -> None:
    spool = open_spool(filled)
    await spool.start()
    await spool.record_mail_root("main", "the id")
    await spool.stop()
    damage(filled, pages_of(filled, "message")[1])
    recover_spool(filled, stamp="now")
    recovered = open_spool(filled)
    await recovered.start()
    assert (await recovered.mail_root("main")).id == "the id"
    await recovered.stop()


def test_the_fields_by_which_no_query_selects_are_known_after_a_recovery(filled: Path) -> None:
    with closing(apsw.Connection(str(filled))) as connection:
        for table in ("message", "entry"):
            connection.execute(f"""UPDATE {table} SET extra = '{{"later":1}}'""")
    damage(filled, pages_of(filled, "event")[1])
    recover_spool(filled, stamp="now")
    with closing(apsw.Connection(str(filled))) as recovered:
        for table in ("message", "entry"):
            found = recovered.execute(f"SELECT DISTINCT extra FROM {table}").fetchall()
            assert found == [('{"later":1}',)]


def test_an_undamaged_spool_is_not_changed(filled: Path) -> None:
    before = filled.read_bytes()
    damage_mark_of(filled).write_text("it was thought to be damaged")
    found = recover_spool(filled, stamp="now")
    assert (found.faults, found.aside, found.is_whole) == ([], "", True)
    assert filled.read_bytes() == before
    assert not damage_mark_of(filled).exists()


@pytest.mark.parametrize("table", ["message", "entry", "recipient", "event", "submission"])
async def test_everything_except_the_damaged_page_is_recovered(
    filled: Path, table, open_spool
) -> None:
    everything = await listed(open_spool, filled)
    pages = pages_of(filled, table)
    assert len(pages) > 2
    lost = pages[len(pages) // 2]
    damage(filled, lost)
    damaged = filled.read_bytes()  # noqa: ASYNC240
    found = recover_spool(filled, stamp="now")
    assert found.aside == str(damaged_copy_of(filled))
    assert damaged_copy_of(filled).read_bytes() == damaged
    with closing(apsw.Connection(str(filled))) as recovered:
        assert read_anchor(recovered) is not None  # the queue's time goes on
    assert [hole["table"] for hole in found.holes] == [table]
    assert not found.is_whole
    saved = await listed(open_spool, filled)
    assert saved.keys() <= everything.keys()
    if table in ("event", "submission"):
        assert saved == everything
    else:
        assert len(everything) // 2 < len(saved)
    keys = apsw.Connection(str(filled)).execute("SELECT count(*) FROM submission").get
    assert (keys == MESSAGES) == (table != "submission")
    (kept,) = damaged_copy_of(filled, "now-content").iterdir()
    assert kept.read_bytes() == LARGE
    if kept.name.removesuffix("-0") in saved:  # its own entry may be what was lost
        assert (contents_of(filled) / kept.name).read_bytes() == LARGE


async def test_rows_between_two_damaged_pages_are_found_by_their_keys(filled, open_spool):
    """A scan from either end does not reach them."""
    everything = await listed(open_spool, filled)
    pages = pages_of(filled, "entry")
    damage(filled, pages[1])
    damage(filled, pages[-2])
    assert len(pages) > 4
    found = recover_spool(filled, stamp="now")
    (hole,) = found.holes
    saved = await listed(open_spool, filled)
    between = [one for one in saved if hole["after"][0] < one < hole["before"][0]]
    assert between
    assert len(saved) < len(everything)


async def test_an_entry_without_recipients_is_held(filled, open_spool) -> None:
    pages = pages_of(filled, "recipient")
    damage(filled, pages[len(pages) // 2])
    found = recover_spool(filled, stamp="now")
    assert found.without_recipients > 0
    states = list((await listed(open_spool, filled)).values())
    assert states.count("held") == found.without_recipients


def lose_the_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)


def lose_the_schema(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * (PAGE - 100))


def lose_the_first_page(path: Path) -> None:
    damage(path, 1)


def lose_a_commit(path: Path) -> None:
    last_commit_of(path).write_bytes(b"%020d           \n" % 9)


@pytest.mark.parametrize("lose", [lose_the_header, lose_the_schema, lose_the_first_page])
async def test_a_database_with_a_damaged_first_page_is_recovered(
    filled: Path, open_spool, lose: Callable[[Path], None]
) -> None:
    before = await listed(open_spool, filled)
    lose(filled)
    with pytest.raises(SpoolDamagedError):
        open_spool(filled)
    found = recover_spool(filled, stamp="now")
    assert (found.is_whole, found.recipients_lost) == (True, 0)
    assert await listed(open_spool, filled) == before
    assert list(filled.parent.glob("*repaired*")) == []


async def test_a_migrated_database_with_a_damaged_header_is_recovered(
    filled: Path, open_spool, monkeypatch
) -> None:
    """Its tables are at other pages than those of a new database."""
    before = await listed(open_spool, filled)
    next_schema.use(monkeypatch.setattr)
    open_database(filled).close()
    lose_the_header(filled)
    found = recover_spool(filled, stamp="now")
    assert (found.holes, found.recipients_lost) == ([], 0)
    assert await listed(open_spool, filled) == before != {}


@pytest.mark.parametrize("lose", [lose_the_header, lose_the_first_page])
async def test_a_damaged_spool_of_the_first_release_keeps_its_recipients(
    filled: Path, open_spool, lose: Callable[[Path], None]
) -> None:
    before = await listed(open_spool, filled)
    with closing(apsw.Connection(str(filled))) as connection:
        connection.execute(AS_0_2_0)
    lose(filled)
    found = recover_spool(filled, stamp="now")
    assert (found.rows["recipient"], found.recipients_lost) == (MESSAGES + 1, 0)
    assert await listed(open_spool, filled) == before != {}


async def test_an_empty_spool_replaces_an_unreadable_one(filled, open_spool) -> None:
    filled.write_bytes(b"no database any more " * 1000)
    found = recover_spool(filled, stamp="now")
    assert (found.entries_waiting, found.is_whole) == (0, False)
    assert damaged_copy_of(filled).read_bytes().startswith(b"no database")
    assert [one.read_bytes() for one in damaged_copy_of(filled, "now-content").iterdir()] == [LARGE]
    assert await listed(open_spool, filled) == {}


@pytest.mark.parametrize(
    ("act", "nth"),
    sampled([("_move_damaged", 1), ("_copy_ends", 4), ("fsync_path", 5), ("fsync_path", 6)]),
)
async def test_a_killed_recovery_is_continued(filled, open_spool, act, nth) -> None:
    everything = await listed(open_spool, filled)
    damage(filled, pages_of(filled, "event")[1])
    damaged = filled.read_bytes()
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(filled), act, str(nth)
    )
    assert await killed.wait() == -9
    with pytest.raises(SpoolDamagedError, match="recovery was interrupted"):
        open_spool(filled)
    assert not list(filled.parent.glob("*damaged-second*"))
    found = recover_spool(filled, stamp="second")
    assert found.aside == str(damaged_copy_of(filled, "first"))
    assert damaged_copy_of(filled, "first").read_bytes() == damaged
    assert not recovery_mark_of(filled).exists()
    assert await listed(open_spool, filled) == everything


async def test_a_damaged_page_refuses_new_mail_and_delivery_continues(
    filled: Path, make, clock: ManualClock
) -> None:
    damage(filled, pages_of(filled, "submission")[1])
    metrics = Metrics()
    spool = new_spool(filled, clock, metrics=metrics)
    await spool.start()
    clock.advance(3600)
    (claim, *others) = (await spool.claim_due(clock.queue_us(), 10, DueQuery())).claims
    await spool.accept(make())
    with pytest.raises(SpoolUnavailableError):
        await asyncio.gather(
            *(spool.accept(make(), submission_key=f"draft.{number}") for number in range(MESSAGES))
        )
    assert "malformed" in spool.damage.text
    assert metrics.registry.get_sample_value("relay_spool_damaged") == 1
    with pytest.raises(SpoolUnavailableError, match="no new mail is accepted"):
        await spool.accept(make())
    assert (await spool.settle(Settlement(claim, 5, {1: OK})))[0]
    await spool.release(others)
    assert (await spool.counts()).unaccounted == 0
    await spool.stop()

    metrics = Metrics()
    again = new_spool(filled, clock, metrics=metrics)  # the damage mark is on disk
    await again.start()
    assert metrics.registry.get_sample_value("relay_spool_damaged") == 1
    with pytest.raises(SpoolUnavailableError):
        await again.accept(make())
    await again.stop()
    assert not recover_spool(filled, stamp="now").is_whole
    assert not damage_mark_of(filled).exists()
    repaired = new_spool(filled, clock)
    await repaired.start()
    await repaired.accept(make())
    await repaired.stop()


async def test_a_reader_reports_damage_too(filled: Path, open_spool) -> None:
    connection = apsw.Connection(str(filled))
    (message_id,) = connection.execute(
        "SELECT min(message_id) FROM event WHERE message_id > (SELECT min(id) FROM message)"
    ).fetchone()
    connection.close()
    damage(filled, pages_of(filled, "event")[0])
    spool = open_spool(filled)
    with pytest.raises(SpoolError):
        await spool.journey(message_id)
    assert spool.damage.text
    await spool.stop()


async def test_the_rest_of_a_truncated_file_is_recovered(filled: Path, open_spool) -> None:
    before = await listed(open_spool, filled)
    cut_in_half(filled)
    with pytest.raises(SpoolDamagedError):
        open_spool(filled)
    found = recover_spool(filled, stamp="now")
    assert found.rows["message"] > 0
    assert not found.is_whole
    after = await listed(open_spool, filled)
    assert 0 < len(after) < len(before)
    nobody_left = len(before) - len(after) + found.without_recipients
    assert (
        nobody_left <= (found.recipients_lost or 0) < len(before)
    )  # some recipients lost their message


def cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 // PAGE * PAGE)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("lose", "fault"), [(remove, "is missing"), (empty, "it is empty")])
async def test_a_lost_queue_is_not_replaced_by_an_empty_one(
    filled: Path, open_spool, lose: Callable[[Path], None], fault: str
) -> None:
    (content,) = contents_of(filled).iterdir()
    lose(filled)
    with pytest.raises(SpoolDamagedError, match=fault):
        open_spool(filled)
    assert content.exists()
    assert not recover_spool(filled, stamp="now").is_whole
    assert await listed(open_spool, filled) == {}
    assert (damaged_copy_of(filled, "now-content") / content.name).read_bytes() == LARGE


async def test_an_empty_spool_may_be_removed(path: Path, open_spool, capfd) -> None:
    assert await listed(open_spool, path) == {}
    assert "begins empty" not in "".join(capfd.readouterr())
    remove(path)
    assert await listed(open_spool, path) == {}
    assert "a spool existed here: the queue starts empty" in "".join(capfd.readouterr())


async def killed(path: Path, open_spool, make) -> list[str]:
    """Leave a spool as a kill does, with all rows in its log; return the queue ids."""
    spool = open_spool(path)
    await spool.start()
    names = [(await spool.accept(make())).queue_id for _ in range(9)]
    files = [path, log_of(path), last_commit_of(path)]
    kept = [file.read_bytes() for file in files]
    await spool.stop()
    for file, octets in zip(files, kept, strict=True):
        file.write_bytes(octets)
    return sorted(names)


FRAME = PAGE + 24


def octets_of(path: Path) -> bytes:
    return path.read_bytes()


def restore(path: Path, octets: bytes) -> None:
    path.write_bytes(octets)


def change_header(log: Path) -> None:
    with log.open("r+b") as file:
        file.write(b"\xff" * 32)


def change_middle(log: Path) -> None:
    with log.open("r+b") as file:
        file.seek(32 + FRAME * (log.stat().st_size // FRAME // 2) + 100)
        file.write(b"\xff" * 64)


def age_record(path: Path, commits: int) -> None:
    """Leave the record of the last commit as a power loss does: some commits old."""
    number = int(last_commit_of(path).read_text().split()[0])
    last_commit_of(path).write_text(f"{max(0, number - commits):020d}           \n")


def commit_more(path: Path, commits: int) -> None:
    """Append that many commits of one page to the log, and leave it as a kill does."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = OFF")
        for _ in range(commits):
            connection.execute("UPDATE counter SET value = value + 1 WHERE name = 'commits'")
        (number,) = connection.execute(
            "SELECT value FROM counter WHERE name = 'commits'"
        ).fetchone()
    last_commit_of(path).write_text(f"{number:020d}           \n")


def change_commit(log: Path, *, from_last: int) -> None:
    """Damage a commit of commit_more(), counted from the end."""
    with log.open("r+b") as file:
        file.seek(-FRAME * from_last + 100, os.SEEK_END)
        file.write(b"\xff" * 64)


@pytest.mark.parametrize("age", sampled([1000, 10, 1, 0], one_of=2))
async def test_damage_of_a_commit_that_the_record_does_not_know_is_found(
    path: Path, open_spool, make, age: int
) -> None:
    """After a power loss the record of the last commit may be older than the damaged commit."""
    names = await killed(path, open_spool, make)
    commit_more(path, age + 2)
    age_record(path, age)
    change_commit(log_of(path), from_last=max(2, age))
    assert "-wal is damaged: SQLite reads" in damage_reported_by(
        lambda: check_files(path, has_owner=False)
    )
    with pytest.raises(SpoolDamagedError, match="-wal is damaged: SQLite reads"):
        open_spool(path)
    found = recover_spool(path, stamp="now")
    assert (found.is_whole, found.log_damaged) == (False, True)
    assert sorted(await listed(open_spool, path)) == names


@pytest.mark.parametrize("age", [0, 1, 10, 1000])
@pytest.mark.parametrize("change", [change_header, change_middle])
async def test_commits_after_a_damaged_frame_of_the_log_are_recovered(
    path: Path, open_spool, make, change: Callable[[Path], None], age: int
) -> None:
    """SQLite alone would ignore these commits and overwrite them."""
    names = await killed(path, open_spool, make)
    age_record(path, age)
    change(log_of(path))
    damaged = log_of(path).read_bytes()
    for _ in range(2):
        with pytest.raises(SpoolDamagedError, match="-wal is damaged: SQLite reads"):
            open_spool(path)
    assert log_of(path).read_bytes() == damaged
    found = recover_spool(path, stamp="now")
    assert (found.is_whole, found.log_damaged) == (False, True)
    assert sorted(await listed(open_spool, path)) == names
    assert damaged_copy_of(path, "now-wal").read_bytes() == damaged


def change_first_page(log: Path) -> None:
    """The log has a newer version of this page."""
    with log.with_name(log.name.removesuffix("-wal")).open("r+b") as file:
        file.write(b"\xff" * 100)


def change_both(log: Path) -> None:
    change_first_page(log)
    change_header(log)


def cut(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 100)


def change_first_page_without_log(log: Path) -> None:
    log.write_bytes(b"")
    change_first_page(log)


@pytest.mark.parametrize(
    ("change", "is_damage"),
    [
        (change_header, True),
        (change_middle, True),
        (change_first_page, False),
        (change_both, True),
        (cut, True),
        (os.unlink, True),
        (change_first_page_without_log, True),
    ],
)
async def test_check_files_and_verify_find_the_damage_that_a_start_finds(
    path: Path, open_spool, make, change: Callable[[Path], None], is_damage: bool
) -> None:
    await killed(path, open_spool, make)
    change(log_of(path))
    before = bytes_of_files(path)
    seen = damage_reported_by(lambda: check_files(path, has_owner=False))
    after = bytes_of_files(path)
    assert after == before, "it opened the spool"
    findings: list[SpoolFinding] = []
    SpoolVerifier(
        path, mode=VerifyMode.DRY_RUN, full=False, clock=ManualClock(0), report=findings.append
    ).run()
    verified = [one.found for one in findings if one.kind is SpoolFault.DAMAGED_SPOOL]
    started = damage_reported_by(lambda: open_spool(path))
    assert [bool(one) for one in (started, seen, verified)] == [is_damage] * 3


def bytes_of_files(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.parent.iterdir() if one.is_file()}


def damage_reported_by(act: Callable[[], object]) -> str:
    try:
        act()
    except SpoolDamagedError as error:
        return str(error)
    return ""


async def test_a_truncated_log_without_a_commit_number_is_not_damage(
    path: Path, open_spool, make
) -> None:
    """An older Relay leaves no commit number, so what was synced is unknown."""
    names = await killed(path, open_spool, make)
    last_commit_of(path).unlink()
    database, log = octets_of(path), octets_of(log_of(path))
    found = []
    for lost in (0, 1, FRAME + 50, len(log) // 2, len(log) - 20, len(log)):
        restore(path, database)
        restore(log_of(path), log[: len(log) - lost])
        found.append(len(await listed(open_spool, path)))
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (len(names), 0)


@pytest.mark.parametrize(
    ("lose", "fault"), [(remove, "its write-ahead log is not"), (empty, "it is empty")]
)
@pytest.mark.parametrize("is_alone", [False, True])
async def test_a_log_without_its_database_is_kept(
    path: Path, open_spool, make, clock, lose: Callable[[Path], None], fault: str, is_alone: bool
) -> None:
    """After a kill it may have every row; SQLite removes a log next to an empty database."""
    names = await killed(path, open_spool, make)
    lose(path)
    if is_alone:
        last_commit_of(path).unlink()
        shutil.rmtree(contents_of(path))
    kept = log_of(path).read_bytes()
    with pytest.raises(SpoolDamagedError, match=fault):
        open_spool(path)
    SpoolVerifier(
        path, mode=VerifyMode.DRY_RUN, full=True, clock=clock, report=lambda _: None
    ).run()
    assert log_of(path).read_bytes() == kept
    assert not recover_spool(path, stamp="now").is_whole
    assert damaged_copy_of(path, "now-wal").read_bytes() == kept
    assert sorted(await listed(open_spool, path)) == names
