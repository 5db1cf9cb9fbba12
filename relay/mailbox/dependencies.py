"""StoreDependencies: what the parts of the mail store share. The store creates it once."""

from dataclasses import dataclass
from pathlib import Path

from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.mailbox.draft_files import DraftIdentity
from relay.mailbox.folders import Folders
from relay.mailbox.index import Indexes
from relay.mailbox.mail_root import MailRoot
from relay.mailbox.maildir import DirectorySync, Stripes
from relay.mailbox.message_file import MessageFile
from relay.mailbox.quota import Quota
from relay.mailbox.submissions import SubmissionDirectory
from relay.mailbox.submissions.idempotency import KeyedSubmissions
from relay.mailbox.submissions.scheduled import ScheduledSends
from relay.mailbox.types import Precondition, SendOptions


@dataclass(frozen=True, slots=True)
class StoreDependencies:
    """`stripes` has a lock for each message, held by every change of the message."""

    clock: Clock
    ids: Ids
    crash: CrashPoints
    hostname: str
    root: MailRoot
    folders: Folders
    index: Indexes
    quota: Quota
    submissions: SubmissionDirectory
    syncs: DirectorySync
    stripes: Stripes
    scheduled: ScheduledSends
    keyed: KeyedSubmissions

    def found(self, mailbox: Path, message_id: str, condition: Precondition) -> MessageFile:
        """Return a message's file. The condition stays true only while the caller holds its lock.

        Raises NoSuchItemError, also for a message in another folder; MessageChangedError.
        """
        located = self.index.get(mailbox, message_id, folder_id=condition.folder_id)
        condition.check_version(located.change_key)
        return located

    def identity(self, account: str, options: SendOptions | None = None) -> DraftIdentity:
        """Return the identity of a new draft, or of one submitted with these options."""
        now_us = self.clock.time_us()
        options = options or SendOptions()
        return DraftIdentity(
            account=account,
            message_id=self.ids.new(),
            hostname=self.hostname,
            created_us=now_us,
            modified_us=now_us,
            save_to_sent_items=options.save_to_sent_items,
            sent_folder=options.sent_folder,
            on_behalf_of=options.on_behalf_of,
        )
