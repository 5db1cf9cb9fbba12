"""The messages in the mailboxes of a relay: read from its Maildirs, each file once.

Every recipient has a mailbox: local recipients, captured ones, and those that a simulated host
accepted. A message has arrived when its file exists and the queue has the state of the recipient:
then its journey is complete.
"""

import email
import email.policy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import unquote

from relay.base.message.address import own_mailbox
from relay.base.message.lifecycle import AT_REST, RecipientState
from relay.operation.app.daemon import Daemon
from relay.store.journeys.document import Journey
from relay.store.mailbox.errors import NoSuchItemError
from relay.store.mailbox.message_file import mailbox_directory
from relay.testing.message import field_addresses, field_text

_NOT_RECEIVED = frozenset({".Drafts", ".Sent", ".Outbox"})
_received_id = re.compile(r"\bid ([0-9a-z]{16})\b").search
_own_message_id = re.compile(r"<([0-9a-z]{16})[.@]").match


@dataclass(frozen=True, slots=True)
class MessageCopy:
    """A message's file in a mailbox. `recipient` is the address in the envelope."""

    path: Path
    mailbox: str
    recipient: str
    queue_id: str
    eml: EmailMessage
    content: bytes
    written_ns: int = 0

    @property
    def key(self) -> str:
        """The identity of the copy."""
        return _key(self.mailbox, self.path)

    @property
    def name(self) -> str:
        """The identity of the message, equal for all its copies."""
        return self.queue_id or self.path.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class ArrivedMessage:
    """A copy, and the journey of its message, None if it has no journey."""

    copy: MessageCopy
    journey: Journey | None

    @property
    def subject(self) -> str:
        """The subject, decoded."""
        return field_text(self.copy.eml, "Subject")

    @property
    def senders(self) -> tuple[str, ...]:
        """The reverse-path and the addresses in From."""
        authors = field_addresses(self.copy.eml, "From")
        return tuple(dict.fromkeys([self.journey.sender if self.journey else "", *authors]))

    @property
    def has_arrived(self) -> bool:
        """Whether the queue has recorded that this copy was written."""
        return self.state in AT_REST

    @property
    def state(self) -> str:
        """The state of this recipient."""
        if self.journey is None:
            return RecipientState.DELIVERED
        mailbox = own_mailbox(self.copy.recipient)
        states = (
            recipient.state
            for recipient in self.journey.recipients
            if own_mailbox(recipient.address) == mailbox
        )
        return next(states, self.journey.state)


class MailboxFiles:
    """Reads the mailboxes; blocking."""

    def __init__(self, daemon: Daemon) -> None:
        self._root = daemon.base.settings.mailboxes.root
        self._domains = frozenset(daemon.base.settings.mailboxes.domains)
        self._read: dict[str, MessageCopy] = {}

    def forget(self) -> None:
        """Forget what was read: the mailboxes were emptied."""
        self._read.clear()

    def copies(self, address: str | None = None) -> list[MessageCopy]:
        """Return the copies for an address, or all, in the order of their arrival.

        For an address with a tag, only the copies that were sent to this address.
        """
        folders = self._folders() if address is None else self._folders_of(address)
        own_address = own_mailbox(address or "")
        by_key: dict[str, MessageCopy] = {}
        for mailbox, folder in folders:
            for path in _files(folder):
                copy = self._copy(mailbox, path)
                if "+" not in own_address or own_mailbox(copy.recipient) == own_address:
                    by_key[copy.key] = copy
        return sorted(by_key.values(), key=lambda copy: (copy.written_ns, copy.key))

    def _copy(self, mailbox: str, path: Path) -> MessageCopy:
        key = _key(mailbox, path)
        known = self._read.get(key)
        if known is None:
            known = self._read[key] = _read_copy(mailbox, path)
        return known

    def _folders(self) -> Iterator[tuple[str, Path]]:
        """Yield the Maildir of each mailbox with its address."""
        for domain in sorted(self._root.glob("[!.]*")):
            for folder in sorted(domain.glob("*")):
                if (folder / "new").is_dir():
                    yield f"{unquote(folder.name)}@{unquote(domain.name)}", folder

    def _folders_of(self, address: str) -> Iterator[tuple[str, Path]]:
        """Yield the mailbox of an address; for a local address with a tag also that without it."""
        local_part, _, domain = own_mailbox(address).rpartition("@")
        names = [local_part]
        if domain in self._domains and "+" in local_part:
            names.append(local_part.partition("+")[0])
        for name in names:
            try:
                folder = mailbox_directory(self._root, f"{name}@{domain}")
            except NoSuchItemError:
                continue
            if (folder / "new").is_dir():
                yield f"{name}@{domain}", folder


def _files(mailbox: Path) -> Iterator[Path]:
    folders = [mailbox, *(path for path in mailbox.glob(".*") if path.name not in _NOT_RECEIVED)]
    for folder in folders:
        for place in ("new", "cur"):
            try:
                yield from [path for path in (folder / place).iterdir() if path.name[0] != "."]
            except (FileNotFoundError, NotADirectoryError):
                continue


def _key(mailbox: str, path: Path) -> str:
    return f"{path.name.partition(':')[0]} {mailbox}"


def _read_copy(mailbox: str, path: Path) -> MessageCopy:
    content, written_ns = path.read_bytes(), path.stat().st_mtime_ns
    eml = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(eml, EmailMessage)
    recipient = field_text(eml, "Delivered-To") or mailbox
    match = _received_id(field_text(eml, "Received")) or _own_message_id(
        field_text(eml, "Message-ID")
    )
    queue_id = match[1] if match else ""
    return MessageCopy(path, mailbox, recipient, queue_id, eml, content, written_ns)
