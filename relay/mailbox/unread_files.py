"""Which messages of all mailboxes are unread, by the names of their files alone.

No index is opened. A file that another mail server has renamed is not found.
"""

import os
from pathlib import Path

from relay.mailbox.message_file import SEEN, parse_name


def unread_ids(root: Path) -> set[str]:
    """Return the ids of messages without the flag Seen below a mail root. Blocks."""
    found: set[str] = set()
    for _, directories, files in os.walk(root):
        directories[:] = [one for one in directories if one != "tmp"]
        names = filter(None, map(parse_name, files))
        found.update(one.message_id for one in names if SEEN not in one.flags)
    return found
