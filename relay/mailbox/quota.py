"""Whether a mailbox has room for more, by size and by number, and room kept for what is on its way.

On the path: asked before a draft is written (1), at RCPT, and before a local delivery (6).
Holds: what is written at one moment by several threads fits together, not only each for itself.
Notes do not count, and step 4 only moves: it is never refused.
Fails: MailboxFullError; what the index fails with.
Standards: RFC 3463 X.2.2 (mailbox full).
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relay.mailbox.maildir import Stripes
from relay.mailbox.types import (
    MailboxFullError,
    MailboxTooSmallError,
    QuotaLimits,
    Room,
    Usage,
)

_REPORTS_SIZE_BYTES = 10 * 1024 * 1024
_REPORTS_MESSAGES = 100
_REPORTS_SHARE = 10  # a tenth of the quota, where that is more


class Used(Protocol):
    """What a mailbox holds, and which base names are counted in it: the index's Used."""

    @property
    def usage(self) -> Usage:
        """All folders together."""
        ...

    @property
    def seen(self) -> frozenset[str]:
        """Of the names that were asked for."""
        ...


class Counts(Protocol):
    """Who counts: relay.mailbox.index.Indexes."""

    def usage(self, mailbox: Path, *, besides: Collection[str] = ()) -> Used:
        """What the mailbox holds now."""
        ...


@dataclass(frozen=True, slots=True)
class _Reserved:
    size_bytes: int
    messages: int


class Quota:
    """Asks the counts of mailboxes whose accounts have a quota; the others cost nothing."""

    def __init__(self, limits_of: Callable[[str], QuotaLimits], counts: Counts) -> None:
        self._limits_of = limits_of
        self._counts = counts
        self._lock = threading.Lock()
        self._stripes = Stripes(64)
        self._reserved: dict[Path, dict[str, _Reserved]] = {}

    def is_limited(self, account: str) -> bool:
        """Whether the account has a quota at all. Does not block."""
        return self._limits_of(account) != _UNLIMITED

    def room(self, account: str, mailbox: Path, size_bytes: int) -> Room:
        """Whether a message of `size_bytes` fits now."""
        limits = self._limits_of(account)
        if limits == _UNLIMITED:
            return Room.FITS
        return _found(limits, self._used(mailbox), _Reserved(size_bytes, 1)).room

    def room_for(
        self,
        account: str,
        mailbox: Path,
        size_bytes: int,
        *,
        stem: str,
        messages: int = 1,
        is_report: bool = False,
    ) -> AbstractContextManager[None]:
        """Keep room for the file with the base name `stem` (without `,S=`) while it is written.

        `is_report` may use a bounded room over the quota. Raises MailboxFullError, on entry.
        """
        limits = self._limits_of(account)
        if limits == _UNLIMITED or (size_bytes <= 0 and not messages):
            return nullcontext()
        if is_report:
            limits = _for_reports(limits)
        wanted = _Reserved(size_bytes, messages)
        return self._keeping(account, mailbox, limits, stem=stem, wanted=wanted)

    @contextmanager
    def _keeping(
        self, account: str, mailbox: Path, limits: QuotaLimits, *, stem: str, wanted: _Reserved
    ) -> Iterator[None]:
        with self._stripes.of(str(mailbox)):  # who asks next sees what is reserved here
            found = _found(limits, self._used(mailbox), wanted)
            if found.room is not Room.FITS:
                raise _refusal(account, found)
            with self._lock:
                self._reserved.setdefault(mailbox, {})[stem] = wanted
        try:
            yield
        finally:
            with self._lock:
                del self._reserved[mailbox][stem]
                if not self._reserved[mailbox]:
                    del self._reserved[mailbox]

    def _used(self, mailbox: Path) -> Usage:
        """What is there and what is being written: a file that is counted already counts once."""
        with self._lock:
            reserved = dict(self._reserved.get(mailbox, {}))
        if not mailbox.is_dir():
            return Usage(0, 0)
        used = self._counts.usage(mailbox, besides=reserved.keys())
        coming = [one for stem, one in reserved.items() if stem not in used.seen]
        return Usage(
            used.usage.size_bytes + sum(one.size_bytes for one in coming),
            used.usage.messages + sum(one.messages for one in coming),
        )


_UNLIMITED = QuotaLimits()


@dataclass(frozen=True, slots=True)
class _Found:
    """Whether there is room, and if not, which `limit` is in the way of how much more."""

    room: Room
    more: str = ""
    limit: str = ""


def _found(limits: QuotaLimits, used: Usage, wanted: _Reserved) -> _Found:
    for limit, there, more, unit in (
        (limits.size_bytes, used.size_bytes, wanted.size_bytes, "byte"),
        (limits.messages, used.messages, wanted.messages, "message"),
    ):
        if limit is not None and there + more > limit:
            room = Room.NEVER if more > limit else Room.FULL
            return _Found(room, _counted(more, unit), _counted(limit, unit))
    return _Found(Room.FITS)


def _for_reports(limits: QuotaLimits) -> QuotaLimits:
    size_bytes, messages = limits.size_bytes, limits.messages
    if size_bytes is not None:
        size_bytes += max(size_bytes // _REPORTS_SHARE, _REPORTS_SIZE_BYTES)
    if messages is not None:
        messages += max(messages // _REPORTS_SHARE, _REPORTS_MESSAGES)
    return QuotaLimits(size_bytes, messages)


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


def _refusal(account: str, found: _Found) -> MailboxFullError:
    room = f"room for {found.more} more under its quota of {found.limit}."
    if found.room is Room.NEVER:
        return MailboxTooSmallError(f"The mailbox {account} is too small: there is never {room}")
    return MailboxFullError(f"The mailbox {account} is full: there is no {room}")
