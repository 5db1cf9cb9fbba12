"""Power loss: accepted data exists afterwards, and no name exists without its content.

Tests docs/design.md 1, "names imply content", on the kernel that runs the test, with ext4 and XFS.
One fsync commits every directory there; for other file systems tests/crash/test_each_sync.py shows
that each directory has its own.
"""

import asyncio
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats.draft import read_properties
from relay.store.mailbox import maildir
from relay.store.mailbox.errors import OutcomeUnknownError, StoreUnavailableError
from relay.store.mailbox.message_file import delivered_base_name
from relay.store.mailbox.pending_submission import SendOptions
from relay.store.mailbox.stored_message import MessageChange
from relay.store.spool.queue_commands import Operation
from relay.submission.outbox.store import FileStore
from tests.support.logged_disk import LoggedDisk
from tests.support.long_tests import sampled
from tests.support.stores import HOSTNAME, store_on

pytestmark = pytest.mark.crash

PROGRAMS = "/usr/sbin:/sbin:/usr/bin:/bin"
# How to make each file system that keeps the order, and the size of its disk. XFS is made as small as its
# own tests have it; it needs xfsprogs 5.19.
FILE_SYSTEMS = {
    "ext4": (24 << 20, ("-F", "-E", "nodiscard")),
    "xfs": (64 << 20, ("-f", "-K", "--unsupported")),
}
CLIENTS, MESSAGES, LOSSES = 3, 40, 24
SUBMITTERS, ACCEPTED = 16, 60
LENGTHS = (10, 900, 5000, 40_000)
ALICE = "alice@example.test"


@pytest.fixture(params=FILE_SYSTEMS)
def disk(request, tmp_path) -> Iterator[LoggedDisk]:
    """A disk with a file system on it, which is mounted at `mail` by who wants to."""
    size_bytes, options = FILE_SYSTEMS[request.param]
    program = f"mkfs.{request.param}"
    if shutil.which(program, path=PROGRAMS) is None:
        pytest.skip(f"{program} is not installed")
    with LoggedDisk(tmp_path, size_bytes=size_bytes) as made:
        run(program, "-q", *options, str(made.file))
        try:
            with mounted(made.file, tmp_path / "trial"):
                pass
        except subprocess.CalledProcessError:
            pytest.skip("no loop device can be mounted here")
        yield made


def run(*words: str) -> None:
    subprocess.run(words, check=True, env={"PATH": PROGRAMS})


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


ALICES = "example.test/alice"
DIRECTORIES = (
    *(".submissions/ready", ".submissions/deferred"),
    *(f"{ALICES}/{name}" for name in (".Drafts/cur", ".Sent/cur", ".Trash/cur", "new")),
)


def files(mail: Path) -> dict[str, bytes]:
    """What each name of a draft, a pending submission, or a message that was filed or delivered has in it."""
    places = [mail / name for name in DIRECTORIES if (mail / name).is_dir()]
    found = [path for place in places for path in place.iterdir()]
    return {str(path.relative_to(mail)): path.read_bytes() for path in found}


@dataclass
class History:
    """What was promised on a disk: which name from which position on, and until which."""

    mail: Path
    position: Callable[[], int]
    begun: int = 0
    ended: int = 0
    content: dict[str, bytes] = field(default_factory=dict)
    promised: dict[str, list[int]] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)  # what may be there instead of a name

    def promise(self, path: Path) -> str:
        name = str(path.relative_to(self.mail))
        self.promised[name] = [self.position(), sys.maxsize]
        self.content[name] = path.read_bytes()
        return name

    def end(self, name: str) -> None:
        """Say that the name is promised no more: what is begun now takes it away."""
        self.promised[name][1] = self.position()

    def missing(self, moment: int, there: Collection[str]) -> set[str]:
        """What was promised at a moment and is not there, nor what was there before it."""
        return {
            name
            for name, (since, until) in self.promised.items()
            if since <= moment < until
            and name not in there
            and not (name in self.before and self.before[name].issubset(there))
        }


