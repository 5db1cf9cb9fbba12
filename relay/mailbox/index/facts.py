"""What the index keeps of a message's content: facts of its header, and the words of it.

On the path: filling.py reads files by it, when a query first needs what they say.
Holds: pure but for reading; no more of a file is read than is bounded. What is found here is what
the message shows: both come from the same readers.
Fails: OSError when a file cannot be read.
Standards: RFC 5322; Graph's message.
"""

import functools
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from relay.mailbox.index.conditions import RANKS, key_of
from relay.mailbox.maildir import open_message
from relay.mailbox.query import Collection
from relay.message.properties import MessageProperties, Person
from relay.mime.conversation import conversation_id
from relay.mime.draft import PRIVATE_BYTES_MAX, private_length, read_block
from relay.mime.headread import date_us_of, read_people, read_properties_of_header
from relay.mime.mimeread import read_mime
from relay.mime.preview import without_tags
from relay.mime.privateblock import filled_in
from relay.mime.section import cleaned, header_end, read_header, split_fields

_HEADER_BYTES = 16 * 1024
_HEADER_BYTES_MAX = 256 * 1024
CONTENT_BYTES_MAX = 1024 * 1024
_REMEMBERED_BYTES_MAX = 1024
_PEOPLE = frozenset((b"from", b"sender", b"to", b"cc", b"bcc", b"reply-to"))
_OTHERS = frozenset(
    (
        *(b"subject", b"date", b"message-id", b"in-reply-to", b"references", b"keywords"),
        *(b"importance", b"x-priority", b"x-msmail-priority", b"priority"),
    )
)


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
    with open_message(path) as file:
        written_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        head = file.read(_HEADER_BYTES)
        length = min(private_length(head), PRIVATE_BYTES_MAX)
        end = length + header_end(head[length:]).body
        if end >= len(head):
            head += file.read(length + _HEADER_BYTES_MAX - len(head))
            end = length + header_end(head[length:]).body
    block = read_block(head) if length else None
    if block is not None and block.properties is not None:
        properties, date_us = block.properties, block.origin.modified_us
    else:
        properties, date_us = _read_header(head[length:end])
    properties = filled_in(properties, block)
    own = properties.internet_message_id
    return Facts(
        properties=properties,
        internet_message_id=own,
        conversation=conversation_id(properties, own or message_id),
        sent_us=date_us or (block.origin.modified_us if block else written_us),
        created_us=block.origin.created_us if block else written_us,
        modified_us=block.origin.modified_us if block else written_us,
    )


def read_words(path: Path) -> Words:
    """Read a message's beginning. Raises OSError."""
    with open_message(path) as file:
        raw = file.read(CONTENT_BYTES_MAX)
        length = min(private_length(raw), PRIVATE_BYTES_MAX)
        if length:
            raw += file.read(length)
    block = read_block(raw) if length else None
    read = read_mime(raw[length:])
    properties, attachments = read.properties, [(one.name, one.inline) for one in read.attachments]
    if block is not None and block.properties is not None:
        properties = block.properties
        attachments = [(one.name, one.inline) for one in block.attachments]
    properties = filled_in(properties, block)
    body = read.properties.body
    if read.properties.body_type == "html":
        body = without_tags(body)
    authors = dict.fromkeys(one for one in (properties.from_, properties.sender) if one)
    texts = (
        properties.subject,
        body,
        *(_people(those) for those in (authors, properties.to, properties.cc, properties.bcc)),
        " ".join(name for name, _ in attachments),
    )
    return Words(
        tuple(text.encode("utf-8", "replace").decode() for text in texts),
        has_attachments=any(not inline for _, inline in attachments),
    )


def _read_header(header: bytes) -> tuple[MessageProperties, int]:
    """Return what a header says of what is asked for, and its date."""
    people: dict[bytes, bytes] = {}
    others = []
    for name, field in split_fields(cleaned(header)):
        if name in _PEOPLE:
            people[name] = people.get(name, b"") + field
        elif name in _OTHERS:
            others.append(field)
    fields = read_header(b"".join(others))
    authors = [_people_in(people.get(name, b""), name) for name in (b"from", b"sender")]
    properties = replace(
        read_properties_of_header(fields),
        from_=next(iter(authors[0]), None),
        sender=next(iter(authors[1]), None),
        to=_people_in(people.get(b"to", b""), b"to"),
        cc=_people_in(people.get(b"cc", b""), b"cc"),
        bcc=_people_in(people.get(b"bcc", b""), b"bcc"),
        reply_to=_people_in(people.get(b"reply-to", b""), b"reply-to"),
    )
    return properties, date_us_of(fields)


def _people_in(fields: bytes, name: bytes) -> tuple[Person, ...]:
    if not fields:
        return ()
    read = _people_read if len(fields) <= _REMEMBERED_BYTES_MAX else _people_read.__wrapped__
    return read(fields, name)


@functools.lru_cache(maxsize=4096)
def _people_read(fields: bytes, name: bytes) -> tuple[Person, ...]:
    """Read the fields of a name: in a mailbox the same ones come again and again."""
    return read_people(read_header(fields), name.decode())


def _people(people: Iterable[Person]) -> str:
    return " ".join(f"{one.name} {one.address}" for one in people)
