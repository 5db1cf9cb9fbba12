"""Read of the messages what a query asks about, as far as that has not been done yet.

On the path: a query that needs more than what the file system says comes here first.
Holds: one thread a mailbox reads; the index is free for others while files are read, and locked for
a bounded number of octets at a time. What was read stays read when the time is over or the client
leaves: the next request reads the rest.
Fails: StoreUnavailableError when there is more to read than one request may wait for;
QueryTooLongError when the client has left.
Standards: none.
"""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import apsw

from relay.clock import Clock
from relay.mailbox.index.mailbox_index import MailboxIndex
from relay.mailbox.index.query_sql import FACTS, RANKS, WORDS, key_of
from relay.mailbox.index.rows import FolderRow, Row, select_rows
from relay.mailbox.index.update import path_of
from relay.mailbox.maildir import open_message
from relay.mailbox.query import Collection
from relay.mailbox.threads import QueryLimit
from relay.mailbox.types import StoreUnavailableError
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


_MESSAGES_AT_ONCE = 200
_BYTES_AT_ONCE = 2 * 1024 * 1024  # of files that are read before what they say is written down
_LOOK_AGAIN_S = 0.1
_TIME_MAX_S = 25.0
_MISSES_MAX = 3
_FACTS_SQL = (
    f"UPDATE message SET filled = {FACTS}, ({FACT_COLUMNS})"
    f" = ({', '.join('?' * len(FACT_COLUMNS.split(',')))}) WHERE uid = ?"
)
_IS_AS_READ = (
    "SELECT 1 FROM message WHERE uid = ? AND filled = ?"
    " AND inode = ? AND size_bytes = ? AND written_ns = ?"
)
_T = TypeVar("_T")


class Filling:
    """Of one mailbox's index, for one query that needs `level` of every message."""

    def __init__(self, index: MailboxIndex, level: int, *, clock: Clock, limit: QueryLimit) -> None:
        self._index = index
        self._level = level
        self._clock = clock
        self._limit = limit
        self._until_s = clock.monotonic() + _TIME_MAX_S
        self._misses: Counter[int] = Counter()

    def ask(self, question: Callable[[apsw.Cursor, Mapping[int, FolderRow]], _T]) -> _T:
        """Answer when everything has been read. Raises StoreUnavailableError, QueryTooLongError."""

        def asked(cursor: apsw.Cursor, folders: Mapping[int, FolderRow]) -> _T | None:
            return None if self._has_unread(cursor) else question(cursor, folders)

        while (answer := self._index.query(asked, self._limit)) is None:
            while not self._index.filling.acquire(timeout=_LOOK_AGAIN_S):
                self._check()
            try:
                for level in _LEVELS:
                    if level.number <= self._level:
                        self._fill(level)
            finally:
                self._index.filling.release()
        return answer

    def _fill(self, level: "_Level[Any]") -> None:
        def unread(cursor: apsw.Cursor) -> list[tuple[Row, Path]]:
            # what came since the level below was filled waits for the next turn
            where = "WHERE filled < 2 AND filled = ? LIMIT ?"
            rows = select_rows(cursor, where, (level.number - 1, _MESSAGES_AT_ONCE))
            return [(row, Path(path_of(self._index.folders, row.place))) for row in rows]

        found = self._index.ask(unread)
        while found:
            self._index.ask(self._writing(level, found))
            if found := self._index.ask(unread):
                self._check()  # after the writing: each request reads at least one message

    def _writing(
        self, level: "_Level[_T]", found: Sequence[tuple[Row, Path]]
    ) -> Callable[[apsw.Cursor], None]:
        """Read some of the files, at least one; return how what was found is written down."""
        read: list[tuple[Row, _T | None]] = []
        size_bytes = 0
        for row, path in found:
            read.append((row, self._read(level, row, path)))
            size_bytes += min(row.body.size_bytes, CONTENT_BYTES_MAX)
            if size_bytes >= _BYTES_AT_ONCE or self._is_over():
                break

        def write(_: apsw.Cursor) -> None:
            with self._index.writing() as cursor:
                for row, one in read:
                    if one is not None and _is_as_read(cursor, row, level.number):
                        level.write(cursor, row.uid, one)

        return write

    def _read(self, level: "_Level[_T]", row: Row, path: Path) -> _T | None:
        """Read a message's file: None if it is gone for now."""
        try:
            return level.read(row, path)
        except FileNotFoundError:  # the index will know by its next question
            self._misses[row.uid] += 1
            return level.nothing if self._misses[row.uid] > _MISSES_MAX else None
        except OSError:
            return level.nothing

    def _has_unread(self, cursor: apsw.Cursor) -> bool:
        where = "WHERE filled < 2 AND filled < ? LIMIT 1"
        return bool(self._level) and any(select_rows(cursor, where, (self._level,)))

    def _is_over(self) -> bool:
        return self._limit.is_stopped or self._clock.monotonic() > self._until_s

    def _check(self) -> None:
        if self._is_over():
            self._limit.check()  # whose time has not begun: it is over only where it was stopped
            message = "The mailbox's messages are being read for the first search."
            raise StoreUnavailableError(message)


def _is_as_read(cursor: apsw.Cursor, row: Row, level: int) -> bool:
    body = row.body
    values = (row.uid, level - 1, body.inode, body.size_bytes, body.written_ns)
    return cursor.execute(_IS_AS_READ, values).fetchone() is not None


def _write_facts(cursor: apsw.Cursor, uid: int, facts: Facts) -> None:
    columns = facts.columns
    cursor.execute(_FACTS_SQL, (*columns, uid))
    cursor.executemany(
        "INSERT OR IGNORE INTO item (kind, address_key, uid, name_key) VALUES (?, ?, ?, ?)",
        [(kind, address, uid, name) for kind, address, name in facts.items],
    )
    cursor.execute(
        "INSERT INTO piece (rowid, subject_key, from_key, from_name_key) VALUES (?, ?, ?, ?)",
        (uid, *columns[:3]),
    )


def _write_words(cursor: apsw.Cursor, uid: int, words: Words) -> None:
    cursor.execute(
        f"UPDATE message SET filled = {WORDS}, has_attachments = ? WHERE uid = ?",
        (words.has_attachments, uid),
    )
    cursor.execute(
        "INSERT INTO word (rowid, subject, body, sender, recipient, cc, bcc, attachment)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (uid, *words.texts),
    )


@dataclass(frozen=True, slots=True)
class _Level(Generic[_T]):
    """What is read of a message's file at once, and how it is written down under the row's uid.

    `nothing` stands for what cannot be read.
    """

    number: int
    read: Callable[[Row, Path], _T]
    nothing: _T
    write: Callable[[apsw.Cursor, int, _T], None]


_LEVELS: tuple[_Level[Any], ...] = (
    _Level(
        FACTS, lambda row, path: read_facts(path, message_id=row.message_id), NO_FACTS, _write_facts
    ),
    _Level(WORDS, lambda _, path: read_words(path), NO_WORDS, _write_words),
)
