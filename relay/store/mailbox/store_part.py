"""What the parts of the mail store work with.

Each part is a StorePart, and adds what else it needs. FileStore
(relay/submission/outbox/store.py) makes all of them with the same values.
"""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from relay.base.clock import Clock
from relay.base.crashpoints import CrashPoints
from relay.store.mailbox.draft_files import NewNames
from relay.store.mailbox.folders import Folders
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.mail_root import MailRoot
from relay.store.mailbox.maildir import DirectorySync, Stripes
from relay.store.mailbox.old_files import OldFiles
from relay.store.mailbox.quota import Quota
from relay.store.mailbox.threads import ThreadPool


@dataclass(kw_only=True, eq=False, repr=False)
class StorePart:
    """A part of the store: one kind of work, for all mailboxes."""

    threads: ThreadPool  # in which the coroutines work
    clock: Clock  # for the times of messages and submissions
    crash: CrashPoints  # for crash tests
    root: MailRoot  # whether it is there; where a file may be that was just written
    folders: Folders  # the directories of the mailboxes
    index: Indexes  # finds messages
    quota: Quota  # reserves room
    names: NewNames  # ids and file names for new messages
    stripes: Stripes  # a lock for each message, held by every change of it
    syncs: DirectorySync  # shares fsyncs among threads
    old_files: OldFiles  # a mailbox is cleaned before the first write


_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")
_Part = TypeVar("_Part", bound=StorePart)


def in_thread(
    method: Callable[Concatenate[_Part, _Parameters], _Result],
) -> Callable[Concatenate[_Part, _Parameters], Coroutine[Any, Any, _Result]]:
    """Make a blocking method of a part of the store a coroutine that runs in its threads."""

    @wraps(method)
    def call(
        part: _Part, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Coroutine[Any, Any, _Result]:
        return part.threads.run(method, part, *args, **kwargs)

    return call
