"""Which messages of all mailboxes are unread, by the names of their files alone.

No index is opened: 1,500 mailboxes take as long as a look at the times of their directories, which
are read again when they have changed. A file that another mail server has renamed is not found.
"""

import os
from pathlib import Path

from msgspec import Struct

from relay.base.clock import Clock
from relay.mailbox.message_file import SEEN, parse_name

_SETTLED_NS = 3_000_000_000  # a change after that has another time, in any file system


class _Directory(Struct, frozen=True):
    changed_ns: int
    unread: set[str]  # ids
    inner: list[Path]


class UnreadFiles:
    """The messages without the flag Seen below a mail root."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self._root, self._clock = root, clock
        self._known: dict[Path, _Directory] = {}

    def ids(self) -> set[str]:
        """Return their ids. Blocks. Raises OSError."""
        known: dict[Path, _Directory] = {}
        found: set[str] = set()
        settled_ns = self._clock.file_time_us() * 1000 - _SETTLED_NS
        waiting = [self._root]
        while waiting:
            path = waiting.pop()
            try:
                changed_ns, one = path.stat().st_mtime_ns, self._known.get(path)
                if one is None or one.changed_ns != changed_ns:
                    one = _read(path, changed_ns)
            except FileNotFoundError:  # it was removed meanwhile
                continue
            if changed_ns < settled_ns:
                known[path] = one
            found |= one.unread
            waiting += one.inner
        self._known = known
        return found


def _read(path: Path, changed_ns: int) -> _Directory:
    found = _Directory(changed_ns, set(), [])
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found.inner.extend([path / entry.name] * (entry.name != "tmp"))
            elif (name := parse_name(entry.name)) and SEEN not in name.flags:
                found.unread.add(name.message_id)
    return found
