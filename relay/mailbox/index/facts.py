"""What the index keeps of a message's content: facts of its header, and the words of it.

On the path: filling.py reads files by it, when a query first needs what they say.
Holds: pure but for reading; no more of a file is read than is bounded. What is found here is what
the message shows: both come from the same readers.
Fails: OSError when a file cannot be read.
Standards: RFC 5322; Graph's message.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from relay.mailbox.index.conditions import RANKS, key_of
from relay.mailbox.query import Collection
from relay.message.conversation import conversation_id
from relay.message.draft import private_length, read_block
from relay.message.mimeread import ReadMessage, read_mime
from relay.message.preview import without_tags
from relay.message.properties import MessageProperties, Person
from relay.message.section import header_end

_HEADER_BYTES = 16 * 1024
_HEADER_BYTES_MAX = 256 * 1024
_CONTENT_BYTES_MAX = 1024 * 1024
_BLOCK_BYTES_MAX = 16 * 1024 * 1024
_WORDS_CHARACTERS_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Facts:
    """What a message's header says, or a draft's private block."""

    properties: MessageProperties
    internet_message_id: str
    conversation: str
    sent_us: int
    created_us: int
    modified_us: int

    @property
    def columns(self) -> tuple[str | int, ...]:
        """In the order of FACT_COLUMNS."""
        one = self.properties
        from_, sender = one.from_ or Person(""), one.sender or one.from_ or Person("")
        return (
            key_of(one.subject),
            *(key_of(from_.address), key_of(from_.name or from_.address)),
            *(key_of(sender.address), key_of(sender.name or sender.address)),
            *(self.sent_us, self.created_us, self.modified_us),
            RANKS.get(one.importance, RANKS["normal"]),
            *(key_of(self.internet_message_id), key_of(self.conversation)),
        )

    @property
    def items(self) -> list[tuple[str, str, str]]:
        """Who it is for, and its categories: kind, address (or category) and name."""
        one = self.properties
        people = (
            (Collection.TO, one.to),
            (Collection.CC, one.cc),
            (Collection.BCC, one.bcc),
            (Collection.REPLY_TO, one.reply_to),
        )
        found = [
            (str(kind), key_of(person.address), key_of(person.name or person.address))
            for kind, those in people
            for person in those
        ]
        return found + [(str(Collection.CATEGORIES), key_of(one), "") for one in one.categories]


FACT_COLUMNS = (
    "subject_key, from_key, from_name_key, sender_key, sender_name_key, sent_us, created_us,"
    " modified_us, importance, internet_key, conversation_key"
)


@dataclass(frozen=True, slots=True)
class Words:
    """The texts that words are looked for in, in the order of the table's columns."""

    texts: tuple[str, ...]
    has_attachments: bool


NO_FACTS = Facts(MessageProperties(), "", "", 0, 0, 0)
NO_WORDS = Words(("",) * 7, has_attachments=False)


def read_facts(path: Path, *, message_id: str) -> Facts:
    """Read the header of the message with that id. Raises OSError."""
    with path.open("rb") as file:
        written_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        head = file.read(_HEADER_BYTES)
        length = min(private_length(head), _BLOCK_BYTES_MAX)
        end = length + header_end(head[length:]).body
        if end >= len(head):
            head += file.read(length + _HEADER_BYTES_MAX - len(head))
            end = length + header_end(head[length:]).body
    block = read_block(head) if length else None
    if block is not None and block.properties is not None:
        read = ReadMessage(block.properties, (), block.origin.modified_us)
    else:
        read = read_mime(head[length:end])
    properties = read.properties
    own = properties.internet_message_id or (block.origin.message_id if block else "")
    return Facts(
        properties=properties,
        internet_message_id=own,
        conversation=conversation_id(properties, own or message_id),
        sent_us=read.date_us or (block.origin.modified_us if block else written_us),
        created_us=block.origin.created_us if block else written_us,
        modified_us=block.origin.modified_us if block else written_us,
    )


def read_words(path: Path) -> Words:
    """Read a message's beginning. Raises OSError."""
    with path.open("rb") as file:
        raw = file.read(_CONTENT_BYTES_MAX)
        length = min(private_length(raw), _BLOCK_BYTES_MAX)
        if length + _CONTENT_BYTES_MAX > len(raw) == _CONTENT_BYTES_MAX:
            raw += file.read(length)
    block = read_block(raw) if length else None
    read = read_mime(raw[length:])
    if block is not None and block.properties is not None:
        names = [(one.name, one.inline) for one in block.attachments]
        properties = replace(block.properties, body=read.properties.body)
    else:
        names = [(one.name, one.inline) for one in read.attachments]
        properties = read.properties
    body = properties.body
    if read.properties.body_type == "html":
        body = without_tags(body)
    authors = dict.fromkeys(one for one in (properties.from_, properties.sender) if one)
    texts = (
        properties.subject,
        body[:_WORDS_CHARACTERS_MAX],
        *(_people(those) for those in (authors, properties.to, properties.cc, properties.bcc)),
        " ".join(name for name, _ in names),
    )
    return Words(
        tuple(text.encode("utf-8", "replace").decode() for text in texts),
        has_attachments=any(not inline for _, inline in names),
    )


def _people(people: Iterable[Person]) -> str:
    return " ".join(f"{one.name} {one.address}" for one in people)
