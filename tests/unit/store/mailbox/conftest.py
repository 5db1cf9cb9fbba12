"""A store in a temporary folder, with a clock that stands still."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.base.message.properties import EmailAddress, MessageProperties
from relay.store.mailbox.usage import QuotaLimits
from relay.submission.outbox.store import FileStore
from tests.support.manual_clock import ManualClock
from tests.support.stores import open_log, open_store

ALICE = "alice@example.test"


@dataclass
class Place:
    """A root, and stores on it: a second one is the process after a crash."""

    root: Path
    clock: ManualClock = field(default_factory=ManualClock)
    quotas: dict[str, int] = field(default_factory=dict)
    message_quotas: dict[str, int] = field(default_factory=dict)
    stores: list[FileStore] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = open_log(self.root, self.clock)

    def store(self) -> FileStore:
        made = open_store(self.root, self.clock, log=self.log, limits_of=self.limits_of)
        self.stores.append(made)
        return made

    def limits_of(self, account: str) -> QuotaLimits:
        return QuotaLimits(self.quotas.get(account), self.message_quotas.get(account))

    def files(self, folder: str, account: str = ALICE) -> list[Path]:
        """Messages on disk; `folder` as ".Drafts", "" is the Inbox."""
        local_part, _, domain = account.partition("@")
        directory = self.root / domain / local_part / folder
        return sorted(path for name in ("new", "cur") for path in directory.glob(f"{name}/*"))

    def submissions(self) -> list[Path]:
        directory = self.root / ".submissions" / "ready"
        return sorted(directory.iterdir()) if directory.exists() else []

    def left_over(self) -> list[Path]:
        """Files in any tmp/ or in preparing/."""
        found = [*self.root.rglob("tmp/*"), *self.root.rglob("preparing/*")]
        return [path for path in found if path.is_file()]


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    made = Place(tmp_path / "mail")
    yield made
    for store in made.stores:
        store.close()
    made.log.close()


@pytest.fixture
def store(place) -> FileStore:
    return place.store()


@pytest.fixture
async def home(place, store) -> Path:
    """Alice's mailbox, with its folders."""
    await store.folders.every(ALICE)
    return place.root / "example.test/alice"


@pytest.fixture
def draft() -> Callable[..., MessageProperties]:
    def make(**more) -> MessageProperties:
        return MessageProperties(
            **({"subject": "s", "body": "b", "to": (EmailAddress("bob@b.test"),)} | more)
        )

    return make
