"""Read a message's file, if it is one.

On the path: whoever shows, sends or changes a message that is there.
Holds: nothing waits for a FIFO or follows a link that somebody put into a mailbox.
Fails: FileNotFoundError for a file that is gone, and for what is no file; OSError.
Standards: Maildir.
"""

import os

from relay.mailbox.index import Located
from relay.mailbox.maildir import open_message
from relay.mailbox.messages import load
from relay.mailbox.types import StoredMessage


def raw_of(located: Located) -> bytes:
    """Return the file's octets."""
    with open_message(located.path) as file:
        return file.read()


def loaded(located: Located) -> StoredMessage:
    """Return the file as a message."""
    with open_message(located.path) as file:
        touched_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        return load(located, file.read(), touched_us=touched_us)
