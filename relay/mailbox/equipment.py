"""What the parts of the store share, as one value.

On the path: the store makes it once; drafts, sending and inbox work with it.
Holds: nothing of its own.
Fails: never.
Standards: none.
"""

from dataclasses import dataclass

from relay.clock import Clock, Ids
from relay.journal.crash import CrashPoints
from relay.mailbox.folders import Folders
from relay.mailbox.index import Indexes
from relay.mailbox.maildir import DirectorySync, Stripes
from relay.mailbox.notes import NotesDirectory
from relay.mailbox.notes.deferred import DeferredNotes
from relay.mailbox.quota import Quota


@dataclass(frozen=True, slots=True)
class Equipment:
    """`stripes` has a lock for each message: whoever changes one holds it."""

    clock: Clock
    ids: Ids
    crash: CrashPoints
    hostname: str
    folders: Folders
    index: Indexes
    quota: Quota
    notes: NotesDirectory
    syncs: DirectorySync
    stripes: Stripes
    deferred: DeferredNotes
