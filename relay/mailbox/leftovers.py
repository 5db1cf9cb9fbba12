"""What a crash left of submissions that nobody got a 202 for: removed at start and on first use.

On the path: the front door, before it takes requests, and before it first writes to a mailbox.
Holds: a draft whose note was ready, or that was there before its submission, is never touched.
Only one process is the front door of a root: what is in the way at its start is nobody's work.
Fails: OSError when the disk refuses.
Standards: none; docs/design.md 1.
"""

import threading
from pathlib import Path

from relay.mailbox.equipment import Equipment
from relay.mailbox.folders import well_known_path
from relay.mailbox.maildir import list_names, remove
from relay.mailbox.messages import is_draft
from relay.mailbox.names import is_our_name
from relay.mailbox.notes import read_block_of
from relay.mailbox.types import WellKnown


class Leftovers:
    """Blocking; the store calls it in its threads."""

    def __init__(self, equipment: Equipment) -> None:
        self._shared = equipment
        self._lock = threading.Lock()
        # One path an account: whatever is forgotten would be cleaned under its writers' hands.
        self._used: set[Path] = set()

    def remove_prepared(self) -> int:
        """Remove what is in preparing/, with the drafts that came with it; return how many."""
        notes = self._shared.notes
        left = notes.prepared()
        for prepared in left:
            block = read_block_of(prepared.path)
            if prepared.is_new and block is not None and not notes.is_ready(prepared.submission_id):
                mailbox = self._shared.folders.mailbox(block.origin.account)
                located = self._shared.index.find_stem(mailbox, block.origin.base_name)
                if located is not None and is_draft(located):
                    remove(located.path)
                    self._shared.syncs.sync(located.directory)
            remove(prepared.path)
        if left:
            self._shared.syncs.sync(notes.preparing)
        return len(left)

    def clean_on_first_use(self, mailbox: Path) -> None:
        """Remove half-written drafts from the mailbox's tmp/, before this process writes there."""
        with self._lock:
            if mailbox in self._used:
                return
            temporary = well_known_path(mailbox, WellKnown.DRAFTS) / "tmp"
            for name in list_names(temporary):
                if is_our_name(name):
                    remove(temporary / name)
            self._used.add(mailbox)
