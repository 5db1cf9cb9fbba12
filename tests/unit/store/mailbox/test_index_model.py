"""The index matches the files after any sequence of changes by Relay and other programs.

After each scan the index has every file once, with its folder and flags. A message keeps its id. The
change feed leads from the former to the current state, and a rebuilt index finds the same.
"""

import itertools
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.base.clock import SystemClock
from relay.formats.draft import DraftOrigin
from relay.store.mailbox.changes import ChangeKind
from relay.store.mailbox.index.database import FILE_NAME
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.index.watch import InotifyWatcher
from relay.store.mailbox.message_file import delivered_base_name, delivered_id, make_base_name
from relay.store.mailbox.query import MessageQuery
from tests.support.drafts import write_mime_draft
from tests.support.long_tests import sampled

FOLDERS = ("", ".Drafts", ".Archive", ".Work")
FLAGS = ("", "S", "FS", "DS", "Sa")


def impossible() -> None:
    raise OSError("no inotify here")


class Clock(SystemClock):
    """The machine's, and at times ahead of it."""

    offset_us = 0

    def time_us(self) -> int:
        return super().time_us() + self.offset_us


def draft(content: bytes, base_name: str) -> bytes:
    origin = DraftOrigin("alice@example.test", base_name, "<a@b>", created_us=1, modified_us=1)
    return write_mime_draft(content, origin)


