"""The power goes: what had its 202 is there, and no name is there without its content.

On the path: steps 1 and 2 on an ext4 whose disk forgets what was not flushed, in part or all of it.
Holds: docs/design.md 1, "names imply content", on the kernel that runs the test.
Fails: -
Standards: ext4 with a journal.
"""

import asyncio
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.clock import Ids, SystemClock
from relay.journal.crash import CrashPoints
from relay.journal.storelog import StoreLog
from relay.mailbox import FileStore, SendOptions, ordering
from relay.mailbox.types import QuotaLimits
from relay.message.properties import MessageProperties, Person
from tests.support.logged_disk import LoggedDisk

pytestmark = pytest.mark.crash

DISK_BYTES = 24 << 20
CLIENTS, MESSAGES, LOSSES = 3, 40, 24
LENGTHS = (10, 900, 5000, 40_000)
ALICE = "alice@example.test"


@pytest.fixture
def disk(tmp_path) -> Iterator[LoggedDisk]:
    """A disk with a file system on it, which is mounted at `mail` by who wants to."""
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("mkfs.ext4 is not installed")
    with LoggedDisk(tmp_path, size_bytes=DISK_BYTES) as made:
        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(made.file))
        try:
            with mounted(made.file, tmp_path / "trial"):
                pass
        except subprocess.CalledProcessError:
            pytest.skip("no loop device can be mounted here")
        yield made


def run(*words: str) -> None:
    subprocess.run(words, check=True, env={"PATH": "/usr/sbin:/sbin:/usr/bin:/bin"})


@contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    run("mount", "-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        run("umount", str(place))


def files(mail: Path) -> dict[str, bytes]:
    """What each name of a draft or a note has in it."""
    drafts, ready = mail / "example.test/alice/.Drafts/cur", mail / ".submissions/ready"
    found = [path for one in (drafts, ready) if one.is_dir() for path in one.iterdir()]
    return {str(path.relative_to(mail)): path.read_bytes() for path in found}


async def submit(mail: Path, position: Callable[[], int]) -> dict[str, int]:
    """Submit from some clients at once; return when each note's name was promised."""
    clock = SystemClock()
    log = StoreLog(mail / ".submissions/log", role="graph", clock=clock)
    store = FileStore(
        mail, clock=clock, ids=Ids(clock), crash=CrashPoints(), log=log, hostname="h",
        limits_of=lambda _: QuotaLimits(), dead_letter=mail / "dead",
    )  # fmt: skip
    promised: dict[str, int] = {}

    async def client(number: int) -> None:
        chance = random.Random(number)
        for _ in range(MESSAGES):
            body = "0123456789abcde\n" * (chance.choice(LENGTHS) // 16)
            message = MessageProperties(subject="s", body=body, to=(Person("bob@b.test"),))
            note = await store.submit_new(ALICE, message, SendOptions())
            promised[str(note.path.relative_to(mail))] = position()

    await asyncio.gather(*map(client, range(CLIENTS)))
    store.close()
    log.close()
    return promised


def after_loss(disk: LoggedDisk, moment: int, chance: random.Random) -> dict[str, bytes]:
    """What is there when the power went at that moment and the journal was played back."""
    image = disk.file.parents[1] / "image"
    image.write_bytes(disk.after_loss(moment, chance))
    with mounted(image, image.with_name("again")) as mail:
        return files(mail)


@pytest.fixture(autouse=True)
def another_disk() -> None:
    """What a device with the same number was before does not count."""
    ordering.keeps_order.cache_clear()


@pytest.mark.parametrize("in_order", [True, False], ids=["written back", "synced before"])
async def test_what_was_promised_is_there_and_no_name_without_content(
    disk, tmp_path, monkeypatch, in_order
):
    if not in_order:
        monkeypatch.setattr(ordering, "keeps_order", lambda _: False)
    with mounted(disk.file, tmp_path / "mail") as mail:
        assert ordering.keeps_order(mail.stat().st_dev) is in_order
        begun = disk.position()
        promised = await submit(mail, disk.position)
        ended, written = disk.position(), files(mail)
    chance = random.Random(2)
    moments = [chance.randrange(begun, ended) for _ in range(LOSSES // 2)]
    moments += chance.sample(sorted(promised.values()), LOSSES // 2)
    for moment in moments:
        there = after_loss(disk, moment, chance)
        assert [name for name, content in there.items() if content != written[name]] == []
        assert {name for name, when in promised.items() if when <= moment} <= there.keys()


async def test_without_order_names_are_there_without_content(disk, tmp_path, monkeypatch):
    """That the test can fail: with neither write-back nor fsync in front of the names."""
    monkeypatch.setattr(ordering, "keeps_order", lambda _: True)
    monkeypatch.setattr(ordering, "_write_back", lambda _: None)
    with mounted(disk.file, tmp_path / "mail") as mail:
        begun = disk.position()
        await submit(mail, disk.position)
        ended, written = disk.position(), files(mail)
    chance = random.Random(3)
    moments = (chance.randrange(begun, ended) for _ in range(10 * LOSSES))  # until it is seen
    found = (after_loss(disk, moment, chance) for moment in moments)
    assert any(content != written[name] for there in found for name, content in there.items())
