"""A Maildir whose files a test writes, and indexes on it."""

from pathlib import Path

from relay.base.clock import SystemClock
from relay.store.mailbox.index.indexes import Indexes
from tests.support.manual_clock import ManualClock


class Mailbox:
    """A Maildir, and indexes on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock(now_us=SystemClock().time_us())
        self.opened: list[Indexes] = []
        self.count = 0
        for folder in ("", ".Drafts", ".Archive"):
            for name in ("tmp", "new", "cur"):
                (path / folder / name).mkdir(parents=True)

    def index(self, **options) -> Indexes:
        made = Indexes(self.clock, **options)
        self.opened.append(made)
        return made

    def add(self, folder: str = "", content: bytes = b"Subject: house\r\n\r\nx") -> Path:
        self.count += 1
        path = self.path / folder / "cur" / f"{1_700_000_000 + self.count}.M{self.count}.h:2,"
        path.write_bytes(content)
        return path

    def add_draft(self) -> Path:
        path = self.path / ".Drafts/cur/1000000000.R0123456789abcdef_1.h:2,DS"
        path.write_bytes(b"Subject: house\r\n\r\n")
        return path