async def one_client(store: FileStore, history: History, number: int) -> None:
    """Submit, file, deliver, change and remove, one after the other."""
    rng, home = random.Random(number), history.mail / ALICES
    for message_number in range(MESSAGES):
        body = "0123456789abcde\n" * (rng.choice(LENGTHS) // 16)
        message = MessageProperties(subject="s", body=body, to=(EmailAddress("bob@b.test"),))
        due_us = 2**52 * (message_number % 4 == 3)
        pending = await store.submissions.submit_new(
            ALICE, message, SendOptions(scheduled_us=due_us)
        )
        [draft] = (home / ".Drafts/cur").glob(f"{pending.base_name}*")
        names = [history.promise(pending.path), history.promise(draft)]
        if message_number % 4 == 1:
            for name in names:
                history.end(name)
            await store.ready.complete(pending, queue_id="q")
            [filed] = (home / ".Sent/cur").glob(f"{pending.base_name}*")
            history.before[history.promise(filed)] = set(names)  # step 4 is repeated then
        elif message_number % 4 == 3:
            for name in names:
                history.end(name)
            await store.messages.delete(ALICE, pending.draft_id)
            [removed] = (home / ".Trash/cur").glob(f"{pending.base_name}*")
            history.promise(removed)
        unique = f"{number}.{message_number}"
        letter = f"Subject: {unique}\r\n\r\n{body}".encode()
        await store.deliver(ALICE, unique=unique, content=letter)
        base_name = delivered_base_name(unique, hostname=HOSTNAME)
        [delivered] = (home / "new").glob(f"{base_name}*")
        history.promise(delivered)


async def used(
    mail: Path, position: Callable[[], int], crash: CrashPoints | None = None
) -> History:
    """Let some clients work at once; return what was promised to them."""
    history = History(mail, position)
    with store_on(mail, SystemClock(), crash=crash) as store:
        history.begun = position()
        await asyncio.gather(*(one_client(store, history, number) for number in range(CLIENTS)))
        history.ended = position()
    return history


def after_loss(disk: LoggedDisk, moment: int, rng: random.Random) -> dict[str, bytes]:
    """What is there when the power went at that moment and the journal was played back."""
    image = disk.file.parents[1] / "image"
    image.unlink(missing_ok=True)  # a loop device that is still open would show the old content
    image.write_bytes(disk.after_loss(moment, rng))
    with mounted(image, image.with_name("again")) as mail:
        return files(mail)


@pytest.fixture(autouse=True)
def another_disk() -> None:
    """What a device with the same number was before does not count."""
    maildir.keeps_order.cache_clear()


@pytest.mark.parametrize("in_order", sampled([True, False]), ids=["written back", "synced before"])
async def test_accepted_data_survives_power_loss_and_no_name_lacks_content(
    disk, tmp_path, monkeypatch, in_order
):
    if not in_order:
        monkeypatch.setattr(maildir, "keeps_order", lambda _: False)
    with mounted(disk.file, tmp_path / "mail") as mail:
        assert maildir.keeps_order(mail.stat().st_dev) is in_order
        history = await used(mail, disk.position)
    rng = random.Random(2)
    moments = [rng.randrange(history.begun, history.ended) for _ in range(LOSSES // 2)]
    since = sorted(since for since, _ in history.promised.values())
    moments += rng.sample(since, LOSSES // 2)
    for moment in moments:
        there = after_loss(disk, moment, rng)
        known = there.keys() & history.content.keys()
        assert [name for name in known if there[name] != history.content[name]] == []
        assert history.missing(moment, there) == set()


class SyncsAnotherFile(CrashPoints):
    """At the moment at which a pending submission has its name and nothing is synced, another file is synced."""

    def __init__(self, other: Path, disk: LoggedDisk) -> None:
        super().__init__()
        self.moments: list[int] = []
        self._other, self._disk = other, disk

    def reached(self, point: CrashPoint) -> None:
        if point is CrashPoint.SUBMISSION_READY:
            with self._other.open("ab") as file:
                file.write(b".")
                file.flush()
                os.fsync(file.fileno())
            self.moments.append(self._disk.position())


async def test_without_ordering_names_lack_content(disk, tmp_path, monkeypatch):
    """That the test can fail: with neither write-back nor fsync in front of the names."""
    monkeypatch.setattr(maildir, "keeps_order", lambda _: True)
    monkeypatch.setattr(maildir, "_write_back", lambda _: None)
    with mounted(disk.file, tmp_path / "mail") as mail:
        crash = SyncsAnotherFile(mail / "other", disk)
        content = (await used(mail, disk.position, crash)).content
    rng = random.Random(3)
    found = (after_loss(disk, moment, rng) for moment in crash.moments)
    assert any(
        octets != content[name]
        for there in found
        for name, octets in there.items()
        if name in content
    )


@pytest.mark.parametrize("in_order", sampled([False, True]), ids=["synced before", "written back"])
async def test_no_submission_rejected_by_a_failing_disk_is_sent(
    disk, tmp_path, monkeypatch, in_order
):
    """The power goes while clients submit: the disk fails first, and the relay still answers."""
    if not in_order:
        monkeypatch.setattr(maildir, "keeps_order", lambda _: False)
    answers: dict[str, list[str]] = {"accepted": [], "refused": [], "unknown": []}
    accepted_before: set[str] = set()

    async def client(store: FileStore, number: int) -> None:
        for message_number in itertools.count():
            subject = f"{number}.{message_number}"
            answer = await answer_to(store, subject)
            answers[answer].append(subject)
            if len(answers["accepted"]) == ACCEPTED and not accepted_before:
                accepted_before.update(answers["accepted"])
                disk.break_down()
            if answer != "accepted":
                return

    with mounted(disk.file, tmp_path / "mail") as mail, store_on(mail, SystemClock()) as store:
        await asyncio.gather(*(client(store, number) for number in range(SUBMITTERS)))
    rng = random.Random(4)
    for _ in range(LOSSES):
        there = after_loss(disk, disk.position(), rng).items()
        ready = [octets for name, octets in there if "/ready/" in name]
        subjects = {read_properties(octets).subject for octets in ready}
        assert subjects & {*answers["refused"]} == set()
        assert accepted_before - subjects == set()


def message_of(subject: str) -> MessageProperties:
    return MessageProperties(subject=subject, body="b", to=(EmailAddress("bob@b.test"),))


async def answer_to(store: FileStore, subject: str) -> str:
    try:
        await store.submissions.submit_new(ALICE, message_of(subject), SendOptions())
    except OutcomeUnknownError:
        return "unknown"
    except StoreUnavailableError:
        return "refused"
    return "accepted"


@pytest.mark.parametrize("change", ["PATCH", "DELETE", "cancel", "removal"])
async def test_no_change_that_is_on_a_failing_disk_is_rejected(disk, tmp_path, change):
    """Another file is synced, and the change with it; then the disk fails, also for what takes it back."""
    with mounted(disk.file, tmp_path / "mail") as mail, store_on(mail, SystemClock()) as store:
        scheduled, messages = SendOptions(scheduled_us=2**52), store.messages
        send = await store.submissions.submit_new(ALICE, message_of("old"), scheduled)
        other = await messages.create(ALICE, message_of("other"))
        ways = {
            "PATCH": partial(
                messages.update, ALICE, send.draft_id, MessageChange(message_of("new"))
            ),
            "DELETE": partial(messages.delete, ALICE, send.draft_id),
            "cancel": partial(
                store.ready.change_waiting, send.submission_id, Operation.CANCEL, who="operator"
            ),
            "removal": partial(messages.delete, ALICE, other.id, permanently=True),
        }

        def fail(directory: str) -> None:
            if not directory.endswith("preparing") and not (mail / "other").exists():
                maildir.write_synced(mail / "other", b".")
                disk.break_down()
                Path(directory, ".later").touch()  # is written with it

        messages.syncs.on_sync = fail
        with pytest.raises(OutcomeUnknownError):
            await ways[change]()
