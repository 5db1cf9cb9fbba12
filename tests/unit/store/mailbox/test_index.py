"""The index is a cache: after damage, removal or a full disk it is rebuilt and nothing is lost."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from unittest.mock import Mock

import apsw
import pytest
from inotify_simple import INotify

from relay.base.advanceable_clock import AdvanceableClock
from relay.base.clock import Machine
from relay.base.message.header import FIELDS_MAX
from relay.store.mailbox import folders
from relay.store.mailbox.changes import ChangeKind
from relay.store.mailbox.errors import StalePositionError
from relay.store.mailbox.index import change_feed, content_index, update
from relay.store.mailbox.index.database import FILE_NAME, SCHEMA_VERSION
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.index.watch import InotifyWatcher
from relay.store.mailbox.query import Compare, HasWords, MessageQuery, Operator, Property, SearchIn
from tests.support.disks import filled, read_only, small_disk
from tests.support.indexed_mailbox import Mailbox
from tests.support.long_tests import sampled
from tests.support.tables import each_row

HOUSE = MessageQuery(condition=HasWords(SearchIn.ANYWHERE, "house"))


def where(named: Property, value: str | int) -> MessageQuery:
    return MessageQuery(condition=Compare(named, Operator.EQ, value))


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A small disk. A mailbox is on it if the test names it after the disk."""
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", size_bytes=4 << 20):
        yield tmp_path / "disk"


@pytest.fixture
def mailbox(tmp_path) -> Iterator[Mailbox]:
    made = Mailbox(tmp_path / "disk/box")
    yield made
    for index in made.opened:
        index.close()


@pytest.fixture
def index(mailbox) -> Indexes:
    return mailbox.index()


def found(index: Indexes, mailbox: Mailbox, query: MessageQuery | None = None) -> list[Path]:
    return [hit.located.path for hit in index.query(mailbox.path, query or MessageQuery()).hits]


def newest(index: Indexes, mailbox: Mailbox) -> str:
    """The position of the feed's end."""
    return index.changes(mailbox.path, "", 10).position


def is_stale(index: Indexes, mailbox: Mailbox, position: str) -> bool:
    with suppress(StalePositionError):
        index.changes(mailbox.path, position, 10)
        return False
    return True


# -- damage


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


