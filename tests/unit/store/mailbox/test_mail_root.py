"""The mail root: which one a start takes, and calls while its path leads elsewhere."""

import os
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from relay.base.message.properties import EmailAddress, MessageProperties
from relay.operation.app.state_dir import AlreadyRunningError, lock_file
from relay.store.mailbox import inbox, maildir, messages
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.errors import OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.mail_root import MailRoot, read_id, write_id
from relay.store.mailbox.maildir import MissingRootError
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.query import MessageQuery
from relay.store.mailbox.usage import QuotaLimits, Room
from relay.submission.outbox import ready_submissions as ready
from relay.submission.outbox import submit
from relay.submission.outbox.store import FileStore
from tests.support.manual_clock import ManualClock
from tests.support.stores import ready_submissions, store_on
from tests.support.tables import each_row

ALICE = "alice@example.test"
ID = "06gzg000000000a1"
TO = EmailAddress("bob@example.test")
CONTENT = b"Subject: s\r\n\r\nbody\r\n"


def opened(path: Path, known_id: str = "", *, may_take: bool = True) -> MailRoot:
    root = MailRoot(path, take_lock=lock_file)
    root.open(known_id, may_take=may_take)
    return root


def files(*trees: Path) -> list[str]:
    """Mail and submissions, in whatever tree."""
    return sorted(
        str(path.relative_to(tree.parent))
        for tree in trees
        for path in tree.rglob("*")
        if path.is_file() and path.parent.name in ("new", "cur", "tmp", "ready", "preparing")
    )


def test_a_first_start_makes_the_root_and_its_id(tmp_path: Path) -> None:
    root = opened(tmp_path / "var" / "mail")
    assert root.id == read_id(root.path) != ""
    assert (root.path.stat().st_mode & 0o777, root.trouble) == (0o700, "")
    root.close()


def _nothing(_: Path) -> None: ...


def _root_alone(path: Path) -> None:
    path.mkdir()


def _submissions(path: Path) -> None:
    (path / ".submissions").mkdir(parents=True)


def _half_an_id(path: Path) -> None:
    _submissions(path)
    (path / ".submissions" / ".id.17.part").write_text("12")


def _an_id(path: Path) -> None:
    _submissions(path)
    write_id(path)


@pytest.mark.parametrize("left", [_nothing, _root_alone, _submissions, _half_an_id, _an_id])
def test_a_first_start_that_was_killed_is_repeated(tmp_path: Path, left: Callable[..., None]):
    path = tmp_path / "mail"
    left(path)
    before = read_id(path)
    root = opened(path)
    assert root.id == read_id(path)
    assert before in ("", root.id)
    root.close()


def test_a_root_has_one_owner(tmp_path: Path) -> None:
    first = opened(tmp_path / "mail")
    with pytest.raises(AlreadyRunningError, match=f"mail is in use by process {os.getpid()}$"):
        opened(tmp_path / "mail")
    first.close()
    opened(tmp_path / "mail").close()


def test_a_root_is_missing_until_it_is_opened_again(tmp_path: Path, capsys) -> None:
    root, aside = opened(tmp_path / "mail"), tmp_path / "aside"
    root.check()
    root.path.rename(aside)
    for _ in range(3):
        with pytest.raises(MissingRootError):
            root.check()
    assert not root.reopen()
    (tmp_path / "mail").mkdir()
    assert not root.reopen()
    (tmp_path / "mail").rmdir()
    aside.rename(root.path)
    with pytest.raises(MissingRootError):
        root.check()  # what is remembered of it must go first
    assert root.reopen()
    root.check()
    root.close()


def test_the_lock_of_a_copy_is_taken_when_it_replaces_the_root(tmp_path: Path) -> None:
    root = opened(tmp_path / "mail")
    root.path.rename(tmp_path / "aside")
    shutil.copytree(tmp_path / "aside", root.path)
    with pytest.raises(MissingRootError):
        root.check()
    assert root.reopen()
    for path, is_free in ((root.path, False), (tmp_path / "aside", True)):
        if is_free:
            os.close(lock_file(path / ".submissions" / "lock"))
        else:
            with pytest.raises(AlreadyRunningError):
                lock_file(path / ".submissions" / "lock")
    root.close()


# -- the store


class Disk:
    """A root with one mailbox, and an older copy that takes its place."""

    def __init__(self, root: Path, old: Path) -> None:
        self.root, self.old = root, old
        self.aside = root.with_name("aside")

    def vanish(self) -> None:
        if not self.aside.exists():
            self.root.rename(self.aside)
            shutil.copytree(self.old, self.root)

    def come_back(self) -> None:
        shutil.rmtree(self.root)
        self.aside.rename(self.root)


async def deliver(store: Any, unique: str = "06gzg000000000b1-1") -> DeliveryResult:
    return await store.deliver(ALICE, unique=unique, content=CONTENT)


async def submit_new(store: Any) -> None:
    await store.submissions.submit_new(
        ALICE, MessageProperties(subject="s", to=(TO,)), SendOptions()
    )


async def create(store: Any) -> None:
    await store.messages.create(ALICE, MessageProperties(subject="s"))


async def make_folder(store: Any) -> None:
    await store.folders.create(ALICE, "new one")


ACTS = {one.__name__: one for one in (deliver, submit_new, create, make_folder)}


