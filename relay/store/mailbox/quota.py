"""Check and reserve the quota of a mailbox: its total size and its number of messages.

The quota is checked before a draft is written, at RCPT, and before a local delivery (RFC 3463
X.2.2: mailbox full). Files that several threads write at the same time fit together, because each
thread reserves its room first. Pending submissions do not count. Filing the original in Sent Items
only renames a file and is never rejected.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from relay.base.phrases import counted
from relay.store.mailbox.errors import MailboxFullError, MailboxTooSmallError
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.maildir import Stripes
from relay.store.mailbox.usage import QuotaLimits, Room, Usage

_REPORTS_SIZE_BYTES = 10 * 1024 * 1024
_REPORTS_MESSAGES = 100
_REPORTS_SHARE = 10  # reports may use a tenth of the quota more, if that is more than the above


class Quota:
    """Checks the quota of accounts that have one. A check for other accounts reads nothing."""

    def __init__(self, limits_of: Callable[[str], QuotaLimits], index: Indexes) -> None:
        self._limits_of = limits_of
        self._index = index
        self._lock = threading.Lock()
        self._stripes = Stripes(64)
        self._reserved: dict[Path, dict[str, Usage]] = {}

    def is_limited(self, account: str) -> bool:
        """Return whether the account has a quota. Does not block."""
        return self._limits_of(account) != _UNLIMITED

    def room(self, account: str, mailbox: Path, size_bytes: int) -> Room:
        """Return whether a message of `size_bytes` fits now."""
        limits = self._limits_of(account)
        if limits == _UNLIMITED:
            return Room.FITS
        return _check(limits, self._used(mailbox), Usage(size_bytes, 1)).room

    @contextmanager
    def room_for(
        self,
        account: str,
        mailbox: Path,
        size_bytes: int,
        *,
        base_name: str,
        messages: int = 1,
        is_report: bool = False,
    ) -> Iterator[None]:
        """Reserve room for the file `base_name` (without `,S=`) while it is written.

        With `is_report` a bounded room above the quota may be used. Raises MailboxFullError on
        entry.
        """
        limits = self._limits_of(account)
        if limits == _UNLIMITED or (size_bytes <= 0 and not messages):
            yield
            return
        if is_report:
            limits = _limits_for_reports(limits)
        needed = Usage(size_bytes, messages)
        with self._stripes.of(str(mailbox)):  # the next check includes what is reserved here
            checked = _check(limits, self._used(mailbox), needed)
            if checked.room is not Room.FITS:
                raise _full_error(account, checked)
            with self._lock:
                self._reserved.setdefault(mailbox, {})[base_name] = needed
        try:
            yield
        finally:
            with self._lock:
                del self._reserved[mailbox][base_name]
                if not self._reserved[mailbox]:
                    del self._reserved[mailbox]

    def _used(self, mailbox: Path) -> Usage:
        """Return what is stored and reserved; a stored file with a reservation counts once."""
        with self._lock:
            reserved = dict(self._reserved.get(mailbox, {}))
        if not mailbox.is_dir():
            return Usage(0, 0)
        used = self._index.usage(mailbox, base_names=reserved.keys())
        missing = [usage for base_name, usage in reserved.items() if base_name not in used.counted]
        return Usage(
            used.usage.size_bytes + sum(usage.size_bytes for usage in missing),
            used.usage.messages + sum(usage.messages for usage in missing),
        )


_UNLIMITED = QuotaLimits()


class _QuotaCheck(Struct, frozen=True):
    """Whether there is room. If not, `limit` is the limit that `more` would exceed."""

    room: Room
    more: str = ""
    limit: str = ""


def _check(limits: QuotaLimits, used: Usage, needed: Usage) -> _QuotaCheck:
    for limit, stored, more, unit in (
        (limits.size_bytes, used.size_bytes, needed.size_bytes, "byte"),
        (limits.messages, used.messages, needed.messages, "message"),
    ):
        if limit is not None and stored + more > limit:
            room = Room.NEVER if more > limit else Room.FULL
            return _QuotaCheck(room, counted(more, unit), counted(limit, unit))
    return _QuotaCheck(Room.FITS)


def _limits_for_reports(limits: QuotaLimits) -> QuotaLimits:
    size_bytes, messages = limits.size_bytes, limits.messages
    if size_bytes is not None:
        size_bytes += max(size_bytes // _REPORTS_SHARE, _REPORTS_SIZE_BYTES)
    if messages is not None:
        messages += max(messages // _REPORTS_SHARE, _REPORTS_MESSAGES)
    return QuotaLimits(size_bytes, messages)


def _full_error(account: str, checked: _QuotaCheck) -> MailboxFullError:
    room = f"room for {checked.more} more under its quota of {checked.limit}."
    if checked.room is Room.NEVER:
        return MailboxTooSmallError(f"The mailbox {account} is too small: there is never {room}")
    return MailboxFullError(f"The mailbox {account} is full: there is no {room}")
