"""Local delivery: write a message to new/ of a folder exactly once, however often it is repeated.

delivery's local entries (step 6) and pickup's reports are delivered here. The same `unique` gives
the same id and name, and an id that is in any folder of the mailbox counts as delivered. Raises
MailboxFullError and OSError; after an error nothing is left.

Maildir's delivery: tmp, link, fsync of file and directory. docs/design.md 1.
"""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import Content, edit_header, size_of
from relay.formats.headers import with_relay_id
from relay.store.mailbox.folders import list_folders, well_known_path
from relay.store.mailbox.maildir import (
    Stripes,
    finish_content,
    list_names,
    place,
    remove,
    write_file,
)
from relay.store.mailbox.message_file import (
    delivered_base_name,
    delivered_id,
    is_delivered_id,
    parse_name,
)
from relay.store.mailbox.store_part import StorePart
from relay.store.mailbox.types import DeliveryResult, WellKnown

_IDS_REMEMBERED = 500_000
_MAILBOX_WEIGHT = 10  # a mailbox takes as much memory as so many ids


class DeliveredIds:
    """The ids of delivered messages. Each mailbox is listed once per process.

    That is sufficient because only one process delivers at a time: deliveries of an earlier process
    precede the listing.
    """

    def __init__(self, limit: int = _IDS_REMEMBERED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._mailboxes: dict[Path, set[str]] = {}
        self._count = 0

    def has(self, mailbox: Path, message_id: str) -> bool:
        """Whether the id is, or was, in any folder of the mailbox."""
        with self._lock:
            known = self._mailboxes.get(mailbox)
        if known is None:
            known = self._remember(mailbox, _listed(mailbox))
        return message_id in known

    def add(self, mailbox: Path, message_id: str) -> None:
        """Add a delivered id."""
        with self._lock:
            known = self._mailboxes.get(mailbox)
            if known is not None and message_id not in known:
                known.add(message_id)
                self._count += 1

    def forget(self) -> None:
        """Forget all ids; the mailboxes are listed again."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._mailboxes.clear()
        self._count = 0

    def _remember(self, mailbox: Path, listed: set[str]) -> set[str]:
        with self._lock:
            if self._count + len(listed) + _MAILBOX_WEIGHT > self._limit:
                self._forget()
            if mailbox not in self._mailboxes:
                self._count += _MAILBOX_WEIGHT
            known = self._mailboxes.setdefault(mailbox, set())
            self._count += len(listed - known)
            known |= listed  # another thread may also have listed it, and added ids
            return known


@dataclass(kw_only=True, eq=False, repr=False)
class Inbox(StorePart):
    """Delivers to mailboxes. Blocking: the store calls it in its threads."""

    # Its own: the delivery of a report already holds a shared one.
    _stripes: Stripes = field(default_factory=Stripes, init=False)
    _delivered: DeliveredIds = field(default_factory=DeliveredIds, init=False)

    def deliver(
        self,
        account: str,
        *,
        unique: str,
        content: Content,
        folder: WellKnown = WellKnown.INBOX,
        over_quota: bool = False,
        is_repeat: bool = False,
    ) -> DeliveryResult:
        """See DeliveryStore.deliver()."""
        is_inbox = folder is WellKnown.INBOX  # the others are made at their first use
        mailbox = self.folders.inbox(account) if is_inbox else self.folders.mailbox(account)
        if not is_inbox:
            self.folders.recreate(mailbox, folder)
        new = well_known_path(mailbox, folder) / "new"
        self.old_files.clean(mailbox)
        message_id = delivered_id(unique)
        content = edit_header(content, lambda header: with_relay_id(header, message_id))
        base_name = delivered_base_name(unique, hostname=self.names.hostname)
        temporary = mailbox / "tmp" / base_name
        with self._stripes.of(message_id):
            if self._is_there(mailbox, message_id, is_repeat=is_repeat):
                # A crash may have come after the link.
                remove(temporary)
                self.syncs.sync(new)
                return DeliveryResult.ALREADY_THERE
            quota, size_bytes = self.quota, size_of(content)
            with quota.room_for(
                account, mailbox, size_bytes, base_name=base_name, is_report=over_quota
            ):
                try:
                    self._write(mailbox / "tmp" / base_name, new, content)
                except FileExistsError:
                    return DeliveryResult.ALREADY_THERE
            self._delivered.add(mailbox, message_id)
        self.crash.reached(CrashPoint.DELIVERED_LOCALLY)
        return DeliveryResult.DELIVERED

    def forget(self) -> None:
        """Forget which messages are in the mailboxes."""
        self._delivered.forget()

    def _is_there(self, mailbox: Path, message_id: str, *, is_repeat: bool) -> bool:
        """Whether the message was delivered: by its name, for a repeat also by its content.

        A mail client may have renamed the file since the previous attempt.
        """
        if self._delivered.has(mailbox, message_id):
            return True
        return is_repeat and self.index.find(mailbox, message_id) is not None

    def _write(self, temporary: Path, new: Path, content: Content) -> None:
        """Write the file durably. Raises FileExistsError if it exists."""
        base = f"{temporary.name},S={size_of(content)}"
        remove(temporary)  # left by a crash: this thread holds the lock of the id
        try:
            finish_content(write_file(temporary, content))
            place(temporary, new / base)
            self.syncs.sync(new)
        except FileExistsError:
            raise
        except OSError:
            self.root.remove(new / base)
            raise
        finally:
            remove(temporary)


def _listed(mailbox: Path) -> set[str]:
    found = set()
    for folder in list_folders(mailbox):
        for directory in (folder.path / "new", folder.path / "cur"):
            for file_name in list_names(directory):
                name = parse_name(file_name)
                if name is not None and is_delivered_id(name.message_id):
                    found.add(name.message_id)
    return found
