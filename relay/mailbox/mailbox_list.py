"""Which mailboxes exist under a root, by their directories."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from relay.mailbox.maildir import list_names
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.types import NoSuchItemError


def mailbox_directories(root: Path) -> Iterator[Path]:
    """Yield the paths where a mailbox may be, by domain, in order."""
    for domain in _names(root):
        for local_part in _names(root / domain):
            yield root / domain / local_part


def _names(directory: Path) -> list[str]:
    """Return the names that a domain or a local part may have: none begins with a dot."""
    return sorted(name for name in list_names(directory) if not name.startswith("."))


class MailboxList:
    """The mailboxes of a root. Blocks for a few system calls; nothing is kept in memory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, address: str) -> bool:
        """Whether there is a mailbox of this address."""
        try:
            return (mailbox_directory(self._root, address) / "cur").is_dir()
        except (NoSuchItemError, ValueError):  # ValueError: a NUL
            return False

    def some(self, limit: int) -> Sequence[str]:
        """Return the addresses of at most `limit` mailboxes, by domain, in order."""
        found = (one for one in mailbox_directories(self._root) if (one / "cur").is_dir())
        return [f"{unquote(one.name)}@{unquote(one.parent.name)}" for one in islice(found, limit)]