@pytest.fixture
async def stored(tmp_path: Path):
    clock, root, old = ManualClock(), tmp_path / "mail", tmp_path / "old"
    with store_on(root, clock) as earlier:
        await deliver(earlier, "06gzg000000000a1-1")
        await submit_new(earlier)
    shutil.copytree(root, old)
    with store_on(root, clock) as store:
        yield store, Disk(root, old)


@pytest.mark.parametrize("name", ACTS)
async def test_nothing_is_written_into_another_tree(stored, name: str) -> None:
    """Also not into one with the same id, which was copied when the disk was replaced."""
    store, disk = stored
    disk.vanish()
    before = sorted(disk.root.rglob("*")), files(disk.aside)
    await store.attend_root()
    with pytest.raises(StoreUnavailableError, match="its root is missing"):
        await ACTS[name](store)
    assert (sorted(disk.root.rglob("*")), files(disk.aside)) == before
    disk.come_back()
    await store.attend_root()
    await ACTS[name](store)
    assert len(files(disk.root)) > len(before[1]) or name == "make_folder"


READS: dict[str, Callable[[FileStore], Coroutine[Any, Any, Any]]] = {
    "folders": lambda store: store.folders.every(ALICE),
    "settings": lambda store: store.settings.read(ALICE),
    "message": lambda store: store.messages.get(ALICE, ID),
    "query": lambda store: store.lists.query(ALICE, MessageQuery()),
    "changes": lambda store: store.lists.changes(ALICE),
    "attachments": lambda store: store.attachments.opened(ALICE, ID),
    "upload": lambda store: store.uploads.find("token"),
    "range of an upload": lambda store: store.uploads.begin_range("token", 0),
    "key": lambda store: store.submissions.find_keyed(ALICE, "slot"),
    "large MIME": lambda store: store.arrivals.draft(ALICE, "drafts", expected_bytes=1),
    "files": lambda store: store.stored_files(),
}


@each_row("name", READS)
async def test_nothing_is_read_from_another_tree(stored, name: str) -> None:
    store, disk = stored
    disk.vanish()
    with pytest.raises(StoreUnavailableError, match="its root is missing"):
        await READS[name](store)


async def test_mail_for_a_limited_mailbox_is_accepted_while_the_root_is_missing(tmp_path: Path):
    limits = QuotaLimits(size_bytes=10)
    with store_on(tmp_path / "mail", ManualClock(), limits_of=lambda _: limits) as store:
        assert await store.room(ALICE, 20) is Room.NEVER
        (tmp_path / "mail").rename(tmp_path / "aside")
        assert await store.room(ALICE, 20) is Room.FITS  # it waits in the queue


@pytest.mark.parametrize("step", ["write_file", "place", "fsync"])
@pytest.mark.parametrize("name", ["deliver", "submit_new", "create"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_nothing_of_a_call_is_where_the_path_of_a_root_that_vanished_leads(
    stored, monkeypatch: pytest.MonkeyPatch, name: str, step: str, when: str
) -> None:
    """Nor is a submission in the root that got an error which says that it is not sent."""
    store, disk = stored
    before = files(disk.root)

    def vanishing(act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                disk.vanish()
            try:
                return act(*args, **kwargs)
            finally:
                disk.vanish()

        return acted

    for module in (messages, inbox, submit, ready):
        with suppress(AttributeError):
            monkeypatch.setattr(module, step, vanishing(getattr(module, step)))
    if step == "fsync":
        monkeypatch.setattr(maildir.os, "fsync", vanishing(os.fsync))
    try:
        await ACTS[name](store)
    except StoreUnavailableError:
        there = [one for one in files(disk.root) if "/tmp/" not in one and "preparing" not in one]
        assert there == before
        assert files(disk.aside / ".submissions/ready") == files(disk.root / ".submissions/ready")
    except OutcomeUnknownError:
        assert name == "submit_new"
    else:
        assert not disk.aside.exists(), "it was answered"  # the step does not occur


async def test_a_root_restored_from_a_copy_gets_what_it_lacks(stored) -> None:
    store, disk = stored
    disk.old = disk.root.with_name("back-up")
    shutil.copytree(disk.root, disk.old)
    await deliver(store)
    disk.vanish()
    await store.attend_root()
    assert await deliver(store) is DeliveryResult.DELIVERED
    assert len(list((disk.root / "example.test/alice/new").iterdir())) == 2


@pytest.mark.parametrize("step", ["content", "complete", "fail"])
async def test_a_submission_that_the_root_took_along_is_not_forgotten(stored, monkeypatch, step):
    store, disk = stored
    taking = ready_submissions(store)
    submission = await anext(taking)
    of = maildir.Stripes.of

    def vanishing(stripes: maildir.Stripes, name: str) -> Any:
        disk.root.rename(disk.aside)
        return of(stripes, name)

    monkeypatch.setattr(maildir.Stripes, "of", vanishing)
    steps = {
        "content": lambda: store.ready.content(submission),
        "complete": lambda: store.ready.complete(submission, queue_id="q"),
        "fail": lambda: store.ready.fail(submission, None),
    }
    with pytest.raises(StoreUnavailableError):
        await steps[step]()
    monkeypatch.undo()
    disk.aside.rename(disk.root)
    await store.attend_root()
    assert (len(store.ready.pending), submission.path.exists()) == (1, True)
    await taking.aclose()
