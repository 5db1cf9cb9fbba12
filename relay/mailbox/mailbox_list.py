"""Which mailboxes exist under a root, by their directories."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from relay.mailbox.maildir import list_names
from relay.mailbox.message_file import mailbox_directory
from relay.mailbox.types import NoSuchItemError


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
        return [*islice(self._all(), limit)]

    def _all(self) -> Iterator[str]:
        for domain in sorted(list_names(self._root)):
            if domain.startswith("."):
                continue
            for local_part in sorted(list_names(self._root / domain)):
                if (self._root / domain / local_part / "cur").is_dir():
                    yield f"{unquote(local_part)}@{unquote(domain)}"
