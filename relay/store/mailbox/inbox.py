"""Local delivery: write a message to new/ of a folder exactly once, however often it is repeated.

delivery's local entries (step 6) and pickup's reports are delivered here. The same `unique` gives
the same id and name. A repeat finds the id in any folder of the mailbox, also under a name that a
mail client has given the file. Raises MailboxFullError and OSError; after an error nothing is left.

Maildir's delivery: tmp, link, fsync of file and directory. docs/design.md 1.
"""

from contextlib import suppress
from dataclasses import dataclass, field

from relay.base.crashpoints import CrashPoint
from relay.base.message.content import Content, edit_header, size_of
from relay.formats.headers import with_relay_id
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.folders import well_known_path
from relay.store.mailbox.maildir import Stripes, finish_content, place, remove, write_file
from relay.store.mailbox.message_file import delivered_base_name, delivered_id
from relay.store.mailbox.store_part import StorePart
from relay.store.mailbox.stored_message import WellKnown


@dataclass(kw_only=True, eq=False, repr=False)
class Inbox(StorePart):
    """Delivers to mailboxes. Blocking: the store calls it in its threads."""

    # Not the shared locks: the delivery of a report already holds one of them.
    _stripes: Stripes = field(default_factory=Stripes, init=False)

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
        is_inbox = folder is WellKnown.INBOX  # other folders are created on first use
        mailbox = self.folders.inbox(account) if is_inbox else self.folders.mailbox(account)
        if not is_inbox:
            self.folders.recreate(mailbox, folder)
        self.old_files.clean(mailbox, is_fresh=self.folders.is_fresh(account))
        new = f"{well_known_path(mailbox, folder)}/new"
        message_id = delivered_id(unique)
        content = edit_header(content, lambda header: with_relay_id(header, message_id))
        base_name = delivered_base_name(unique, hostname=self.names.hostname)
        temporary = f"{mailbox}/tmp/{base_name}"  # noqa: S108 - the Maildir's own
        with self._stripes.of(message_id):
            if is_repeat and self.index.find(mailbox, message_id) is not None:
                # A crash after the link may have left the temporary file.
                remove(temporary)
                self.syncs.sync(new)
                return DeliveryResult.ALREADY_THERE
            with self.quota.room_for(
                account, mailbox, size_of(content), base_name=base_name, is_report=over_quota
            ):
                if not self._write(base_name, content, temporary=temporary, new=new):
                    return DeliveryResult.ALREADY_THERE
        self.crash.reached(CrashPoint.DELIVERED_LOCALLY)
        return DeliveryResult.DELIVERED

    def _write(self, base_name: str, content: Content, *, temporary: str, new: str) -> bool:
        """Write the file durably; return False if it exists."""
        target = f"{new}/{base_name},S={size_of(content)}"
        try:
            descriptor = write_file(temporary, content)
        except FileExistsError:  # left by a crash: this thread holds the lock of the id
            remove(temporary)
            descriptor = write_file(temporary, content)
        try:
            finish_content(descriptor)
            place(temporary, target)
            self.syncs.sync(new)
        except FileExistsError:  # a crash may have come before its directory was synced
            self.syncs.sync(new)
            return False
        except OSError:
            with suppress(OSError):
                remove(target)
            raise
        finally:
            remove(temporary)
        return True