def sql(statement: str) -> Callable[[Path], None]:
    def execute(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(statement)

    return execute


@pytest.mark.parametrize(
    ("damage", "in_use"),
    [
        pytest.param(lambda path: path.write_bytes(b"garbage" * 1000), False, id="no database"),
        pytest.param(lambda path: path.write_bytes(b""), False, id="empty"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size // 2), False, id="cut off"),
        pytest.param(overwritten, False, id="overwritten"),
        pytest.param(sql(f"PRAGMA user_version = {SCHEMA_VERSION + 1}"), False, id="version"),
        pytest.param(sql("DROP TABLE change"), False, id="no table"),
        pytest.param(Path.unlink, False, id="gone"),
        pytest.param(sql("DROP TABLE change"), True, id="no table, in use"),
        pytest.param(Path.unlink, True, id="gone, in use"),
    ],
)
def test_a_damaged_index_is_made_anew(mailbox, index, damage, in_use):
    file = mailbox.add()
    before = index.find(mailbox.path, index.query(mailbox.path, HOUSE).hits[0].located.message_id)
    position = index.changes(mailbox.path, "", 1).position
    if not in_use:
        index.close()
    damage(mailbox.path / FILE_NAME)
    for leftover in () if in_use else ("-wal", "-shm"):
        mailbox.path.joinpath(FILE_NAME + leftover).unlink(missing_ok=True)
    index = index if in_use else mailbox.index()
    assert found(index, mailbox, HOUSE) == [file]
    assert index.find(mailbox.path, before.message_id) == before
    assert is_stale(index, mailbox, position)


def test_an_index_of_the_version_before_is_continued(mailbox, index):
    sizes = {b"Subject: house\r\n\r\nx\r\n": 21, b"a: b\n\nx\n": 11, b"a: b\n\nxyzz": 12}
    files = {mailbox.add(content=content): size for content, size in sizes.items()}
    assert len(found(index, mailbox, HOUSE)) == 1
    position = index.changes(mailbox.path, "", 1).position
    index.close()
    with closing(apsw.Connection(str(mailbox.path / FILE_NAME))) as connection:
        connection.execute("ALTER TABLE message DROP COLUMN added_bytes; PRAGMA user_version = 11")
    index = mailbox.index()
    for file, size in files.items():
        assert found(index, mailbox, where(Property.SIZE, size)) == [file]
    assert len(found(index, mailbox, HOUSE)) == 1
    assert index.changes(mailbox.path, position, 10).changes == ()


def test_a_directory_in_its_place_is_no_reason_to_fail(mailbox, index):
    file = mailbox.add()
    (mailbox.path / FILE_NAME).mkdir()
    assert found(index, mailbox) == [file]


def test_other_programs_see_nothing_of_it(mailbox, index):
    mailbox.add()
    found(index, mailbox, HOUSE)
    names = [path.name for path in mailbox.path.iterdir() if path.name.startswith(FILE_NAME)]
    assert FILE_NAME in names
    assert all((mailbox.path / name).stat().st_mode & 0o777 == 0o600 for name in names)


@pytest.mark.parametrize("trouble", [filled, read_only])
def test_without_room_for_it_the_mailbox_is_still_read(disk, mailbox, index, trouble):
    file = mailbox.add()
    with trouble(disk):
        assert found(index, mailbox, HOUSE) == [file]
        position = newest(index, mailbox)
    later = mailbox.add()
    assert found(index, mailbox, HOUSE) == [later, file]
    assert len(index.changes(mailbox.path, position, 10).changes) == 1
    mailbox.clock.advance(61)
    assert found(index, mailbox, HOUSE) == [later, file]
    assert (mailbox.path / FILE_NAME).stat().st_size > 0
    assert is_stale(index, mailbox, position)


def test_a_disk_that_fills_up_later_stops_no_reader(disk, mailbox, index):
    files = [mailbox.add() for _ in range(50)]
    assert len(found(index, mailbox)) == 10
    with filled(disk):
        files[0].rename(files[0].with_name(files[0].name + "S"))
        assert len(found(index, mailbox, where(Property.IS_READ, value=True))) == 1
        assert len(found(index, mailbox, HOUSE)) == 10


# -- what other programs do


def test_more_events_than_are_kept_and_lost_ones_are_made_up_for(mailbox, monkeypatch):
    monkeypatch.setattr("relay.store.mailbox.index.watch._NAMES_MAX", 5)
    index = mailbox.index()
    found(index, mailbox)
    added = {mailbox.add() for _ in range(8)}
    assert set(found(index, mailbox)) == added


def test_where_watches_end_directories_times_tell(mailbox):
    index = mailbox.index(watcher=InotifyWatcher(watches_max=2))
    assert found(index, mailbox) == []
    files = [mailbox.add(".Archive"), mailbox.add(".Drafts"), mailbox.add()]
    assert found(index, mailbox) == files[::-1]
    later = mailbox.add(".Archive")
    assert found(index, mailbox)[0] == later


class Deaf(INotify):
    """Of a file system that says nothing of what other hosts do."""

    def read(self, timeout=None, read_delay=None):
        super().read(timeout, read_delay)
        return iter(())


def test_what_came_without_a_word_is_seen_in_a_while_and_from_then_on_at_once(mailbox):
    index = mailbox.index(watcher=InotifyWatcher(make=lambda: Deaf(nonblocking=True)))
    found(index, mailbox)
    first = mailbox.add()
    assert found(index, mailbox) == []
    mailbox.clock.advance(11)
    assert found(index, mailbox) == [first]
    second = mailbox.add()
    assert found(index, mailbox) == [second, first]


class Late(INotify):
    """Other programs act before its readings: a deed before each."""

    deeds = iter(())

    def read(self, timeout=None, read_delay=None):
        next(self.deeds, list)()
        return super().read(timeout, read_delay)


def test_a_message_that_comes_with_a_folder_during_the_check_of_times_is_seen(mailbox):
    inotify = Late(nonblocking=True)
    index = mailbox.index(watcher=InotifyWatcher(make=lambda: inotify))
    found(index, mailbox)
    files = [mailbox.add()]
    assert found(index, mailbox) == files
    mailbox.clock.advance(11)
    folder = mailbox.path / ".Late"
    inotify.deeds = iter([list, lambda: (files.append(mailbox.add()), folder.mkdir())])
    found(index, mailbox)
    assert found(index, mailbox) == files[::-1]


def test_a_folder_that_is_made_while_it_is_filled_is_seen_whole(mailbox, index):
    found(index, mailbox)
    folder = mailbox.path / ".Late"
    folder.mkdir()
    found(index, mailbox)
    (folder / "cur").mkdir()
    found(index, mailbox)
    file = folder / "cur" / "1.M1.h:2,"
    file.write_bytes(b"x")
    assert found(index, mailbox) == [file]
    assert [one.total for one in index.folders(mailbox.path) if one.path == folder] == [1]


def test_a_file_that_is_written_where_it_lies_is_read_when_it_is_closed(mailbox, index):
    path = mailbox.path / "cur/1.M1.h:2,"
    with path.open("wb") as file:
        assert found(index, mailbox, HOUSE) == []
        assert found(index, mailbox) == [path]
        file.write(b"Subject: house\r\n\r\n")
    assert found(index, mailbox, HOUSE) == [path]


def test_a_file_that_cannot_be_read_is_found_by_what_is_known_of_it(mailbox, index, monkeypatch):
    file = mailbox.add()
    refused = Mock(side_effect=PermissionError(13, "no", str(file)))
    monkeypatch.setattr(content_index, "open_message", refused)
    assert found(index, mailbox, HOUSE) == []
    assert found(index, mailbox) == [file]


@pytest.mark.parametrize("call", ["lstat", "open"])
def test_what_a_failing_disk_does_not_show_is_not_gone(mailbox, index, monkeypatch, call):
    """A message by its file, a folder by its marker."""
    folders.make_folder(mailbox.path / ".Work", "work")
    file = mailbox.add(".Work")
    [message_id] = ids(index, mailbox).values()
    position = newest(index, mailbox)
    (mailbox.path / ".New").mkdir()  # the folders are listed again
    file = file.rename(file.with_name(file.name + "F"))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, Mock(side_effect=OSError(errno.EIO, "broken")))
        with pytest.raises(OSError, match="broken"):
            index.find(mailbox.path, message_id)
    assert ids(index, mailbox) == {file: message_id}
    [change] = index.changes(mailbox.path, position, 10).changes
    assert change.kind is ChangeKind.UPDATED


@pytest.mark.parametrize("line_end", sampled([b"\n", b"\r\n", b"\r"]), ids=repr)
@pytest.mark.parametrize("field", [b"A:\n", b"A:\n \tx\n \n"], ids=["plain", "folded"])
def test_only_the_first_10000_header_fields_are_indexed(mailbox, index, field, line_end):
    """Only another program, or an earlier version, has put such a message there."""

    def add(fields: int) -> Path:
        content = field * fields + b"Subject: house\nCc: c@b.test\n\na garden\n"
        return mailbox.add(content=content.replace(b"\n", line_end))

    last, beyond = add(FIELDS_MAX - 1), add(FIELDS_MAX)
    assert found(index, mailbox, where(Property.SUBJECT, "house")) == [last]
    assert found(index, mailbox, HOUSE) == [last]
    garden = MessageQuery(condition=HasWords(SearchIn.BODY, "garden"))
    assert sorted(found(index, mailbox, garden)) == [last, beyond]


# -- a bounded number is open


def test_the_longest_unused_is_closed_and_knows_what_it_knew(tmp_path, monkeypatch):
    mailboxes = [Mailbox(tmp_path / str(number)) for number in range(5)]
    index = mailboxes[0].index(open_max=2)
    files = [one.add() for one in mailboxes]
    for _ in range(2):
        for mailbox, file in zip(mailboxes, files, strict=True):
            assert found(index, mailbox) == [file]
    assert len(index._open) == 2
    monkeypatch.setattr(update.IndexUpdater, "build", None)  # none is made anew
    mailboxes[0].clock.advance(1)
    for mailbox, file in zip(mailboxes, files, strict=True):
        assert found(index, mailbox) == [file]
    index.close()


# -- the change feed


def test_flags_and_new_to_cur(mailbox, index):
    file = mailbox.add()
    new = file.rename(mailbox.path / "new" / file.name.partition(":")[0])
    position = newest(index, mailbox)
    new.rename(file)
    seen = index.changes(mailbox.path, position, 10)
    assert seen.changes == ()  # a mail client has seen it: nothing that is shown is different
    file.rename(file.with_name(file.name + "S"))
    [change] = index.changes(mailbox.path, seen.position, 10).changes
    assert change.kind is ChangeKind.UPDATED


def test_what_is_too_old_is_stale(mailbox, monkeypatch):
    monkeypatch.setattr(change_feed, "CHANGES_KEPT", 4)
    monkeypatch.setattr(change_feed, "_PRUNED_EVERY", 2)
    index = mailbox.index()
    positions = [newest(index, mailbox)]
    for _ in range(10):
        mailbox.add()
        positions.append(newest(index, mailbox))
    assert is_stale(index, mailbox, positions[5])
    assert len(index.changes(mailbox.path, positions[6], 10).changes) == 4


@each_row(
    "position",
    [
        "x",
        "0123456789abcdef.1",
        "0123456789abcdef",
        ".",
        "1" * 5000,
        "0.0",
        "{}.100000000000000000",
    ],
)
def test_a_position_of_no_feed_or_from_the_future_is_stale(mailbox, index, position):
    number = newest(index, mailbox).partition(".")[0]
    assert is_stale(index, mailbox, position.format(number))


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
@pytest.mark.parametrize("rebooted", [True, False], ids=["rebooted", "same boot"])
def test_a_feed_outlives_its_process_but_no_loss_of_power(
    mailbox, index, monkeypatch, closed, rebooted
):
    position = newest(index, mailbox)
    mailbox.add()
    index.changes(mailbox.path, position, 10)
    if closed:  # otherwise killed: the file is as it was
        index.close()
    if rebooted:
        monkeypatch.setattr(change_feed, "boot_id", lambda: "another")
    later = mailbox.index()
    mailbox.add()
    found(later, mailbox)
    assert is_stale(later, mailbox, position) is (rebooted and not closed)
    if closed or not rebooted:
        assert len(later.changes(mailbox.path, position, 10).changes) == 2


def test_an_index_that_was_put_back_from_a_copy_has_another_feed(mailbox, index):
    position = newest(index, mailbox)
    mailbox.add()
    found(index, mailbox)
    index.close()
    shutil.copyfile(mailbox.path / FILE_NAME, mailbox.path / "copy")
    (mailbox.path / "copy").replace(mailbox.path / FILE_NAME)
    mailbox.add()
    later = mailbox.index()
    found(later, mailbox)
    assert is_stale(later, mailbox, position)


# -- which message a file is


def ids(index: Indexes, mailbox: Mailbox) -> dict[Path, str]:
    hits = index.query(mailbox.path, MessageQuery(top=1000)).hits
    return {hit.located.path: hit.located.message_id for hit in hits}


def test_of_two_copies_the_oldest_has_the_id_when_the_index_is_made_anew(mailbox):
    content = b"Return-Path: <a@b>\r\nX-Relay-Id: l234567abcdefghi\r\nSubject: s\r\n\r\n"
    files = [mailbox.add(content=content) for _ in range(20)]
    found = ids(mailbox.index(), mailbox)
    assert found[files[0]] == "l234567abcdefghi"
    assert len(set(found.values())) == 20


@pytest.mark.parametrize(
    ("field", "is_claimed"),
    [
        (b"X-Relay-Id: l234567abcdefghi\r\n", True),
        (b"Return-Path: <a@b>\r\nx-relay-id:l234567abcdefghi\r\n", True),
        (b"Return-Path: <a@b>\r\nTo: b\r\nX-Relay-Id: l234567abcdefghi\r\n", False),
        (b"X-Relay-Id: 0123456789abcdef\r\n", False),  # no id that local delivery gives
        (b"X-Relay-Id: l234567abcdefghi9\r\n", False),
    ],
)
def test_only_the_field_that_local_delivery_writes_counts(mailbox, field, is_claimed):
    file = mailbox.add(content=field + b"Subject: s\r\n\r\n")
    assert (ids(mailbox.index(), mailbox)[file] == "l234567abcdefghi") is is_claimed


@pytest.mark.parametrize("is_known", [True, False])
def test_a_lower_generation_goes_only_where_it_is_a_draft(mailbox, index, is_known):
    if is_known:
        found(index, mailbox)
    name = "cur/1000000000.R0123456789abcdef_"
    archived = mailbox.path / f".Archive/{name}1.h:2,S"
    before, draft = (mailbox.path / f".Drafts/{name}{number}.h:2,DS" for number in (2, 3))
    archived.write_bytes(b"kept")
    draft.write_bytes(b"the draft")
    before.write_bytes(b"what a crash left")
    assert set(ids(index, mailbox)) == {archived, draft}
    assert not before.exists()
    index.close()
    (mailbox.path / FILE_NAME).unlink()
    assert set(ids(mailbox.index(), mailbox)) == {archived, draft}


# -- what is read stays what the file says


def test_a_change_within_a_tick_is_seen_by_a_clock_that_was_advanced(mailbox):
    directory = mailbox.path / "cur"
    changed_ns = directory.stat().st_mtime_ns
    half_a_tick_later = Machine(lambda: changed_ns + 50_000_000, lambda: 0, "boot")
    mailbox.clock = AdvanceableClock(half_a_tick_later, advanced_s=86400)
    index = mailbox.index(watcher=InotifyWatcher(watches_max=0))
    for number in range(1, 4):
        mailbox.add()
        os.utime(directory, ns=(changed_ns, changed_ns))  # all changes within one tick
        assert len(found(index, mailbox)) == number


def test_a_directory_that_is_made_again_is_watched_again(mailbox, index):
    found(index, mailbox)
    directory = mailbox.path / ".Archive/cur"
    for _ in range(3):
        directory.rmdir()
        directory.mkdir()
        assert found(index, mailbox) == []
        file = mailbox.add(".Archive")
        assert found(index, mailbox) == [file]
        file.unlink()
        assert found(index, mailbox) == []


def test_words_go_with_their_message(mailbox, index):
    file = mailbox.add()
    os.utime(file, (10**9, 10**9))
    assert found(index, mailbox, HOUSE) == [file]
    file.unlink()
    assert found(index, mailbox, HOUSE) == []
    other = mailbox.add(content=b"Subject: garden\r\n\r\n")
    os.utime(other, (10**9, 10**9))  # received at the very same time
    assert found(index, mailbox, HOUSE) == []
    garden = MessageQuery(condition=HasWords(SearchIn.SUBJECT, "garden"))
    assert found(index, mailbox, garden) == [other]


def changed(file: Path) -> Path:
    """The next generation of a draft."""
    target = file.with_name(file.name.replace("_1.", "_2."))
    target.write_bytes(b"Subject: garden\r\n\r\n")
    file.unlink()
    return target


def test_a_draft_that_is_changed_is_read_again(mailbox, index):
    file = mailbox.add_draft()
    assert found(index, mailbox, HOUSE) == [file]
    target = changed(file)
    assert found(index, mailbox, HOUSE) == []
    assert found(index, mailbox, where(Property.SUBJECT, "garden")) == [target]


@pytest.mark.parametrize("watches_max", [0, 100])
def test_a_file_that_is_renamed_all_the_time_is_never_missed(mailbox, monkeypatch, watches_max):
    index = mailbox.index(watcher=InotifyWatcher(watches_max=watches_max))
    flagged = (plain := mailbox.add()).with_name(plain.name + "F")
    [message_id] = ids(index, mailbox).values()
    looks, real = iter(range(8)), update.os.lstat

    def lstat(path):
        """The file is always under its other name."""
        if Path(path) in (plain, flagged) and next(looks, None) is not None:
            other = flagged if Path(path) == plain else plain
            if not other.exists():
                Path(path).rename(other)
        return real(path)

    position = newest(index, mailbox)
    plain.rename(flagged)
    monkeypatch.setattr(update.os, "lstat", lstat)
    assert list(ids(index, mailbox).values()) == [message_id]
    changes = index.changes(mailbox.path, position, 10).changes
    assert all(one.kind is not ChangeKind.DELETED for one in changes)