@dataclass
class Box:
    """A mailbox, its index, and what the index has to say of it."""

    path: Path
    watched: bool
    clock: Clock = field(default_factory=Clock)
    ids: dict[Path, str] = field(default_factory=dict)  # "" for one that the index is to choose
    copied: set[str] = field(default_factory=set)  # ids of which there were several files
    told: dict[str, str] = field(default_factory=dict)  # by the feed: in which folder
    position: str = ""
    names: itertools.count = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        for folder, name in itertools.product(FOLDERS, ("tmp", "new", "cur")):
            (self.path / folder / name).mkdir(parents=True)
        (self.path / ".Work" / "maildirfolder").write_text("relay-folder-id fwork\n")
        self.open()
        self.position = self.index.changes(self.path, "", 10).position

    def open(self) -> None:
        watches = InotifyWatcher() if self.watched else InotifyWatcher(make=impossible)
        self.index = Indexes(self.clock, watcher=watches)

    # -- what Relay and other programs do

    def add(self, kind: int, folder: int, flags: int) -> None:
        number = next(self.names)
        directory = self.path / FOLDERS[folder] / "cur"
        content = f"Subject: {number}\r\n\r\nx".encode()
        match kind % 3:
            case 0:
                base_name = f"{1_700_000_000 + number}.M{number}P1.host"
                message_id = ""
            case 1:
                message_id = f"0123456789ab{number:04d}"
                base_name = make_base_name(message_id, 1, time_us=10**15, hostname="host")
                content = draft(content, base_name)
            case _:
                unique = f"0123456789ab{number:04d}"
                message_id = delivered_id(unique)
                base_name = delivered_base_name(unique, hostname="host")
                content = f"X-Relay-Id: {message_id}\r\n".encode() + content
        if kind >= 3 and FLAGS[flags] == "":
            directory = directory.parent / "new"
            path = directory / base_name
        else:
            path = directory / f"{base_name},S={len(content)}:2,{FLAGS[flags]}"
        path.write_bytes(content)
        self.ids[path] = message_id

    def rename(self, which: int, folder: int, flags: int) -> None:
        """Flags, another folder, or both, as mutt does."""
        if (path := self.some(which)) is None:
            return
        base = path.name.partition(":")[0]
        target = self.path / FOLDERS[folder] / "cur" / f"{base}:2,{FLAGS[flags]}"
        if not target.exists():
            self.ids[path.rename(target)] = self.ids.pop(path)

    def imap_move(self, which: int, folder: int, looks: bool) -> None:
        """To a new name in another folder, as Dovecot does; somebody may scan half-way."""
        if (path := self.some(which)) is None:
            return
        if looks:
            self.scan()  # else which of the two is the copy is not to be known
        target = self.new_name(path, folder)
        os.link(path, target)
        if looks:
            self.ids[target] = ""
            self.scan()
        path.unlink()
        self.ids[target] = self.ids.pop(path)

    def imap_copy(self, which: int, folder: int) -> None:
        if (path := self.some(which)) is None:
            return
        self.scan()  # the original is known
        target = self.new_name(path, folder)
        os.link(path, target)
        self.copied.add(self.ids[path])
        self.ids[target] = ""
        self.scan()
        self.copied.add(self.ids[target])

    def imap_undo(self, which: int, folder: int) -> None:
        """A copy is made, and removed at once: the original is what it was."""
        if (path := self.some(which)) is not None:
            self.scan()
            target = self.new_name(path, folder)
            os.link(path, target)
            self.ids[target] = ""
            self.scan()
            target.unlink()
            del self.ids[target]

    def remove(self, which: int) -> None:
        if (path := self.some(which)) is not None:
            self.scan()
            path.unlink()
            del self.ids[path]
            self.clock.offset_us = 120 * 10**6  # later than any move
            self.scan()
            self.clock.offset_us = 0
            for directory in self.path.rglob("cur"):  # what was just listed seemed to be old
                os.utime(directory, ns=(0, 0))

    def replace(self, which: int, crash: bool, looks: bool) -> None:
        """A draft of the store's is changed: the next generation comes, the old one goes."""
        drafts = [
            path
            for path in sorted(self.ids)
            if ".R0123" in path.name and path.parent.parent.name == ".Drafts"
        ]
        if not drafts:
            return
        path = drafts[which % len(drafts)]
        base_name, _, flags = path.name.partition(":2,")
        head, _, rest = base_name.partition(",")[0].partition("_")
        generation, _, host = rest.partition(".")
        target = path.with_name(f"{head}_{int(generation) + 1}.{host}:2,{flags}")
        target.write_bytes(draft(b"Subject: changed\r\n\r\n", target.name.partition(":")[0]))
        self.ids[target] = self.ids.pop(path)
        if looks or crash:
            self.scan()
        path.unlink(missing_ok=True)

    def rename_folder(self, back: bool) -> None:
        here, there = self.path / ".Work", self.path / ".Play"
        source, target = (there, here) if back else (here, there)
        if source.exists() and not target.exists():
            source.rename(target)
            for path in [one for one in self.ids if one.parent.parent == source]:
                self.ids[target / path.parent.name / path.name] = self.ids.pop(path)
            target.rename(here)
            for path in [one for one in self.ids if one.parent.parent == target]:
                self.ids[here / path.parent.name / path.name] = self.ids.pop(path)

    def reopen(self) -> None:
        self.index.close()
        self.open()

    # -- what has to be true

    def scan(self) -> None:
        found = self.listed()
        assert set(found) == set(self.ids)
        for path, message_id in found.items():
            # Links of one file that all get new names at once: nobody can tell which is which.
            are_links = {self.ids[path], message_id} <= self.copied
            assert are_links or self.ids[path] in ("", message_id), path
            self.ids[path] = message_id
        assert len(set(found.values())) == len(found)
        self.replay()
        assert self.told == {message_id: self.folder_id(path) for path, message_id in found.items()}
        assert sum(folder.total for folder in self.index.folders(self.path)) == len(found)
        assert self.index.usage(self.path).usage.size_bytes == sum(
            path.stat().st_size for path in found
        )

    def replay(self) -> None:
        more = True
        while more:
            changes = self.index.changes(self.path, self.position, 3)
            for one in changes.changes:
                match one.kind:
                    case ChangeKind.CREATED:
                        assert one.message_id not in self.told
                    case ChangeKind.DELETED:
                        assert self.told.pop(one.message_id) == one.folder_id
                        continue
                    case ChangeKind.MOVED:
                        assert self.told[one.message_id] == one.previous_folder_id
                    case ChangeKind.UPDATED:
                        assert self.told[one.message_id] == one.folder_id
                self.told[one.message_id] = one.folder_id
            self.position, more = changes.position, changes.more

    def listed(self) -> dict[Path, str]:
        found = self.index.query(self.path, MessageQuery(top=1000))
        assert not found.more
        return {hit.located.path: hit.located.message_id for hit in found.hits}

    def made_anew(self) -> None:
        """An index from nothing finds the same; which of two copies has the id is its choice."""
        before = self.listed()
        self.index.close()
        (self.path / FILE_NAME).unlink()
        self.open()
        after = self.listed()
        assert set(after) == set(before)
        for path, message_id in after.items():
            if message_id not in self.copied and before[path] not in self.copied:
                assert message_id == before[path] or before[path].startswith("o")

    def some(self, which: int) -> Path | None:
        paths = sorted(self.ids)
        return paths[which % len(paths)] if paths else None

    def new_name(self, path: Path, folder: int) -> Path:
        number = next(self.names)
        flags = path.name.partition(":2,")[2]
        name = f"{1_800_000_000 + number}.M{number}P9.dovecot,S=1:2,{flags}"
        return self.path / FOLDERS[folder] / "cur" / name

    def folder_id(self, path: Path) -> str:
        names = {"": "inbox", ".Drafts": "drafts", ".Archive": "archive", ".Work": "fwork"}
        folder = path.parents[1]
        return names["" if folder == self.path else folder.name]


number = st.integers(0, 30)
folder = st.integers(0, len(FOLDERS) - 1)
flags = st.integers(0, len(FLAGS) - 1)
deeds = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 5), folder, flags),
    st.tuples(st.just("add"), st.just(1), st.just(1), st.just(3)),
    st.tuples(st.just("rename"), number, folder, flags),
    st.tuples(st.just("imap_move"), number, folder, st.booleans()),
    st.tuples(st.just("imap_copy"), number, folder),
    st.tuples(st.just("imap_undo"), number, folder),
    st.tuples(st.just("remove"), number),
    st.tuples(st.just("replace"), number, st.booleans(), st.booleans()),
    st.tuples(st.just("rename_folder"), st.just(False)),
    st.tuples(st.just("scan")),
    st.tuples(st.just("reopen")),
)


@pytest.mark.parametrize("watched", sampled([True, False]))
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(done=st.lists(deeds, max_size=12))
def test_the_index_is_what_is_there(tmp_path, watched, done):
    root = tmp_path / "mail"
    shutil.rmtree(root, ignore_errors=True)
    box = Box(root, watched=watched)
    try:
        for name, *values in done:
            getattr(box, name)(*values)
        box.scan()
        box.made_anew()
    finally:
        box.index.close()
