"""Read a message's file, if it is one.

On the path: whoever shows, sends or changes a message that is there.
Holds: nothing waits for a FIFO or follows a link that somebody put into a mailbox; of a large file
only what is asked for is in memory.
Fails: FileNotFoundError for a file that is gone, and for what is no file; OSError.
Standards: Maildir.
"""

import os
from typing import BinaryIO

from relay.files import OpenOctets
from relay.mailbox.index import Located
from relay.mailbox.maildir import open_message
from relay.mailbox.messages import load
from relay.mailbox.types import StoredMessage
from relay.message.content import LARGE_BYTES, MemoryOctets, Octets


def octets_of(located: Located) -> Octets:
    """Return the file's octets, which are there whatever becomes of its name."""
    with open_message(located.path) as file:
        return _octets(file)


def loaded(located: Located) -> StoredMessage:
    """Return the file as a message."""
    with open_message(located.path) as file:
        touched_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        return load(located, _octets(file), touched_us=touched_us)


def _octets(file: BinaryIO) -> Octets:
    """Small ones are read at once, large ones stay in the file."""
    if os.fstat(file.fileno()).st_size > LARGE_BYTES:
        return OpenOctets.of(file)
    return MemoryOctets(file.read())
