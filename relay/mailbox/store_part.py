"""What the parts of the store work with: the same objects in each, which FileStore makes once."""

from dataclasses import dataclass

from relay.clock import Clock
from relay.crashpoints import CrashPoints
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox.draft_files import NewNames
from relay.mailbox.folders import Folders
from relay.mailbox.index.indexes import Indexes
from relay.mailbox.mail_root import MailRoot
from relay.mailbox.maildir import DirectorySync, Stripes
from relay.mailbox.quota import Quota
from relay.mailbox.stale_files import StaleFiles
from relay.mailbox.submissions.idempotency import KeyedSubmissions
from relay.mailbox.submissions.on_disk import SubmissionDirectory
from relay.mailbox.submissions.scheduled import ScheduledSends
from relay.mailbox.threads import ThreadPool


@dataclass(kw_only=True, eq=False, repr=False)
class StorePart:
    """A part of the store: the operations of one subject. A part adds what it alone needs."""

    threads: ThreadPool  # in which the coroutines work
    clock: Clock  # for the times of messages and submissions, and the end of sessions
    crash: CrashPoints  # for crash tests
    root: MailRoot  # whether it is there; where a file may be that was just written
    folders: Folders  # the directories of the mailboxes
    index: Indexes  # finds messages
    quota: Quota  # reserves room
    names: NewNames  # ids and file names for new messages
    stripes: Stripes  # a lock for each message, held by every change of it
    syncs: DirectorySync  # shares fsyncs among threads
    directory: SubmissionDirectory  # `.submissions/`
    scheduled: ScheduledSends  # a change of a draft cancels or changes them
    keyed: KeyedSubmissions  # the records of keys
    stale_files: StaleFiles  # cleans a mailbox before its first write; finishes removals
    log: SubmissionLog  # of steps 1 to 4
