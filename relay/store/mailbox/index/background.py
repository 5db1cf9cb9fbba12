"""Read large mailboxes into their indexes in the background, before a query needs them.

The store runs one IndexBuilder: at the start over all mailboxes, later over those that get mail. It
reads one mailbox at a time in one thread, a few messages at once, and pauses as long as it worked.
It waits while the store has other work, under pressure, and at a stop. A query does not wait for
it: it reads the rest itself, and the builder continues after it. Small mailboxes are left to the
first query. Only the mailboxes' paths and counts are in memory. An error ends one mailbox's turn,
until more mail arrives.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from pathlib import Path

from relay.base.clock import Clock
from relay.base.observe.logs import get_logger
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.folders import Folders, message_directories
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.index.update import names_on_disk
from relay.store.mailbox.mail_root import MailRoot
from relay.store.mailbox.mailbox_list import mailbox_directories
from relay.store.mailbox.threads import ThreadPool

LARGE_MESSAGES = 1000  # a query reads fewer at once
_MESSAGES_AT_ONCE = 50
_PAUSE_S = 0.02
_BUSY_PAUSE_S = 0.25
_MAILBOXES_COUNTED = 10_000

_log = get_logger("mailbox")


@dataclass(kw_only=True, eq=False, repr=False)
class IndexBuilder:
    """Builds the indexes of large mailboxes. Only note_delivery() may be called in any thread."""

    root: MailRoot  # whether it is there
    folders: Folders  # where each mailbox is
    index: Indexes  # reads them
    clock: Clock  # for pauses
    may_work: Callable[[], bool]  # whether the store has nothing else to do

    def __post_init__(self) -> None:
        self._thread = ThreadPool(1, "mailbox-index", check_root=self.root.check)
        self._waiting: dict[Path, None] = {}  # mailboxes, in their order
        self._delivered: Counter[str] = Counter()  # by account; a race only miscounts
        self._loop: asyncio.AbstractEventLoop | None = None  # of run()
        self._is_woken = asyncio.Event()

    def note_delivery(self, account: str) -> None:
        """Build a mailbox's index when it gets its first message since the start, and each 1000th
        later.

        A mailbox that the first message creates is not built.
        """
        count = self._delivered[account]
        if not count and len(self._delivered) > _MAILBOXES_COUNTED:
            self._delivered.clear()  # some mailboxes are then examined earlier
        self._delivered[account] = count + 1
        is_due = count % LARGE_MESSAGES == 0 and (count or not self.folders.is_fresh(account))
        if is_due and self._loop is not None:
            self._loop.call_soon_threadsafe(self._look_at, self.folders.directory(account))

    def _look_at(self, mailbox: Path) -> None:
        self._waiting[mailbox] = None
        self._is_woken.set()

    async def run(self, is_calm: Callable[[], bool] = lambda: True) -> None:
        """Build until cancelled, while `is_calm` returns True; first all mailboxes that exist."""
        self._loop = asyncio.get_running_loop()
        try:
            self._waiting |= dict.fromkeys(await self._thread.run(_mailboxes, self.root.path))
        except StoreError as error:
            _log.info("index not built", mailbox=str(self.root.path), reason=str(error))
        while True:
            while self._waiting:
                mailbox = next(iter(self._waiting))
                del self._waiting[mailbox]
                try:
                    await self._build(mailbox, is_calm)
                except StoreError as error:
                    _log.info("index not built", mailbox=str(mailbox), reason=str(error))
                except Exception:  # noqa: BLE001 - the other mailboxes are built
                    _log.exception("index not built", mailbox=str(mailbox))
            self._is_woken.clear()
            await self._is_woken.wait()

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.close()

    async def _build(self, mailbox: Path, is_calm: Callable[[], bool]) -> None:
        if not await self._thread.run(_is_large, mailbox):
            return
        began_s, count = self.clock.real_s(), 0
        while True:
            while not (is_calm() and self.may_work()):
                await self.clock.sleep(_BUSY_PAUSE_S, slack_s=inf)  # sleeps: there is no event
            start_s = self.clock.real_s()
            if not await self._thread.run(self.index.read_some, mailbox, _MESSAGES_AT_ONCE):
                break
            count += 1
            pause_s = max(_PAUSE_S, self.clock.real_s() - start_s)
            await asyncio.sleep(pause_s)  # real time: others have the processor
        if count:
            seconds = round(self.clock.real_s() - began_s, 1)
            _log.info("index built", mailbox=str(mailbox), seconds=seconds)


def _mailboxes(root: Path) -> list[Path]:
    return [path for path in mailbox_directories(root) if (path / "cur").is_dir()]


def _is_large(mailbox: Path) -> bool:
    """Return whether a mailbox has many messages. Files beyond that number are not listed."""
    files = chain.from_iterable(map(names_on_disk, message_directories(mailbox)))
    return sum(1 for _ in islice(files, LARGE_MESSAGES)) == LARGE_MESSAGES
