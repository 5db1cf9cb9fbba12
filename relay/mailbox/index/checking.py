"""Look at one mailbox's index from outside: whether it is whole and agrees; make it anew.

On the path: `relay storage verify`, in a process of its own beside the relay's.
Holds: nothing is watched and no index is made where there was none.
Fails: IndexDamagedError, IndexUnusableError; StoreError's children; OSError when the mailbox cannot
be read.
Standards: docs/design.md 3.
"""

from contextlib import closing
from pathlib import Path

import apsw

from relay.clock import Clock
from relay.mailbox.folders import list_folders
from relay.mailbox.index.comparing import Difference, differences, feed_fault, place_of
from relay.mailbox.index.database import (
    FILE_NAME,
    IndexDamagedError,
    open_database,
    remove_database,
    translated,
)
from relay.mailbox.index.mailbox import MailboxIndex
from relay.mailbox.index.watch import Watches


def index_path(mailbox: Path) -> Path:
    """Where a mailbox's index is."""
    return mailbox / FILE_NAME


def check_file(mailbox: Path, *, full: bool) -> None:
    """Raise IndexDamagedError for a file that SQLite finds fault with."""
    with closing(open_database(index_path(mailbox))) as connection, translated():
        how = "integrity_check" if full else "quick_check"
        told = connection.execute(f"PRAGMA {how}(1)").get
    if told != "ok":
        raise IndexDamagedError(str(told))


def compare(mailbox: Path, clock: Clock, *, full: bool) -> set[Difference]:
    """Catch the index up, and return what differs all the same."""
    with closing(_index(mailbox, clock)) as index:
        return index.ask(lambda cursor: _compared(cursor, mailbox, names=True, full=full))


def compare_as_it_is(mailbox: Path, *, full: bool) -> set[Difference]:
    """Return what is wrong whatever happened since the index was last caught up."""
    with closing(open_database(index_path(mailbox))) as connection, translated():
        return _compared(connection.cursor(), mailbox, names=False, full=full)


def make_anew(mailbox: Path, clock: Clock) -> None:
    """Remove the index and fill another one."""
    remove_database(index_path(mailbox))
    with closing(_index(mailbox, clock)) as index:
        index.ask(lambda _: None)


def find_file(mailbox: Path, message_id: str) -> Path | None:
    """The file of a message when the index was last caught up; None if there is none."""
    with closing(open_database(index_path(mailbox))) as connection, translated():
        return place_of(connection.cursor(), message_id)


def _index(mailbox: Path, clock: Clock) -> MailboxIndex:
    return MailboxIndex(mailbox, clock=clock, watches=Watches(watches_max=0))


def _compared(cursor: apsw.Cursor, mailbox: Path, *, names: bool, full: bool) -> set[Difference]:
    found = set(differences(cursor, list_folders(mailbox), names=names, full=full))
    if told := feed_fault(cursor):
        found.add(Difference("", told))
    return found
