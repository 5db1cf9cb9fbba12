"""Any sequence of changes to folders, ours and other programs', against a model that is a dictionary."""

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relay.base.clock import Ids
from relay.store.mailbox.draft_files import NewNames
from relay.store.mailbox.errors import FolderError
from relay.store.mailbox.folder_tree import FolderTree
from relay.store.mailbox.folders import Folders, find_folder, list_folders
from relay.store.mailbox.stored_message import Folder, WellKnown
from tests.support.manual_clock import ManualClock
from tests.support.stores import HOSTNAME, blocking

NAMES = st.sampled_from(["A", "a", "AB", "B", "Ä", "C.D", "e/f", "&", "Inbox", "Sent", "x" * 80])
FOLDERS = st.integers(0, 30)
ROOTS = ["", "inbox", "archive", "sentitems"]
DELETED = "deleteditems"


@dataclass(frozen=True)
class Known:
    """What the model knows of a folder."""

    name: str
    parent: str


class FolderMachine(RuleBasedStateMachine):
    """Each folder has a file named after its id, which must always be where the folder is."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = patch.object(os, "fsync")  # durability is no matter here, and takes the time
        self.disk.start()
        self.root = Path(tempfile.mkdtemp(prefix="relay-folders-"))
        self.home = self.root / "box"
        clock = ManualClock()
        not_asked: Any = None
        self.tree = FolderTree(
            threads=not_asked,
            changes=not_asked,
            quota=not_asked,
            crash=not_asked,
            root=not_asked,
            stripes=not_asked,
            syncs=not_asked,
            clock=clock,
            old_files=not_asked,
            folders=Folders(lambda _: self.home),
            index=Mock(folders=lambda _: ()),
            names=NewNames(clock, Ids(clock), HOSTNAME),
        )
        self.model: dict[str, Known] = {}

    @initialize()
    def begin(self) -> None:
        blocking(self.tree.every)("a@b")

    def teardown(self) -> None:
        self.disk.stop()
        shutil.rmtree(self.root)

    def pick(self, number: int, *, roots: bool = False) -> str:
        known = [*(ROOTS if roots else ()), *self.model]
        return known[number % len(known)]

    def within(self, folder: str) -> set[str]:
        """A folder and all within it."""
        found = {folder}
        while more := {key for key, one in self.model.items() if one.parent in found} - found:
            found |= more
        return found

    def is_running(self, name: str, parent: str, but: str = "") -> bool:
        siblings = [
            one.name for key, one in self.model.items() if one.parent == parent and key != but
        ]
        if parent == "":
            siblings += ["Inbox", "Sent"]  # Sent is the directory of Sent Items
        return any(name.casefold() == one.casefold() for one in siblings)

    def agreed(self, deed, *, refused: bool) -> Folder | None:
        """Do it; a refusal that the model does not foresee may only be for a name that is too long."""
        try:
            done = deed()
        except FolderError as error:
            why = str(error)
        else:
            assert not refused
            return done
        assert refused or "too long" in why, why
        return None

    @rule(name=NAMES, number=FOLDERS)
    def create(self, name: str, number: int) -> None:
        parent = self.pick(number, roots=True)
        refused = self.is_running(name, parent)
        made = self.agreed(
            lambda: blocking(self.tree.create)("a@b", name, parent_id=parent), refused=refused
        )
        if made is not None:
            self.model[made.id] = Known(name, parent)
            (made.path / "cur" / made.id).touch()

    @precondition(lambda self: self.model)
    @rule(name=NAMES, number=FOLDERS)
    def rename(self, name: str, number: int) -> None:
        folder = self.pick(number)
        refused = self.is_running(name, self.model[folder].parent, folder)
        done = self.agreed(lambda: blocking(self.tree.rename)("a@b", folder, name), refused=refused)
        if done is not None:
            self.model[folder] = replace(self.model[folder], name=name)

    @precondition(lambda self: self.model)
    @rule(number=FOLDERS, into=FOLDERS)
    def move(self, number: int, into: int) -> None:
        folder, parent = self.pick(number), self.pick(into, roots=True)
        known = self.model[folder]
        refused = parent != known.parent and (
            self.is_running(known.name, parent) or parent in self.within(folder)
        )
        done = self.agreed(
            lambda: blocking(self.tree.move)("a@b", folder, parent_id=parent), refused=refused
        )
        if done is not None:
            self.model[folder] = replace(known, parent=parent)

    @precondition(lambda self: self.model)
    @rule(number=FOLDERS, permanently=st.booleans())
    def delete(self, number: int, permanently: bool) -> None:
        folder = self.pick(number)
        is_deleted = folder in self.within(DELETED)
        done = self.agreed(
            lambda: blocking(self.tree.delete)("a@b", folder, permanently=permanently) or True,
            refused=False,
        )
        if done is None:
            return
        if permanently or is_deleted:
            for gone in self.within(folder):
                del self.model[gone]
        else:
            self.model[folder] = Known(find_folder(self.home, folder).display_name, DELETED)

    @precondition(lambda self: self.model)
    @rule(number=FOLDERS)
    def another_program_renames(self, number: int) -> None:
        folder = self.pick(number)
        path = find_folder(self.home, folder).path
        fresh = f".By others {len(self.model)}"
        if (self.home / fresh).exists():
            return
        for one in list_folders(self.home):
            name = one.path.name
            if name == path.name or name.startswith(path.name + "."):
                one.path.rename(self.home / (fresh + name[len(path.name) :]))
        self.model[folder] = Known(fresh[1:], "")

    @invariant()
    def every_folder_is_where_the_model_has_it(self) -> None:
        found = [one for one in list_folders(self.home) if one.well_known is None]
        assert {one.id: Known(one.display_name, one.parent_id) for one in found} == self.model
        assert all((one.path / "cur" / one.id).exists() for one in found)
        names = [one.display_name.casefold() for one in found if one.parent_id == ""]
        assert len(names) == len(set(names))

    @invariant()
    def nothing_is_left_and_the_subscriptions_are_the_folders(self) -> None:
        if not self.home.exists():
            return
        left = [one.name for one in self.home.iterdir() if one.name.startswith(("relay-", "sub"))]
        assert left == ["subscriptions"]
        lines = (self.home / "subscriptions").read_text().splitlines()[2:]
        assert len(lines) == len(set(lines))

    @invariant()
    def children_are_counted(self) -> None:
        for one in list_folders(self.home):
            assert one.children == sum(known.parent == one.id for known in self.model.values())
        assert len(list_folders(self.home)) == len(WellKnown) + len(self.model)


FolderMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    deadline=None,
    # every step is on a disk: shrinking would take minutes
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
test_folders_are_what_the_model_says = FolderMachine.TestCase
