"""Index the content of messages: header fields, and the full text.

What a query needs is read from the files when a query first needs it: level 1 is the header, level
2 the text. The same readers show a message to clients. One thread per mailbox reads; the index is
locked only while the content of up to 2 MiB of files is written. When the time limit is reached or
the client leaves, what was read stays, and `Indexes` has the rest read in the background.

Raises StoreUnavailableError when there is more to read than one request may wait for, and
QueryTooLongError when the client has left. A bounded part of each file is read, and at most
FIELDS_MAX fields of its header (RFC 5322; Graph's message).
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import apsw
from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock
from relay.base.message.address import ascii_address, shown_address
from relay.base.message.content import as_octets
from relay.base.message.conversation import conversation_id
from relay.base.message.extended_properties import IN_REPLY_TO_ID, INTERNET_REFERENCES, class_of
from relay.base.message.header import Header, cleaned, header_end, with_first_fields
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.formats import read_header
from relay.formats.address_list import AddressBudget
from relay.formats.draft import PRIVATE_BYTES_MAX, private_block_length, read_block, with_defaults
from relay.formats.html_text import without_tags
from relay.formats.read_mime import ReadExtent, read_mime
from relay.formats.read_report import ORDINARY_CLASS, message_class
from relay.formats.structure import read_structure
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.index.database import fetch, marks, open_database
from relay.store.mailbox.index.mailbox_index import MailboxIndex
from relay.store.mailbox.index.query_sql import (
    HEADER_LEVEL,
    RANKS,
    TEXT_LEVEL,
    extended_kind,
    search_key,
    words_expression,
)
from relay.store.mailbox.index.rows import FolderRows, IndexedMessage, select_rows
from relay.store.mailbox.index.states import INSERT_ITEM
from relay.store.mailbox.index.update import path_of
from relay.store.mailbox.maildir import open_message
from relay.store.mailbox.message_file import open_octets
from relay.store.mailbox.message_state import MessageState, read_state, with_state
from relay.store.mailbox.query import Collection
from relay.store.mailbox.threads import QueryTimeLimit

_HEADER_BYTES = 16 * 1024
_HEADER_BYTES_MAX = 256 * 1024
CONTENT_BYTES_MAX = 1024 * 1024
_CACHED_BYTES_MAX = 256  # as addresses they take 7 KB at most
_WITHOUT_FIELDS = ReadExtent(has_fields=False)
_ADDRESS_FIELDS = (b"from", b"sender", b"reply-to", b"to", b"cc", b"bcc")  # as they are read
_OTHERS = frozenset(
    (
        *(b"subject", b"date", b"message-id", b"in-reply-to", b"references", b"keywords"),
        *(b"importance", b"x-priority", b"x-msmail-priority", b"priority"),
    )
)


class HeaderData(Struct, frozen=True):
    """The fields of a message's header, or of a draft's private block."""

    properties: MessageProperties
    conversation: str
    sent_us: int
    created_us: int
    modified_us: int
    message_class: str

    def with_state(self, state: MessageState) -> Self:
        """Return the header with the values of the message's state."""
        return replace(
            self,
            properties=with_state(self.properties, state),
            modified_us=max(self.modified_us, state.modified_us),
            message_class=class_of(state.extended or (), self.message_class),
        )

    @property
    def columns(self) -> tuple[str | int, ...]:
        """The values of HEADER_COLUMNS."""
        properties = self.properties
        from_ = properties.from_ or EmailAddress("")
        sender = properties.sender or from_
        return (
            search_key(properties.subject),
            *(_address_key(from_), search_key(from_.name or from_.address)),
            *(_address_key(sender), search_key(sender.name or sender.address)),
            *(self.sent_us, self.created_us, self.modified_us),
            RANKS.get(properties.importance, RANKS["normal"]),
            *(search_key(properties.internet_message_id), search_key(self.conversation)),
            search_key(self.message_class),
        )

    @property
    def items(self) -> list[tuple[str, str, str]]:
        """The recipients and categories: kind, address (or category) and name."""
        properties = self.properties
        recipients = (
            (Collection.TO, properties.to),
            (Collection.CC, properties.cc),
            (Collection.BCC, properties.bcc),
            (Collection.REPLY_TO, properties.reply_to),
        )
        items = [
            (str(kind), _address_key(person), search_key(person.name or person.address))
            for kind, those in recipients
            for person in those
        ]
        items += [
            (str(Collection.CATEGORIES), search_key(name), "") for name in properties.categories
        ]
        return items + extended_items(properties)


def extended_items(properties: MessageProperties) -> list[tuple[str, str, str]]:
    """Return the items of extended properties; some of these stand for a header field."""
    values = [(prop.id, value) for prop in properties.extended for value in prop.values]
    values += [(IN_REPLY_TO_ID, properties.in_reply_to)] if properties.in_reply_to else []
    values += [(INTERNET_REFERENCES, reference) for reference in properties.references]
    return [(extended_kind(name), search_key(value), "") for name, value in values]


def _address_key(person: EmailAddress) -> str:
    return search_key(ascii_address(person.address))


HEADER_COLUMNS = (
    "subject_key, from_key, from_name_key, sender_key, sender_name_key, sent_us, created_us,"
    " modified_us, importance, internet_key, conversation_key, class_key"
)


class TextData(Struct, frozen=True):
    """The texts of the full-text index, in the order of its columns."""

    texts: tuple[str, ...]
    has_attachments: bool
    has_bare_lf: bool = False
    added_bytes: int = 0  # CR that readers get and the file does not have


NO_HEADER_DATA = HeaderData(MessageProperties(), "", 0, 0, 0, ORDINARY_CLASS)
NO_TEXT = TextData(("",) * 7, has_attachments=False)


def read_header_data(path: Path, *, message_id: str) -> HeaderData:
    """Read a message's header. Raises OSError."""
    with open_message(path) as file:
        written_us = os.fstat(file.fileno()).st_mtime_ns // 1000
        head = file.read(_HEADER_BYTES)
        length = min(private_block_length(head), PRIVATE_BYTES_MAX)
        end = header_end(head[length:])
        if end.header == end.body:  # no empty line: the header may go on
            head += file.read(length + _HEADER_BYTES_MAX - len(head))
            end = header_end(head[length:])
        class_in_file = ORDINARY_CLASS
        if b"multipart/report" in head[length : length + end.header].lower():
            content = head + file.read(CONTENT_BYTES_MAX - len(head))
            class_in_file = _class_of_report(content[length:], end.header)
    block = read_block(head) if length else None
    if block is not None and block.properties is not None:
        properties, date_us = block.properties, None
    else:
        header = head[length : length + end.body]
        properties, date_us = _read_header(with_first_fields(header))
    properties = with_defaults(properties, block)
    extended = block.beside.extended if block and block.beside else properties.extended
    modified_us = block.origin.modified_us if block else written_us
    return HeaderData(
        properties=replace(properties, extended=extended),
        conversation=conversation_id(properties, properties.internet_message_id or message_id),
        sent_us=modified_us if date_us is None else date_us,
        created_us=block.origin.created_us if block else written_us,
        modified_us=modified_us,
        message_class=class_of(extended, class_in_file),
    )


def _class_of_report(content: bytes, header_length: int) -> str:
    kind = read_structure(as_octets(content[:header_length])).message.content_type
    return message_class(as_octets(content), kind)


def read_text(path: Path) -> TextData:
    """Read the text at the beginning of a message, up to 1 MiB. Raises OSError."""
    with open_message(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        raw = file.read(CONTENT_BYTES_MAX)
        length = min(private_block_length(raw), PRIVATE_BYTES_MAX)
        if length:
            raw += file.read(length)
    text = text_of(raw)
    added_bytes = open_octets(path).size - size_bytes if text.has_bare_lf else 0
    return replace(text, added_bytes=added_bytes)


def text_of(raw: bytes) -> TextData:
    """Return the text of the beginning of a message."""
    length = min(private_block_length(raw), PRIVATE_BYTES_MAX)
    block = read_block(raw) if length else None
    read = read_mime(with_first_fields(raw[length:]), _WITHOUT_FIELDS)
    properties = read.properties
    attachments = [(attachment.name, attachment.inline) for attachment in read.attachments]
    if block is not None and block.properties is not None:
        properties = block.properties
        attachments = [(attachment.name, attachment.inline) for attachment in block.attachments]
    properties = with_defaults(properties, block)
    body = read.properties.body
    if read.properties.body_type == "html":
        body = without_tags(body)
    authors = dict.fromkeys(author for author in (properties.from_, properties.sender) if author)
    texts = (
        properties.subject,
        body,
        *(
            join_addresses(those)
            for those in (authors, properties.to, properties.cc, properties.bcc)
        ),
        " ".join(name for name, _ in attachments),
    )
    return TextData(
        tuple(text.encode("utf-8", "replace").decode() for text in texts),
        has_attachments=any(not inline for _, inline in attachments),
        has_bare_lf=read.has_bare_lf,
    )


def _read_header(header: bytes) -> tuple[MessageProperties, int | None]:
    """Return the indexed properties of a header, and its date."""
    addresses: dict[bytes, list[bytes]] = {}
    others = []
    parsed = Header.parse(cleaned(header))
    kind = b"" if header.isascii() else parsed.first_octets("Content-Type") or b""
    for name, field in parsed.fields:
        if name in _ADDRESS_FIELDS:
            addresses.setdefault(name, []).append(field)
        elif name in _OTHERS:
            others.append(field)

    people, budget = dict[bytes, tuple[EmailAddress, ...]](), AddressBudget()
    for name in _ADDRESS_FIELDS:
        octets = b"".join(addresses.get(name, ()))
        people[name] = _addresses_in(octets if octets.isascii() else kind + octets, name, budget)
    fields = read_header.parse_header(kind + b"".join(others))  # its charset is that of raw octets
    properties = replace(
        read_header.read_properties_of_header(fields),
        from_=read_header.first_person(people[b"from"]),
        sender=read_header.first_person(people[b"sender"]),
        to=people[b"to"],
        cc=people[b"cc"],
        bcc=people[b"bcc"],
        reply_to=people[b"reply-to"],
    )
    return properties, read_header.date_us_of(fields)


def _addresses_in(fields: bytes, name: bytes, budget: AddressBudget) -> tuple[EmailAddress, ...]:
    if not fields:
        return ()
    if len(fields) <= min(_CACHED_BYTES_MAX, budget.octets):
        budget.octets -= len(fields)
        return _read_addresses(fields, name)
    return read_header.read_addresses(read_header.parse_header(fields), name.decode(), budget)


@functools.lru_cache(maxsize=4096)
def _read_addresses(fields: bytes, name: bytes) -> tuple[EmailAddress, ...]:
    """Read address fields; cached, because they repeat within a mailbox."""
    return read_header.read_addresses(
        read_header.parse_header(fields), name.decode(), AddressBudget()
    )


def join_addresses(addresses: Iterable[EmailAddress]) -> str:
    """Return names and addresses as one text. An address with two forms is in it in both."""
    texts = (
        dict.fromkeys(
            (
                address.name,
                address.address,
                ascii_address(address.address),
                shown_address(address.address),
            )
        )
        for address in addresses
    )
    return " ".join(map(" ".join, texts))


_MESSAGES_AT_ONCE = 200
_BYTES_AT_ONCE = 2 * 1024 * 1024  # of files that are read before their content is written
_LOCK_TIMEOUT_S = 0.1
READ_TIME_MAX_S = 45.0  # less than a proxy waits
_BACKGROUND_S = 3600.0  # a program may change a file all the time
_MISSES_MAX = 3
_HEADER_SQL = (
    f"UPDATE message SET content_level = {HEADER_LEVEL}, ({HEADER_COLUMNS})"
    f" = ({marks(HEADER_COLUMNS.split(','))}) WHERE uid = ?"
)
_INSERT_TEXT = (
    "INSERT INTO fulltext (rowid, subject, body, sender, recipient, cc, bcc, attachment)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_IS_AS_READ = (
    "SELECT 1 FROM message WHERE uid = ? AND content_level = ?"
    " AND inode = ? AND size_bytes = ? AND mtime_ns = ?"
)
_T = TypeVar("_T")
_Unread = list[tuple[IndexedMessage, Path]]


class ContentIndexer:
    """Reads the content of a mailbox's messages."""

    def __init__(self, index: MailboxIndex, *, clock: Clock, limit: QueryTimeLimit) -> None:
        self._index = index
        self._clock = clock
        self._limit = limit
        self._until_s = clock.real_s() + _BACKGROUND_S

    def run(self, content_level: int, operation: Callable[[apsw.Cursor, FolderRows], _T]) -> _T:
        """Read what is missing up to the level that a query needs, then answer.

        Raises StoreUnavailableError, QueryTooLongError.
        """
        self._until_s = self._clock.real_s() + READ_TIME_MAX_S

        def run_if_indexed(cursor: apsw.Cursor, folders: FolderRows) -> _T | None:
            return None if _has_unread(cursor, content_level) else operation(cursor, folders)

        while (answer := self._index.query(run_if_indexed, self._limit)) is None:
            self.read(content_level)
        return answer

    def read(self, content_level: int) -> None:
        """Read what is missing up to a level; wait a moment if another thread reads.

        Raises what run() raises.
        """
        if not self._index.content_lock.acquire(timeout=_LOCK_TIMEOUT_S):
            self._check()
            return
        try:
            for number, (level, unread) in enumerate(self._batches(content_level)):
                if number:  # each request reads at least one message
                    self._check()
                self._read_files(level, unread)
        finally:
            self._index.content_lock.release()

    def look_up(
        self, message_ids: Sequence[str], words: Sequence[str], *, read_s: float
    ) -> "CopyLookup":
        """Look up messages, and which words they have.

        Messages that the index has not read are read first: at least one of them, and no more after
        `read_s`.
        """
        began_s, has_read = self._clock.real_s(), False
        self._until_s = began_s + read_s
        if self._index.content_lock.acquire(timeout=_LOCK_TIMEOUT_S):
            try:
                for level in _LEVELS:
                    where = f"WHERE content_level = ? AND message_id IN ({marks(message_ids)})"
                    while unread := self._unread(where, (level.number - 1, *message_ids)):
                        self._read_files(level, unread)
                        has_read = True
                        if self._is_over():
                            break
            finally:
                self._index.content_lock.release()
        took_s = self._clock.real_s() - began_s if has_read else 0.0
        return self._index.run(
            lambda cursor, _: _looked_up(cursor, message_ids, words, read_s=took_s)
        )

    def _batches(self, content_level: int) -> Iterator["tuple[_Level[Any], _Unread]"]:
        """Yield what is missing. The headers of new messages do not wait for all texts."""
        where = "WHERE content_level < 2 AND content_level = ? LIMIT ?"
        number = 0
        while number < content_level:
            if unread := self._unread(where, (number, _MESSAGES_AT_ONCE)):
                yield _LEVELS[number], unread
            number = 0 if unread else number + 1

    def _unread(self, where: str, values: Sequence[Any]) -> _Unread:
        def operation(cursor: apsw.Cursor, folders: FolderRows) -> _Unread:
            rows = select_rows(cursor, where, values)
            return [(row, Path(path_of(folders, row.location))) for row in rows]

        return self._index.run(operation)

    def _read_files(self, level: "_Level[_T]", unread: _Unread) -> None:
        """Read at least one of the files, and write their content."""
        read: list[tuple[IndexedMessage, _T | None]] = []
        size_bytes = 0
        for row, path in unread:
            read.append((row, self._read(level, row, path)))
            size_bytes += min(row.stat_data.size_bytes, CONTENT_BYTES_MAX)
            if size_bytes >= _BYTES_AT_ONCE or self._is_over():
                break

        def write(*_: object) -> None:
            with self._index.transaction() as cursor:
                for row, content in read:
                    if content is not None and _is_as_read(cursor, row, level.number):
                        level.write(cursor, row.uid, content)
                        self._index.misses.pop(row.uid, None)

        self._index.run(write)

    def _read(self, level: "_Level[_T]", row: IndexedMessage, path: Path) -> _T | None:
        """Read a message's file; return None if it was not found."""
        try:
            return level.read(row, path)
        except FileNotFoundError:  # the next update of the index finds it
            self._index.misses[row.uid] += 1
            return level.nothing if self._index.misses[row.uid] > _MISSES_MAX else None
        except OSError:
            return level.nothing

    def _is_over(self) -> bool:
        return self._limit.is_stopped or self._clock.real_s() > self._until_s

    def _check(self) -> None:
        if self._is_over():
            self._limit.check()  # its time has not begun: it is over only after stop()
            message = "The mailbox's messages are being read for the first search."
            raise StoreUnavailableError(message)


def _has_unread(cursor: apsw.Cursor, content_level: int) -> bool:
    where = "WHERE content_level < 2 AND content_level < ? LIMIT 1"
    return bool(content_level) and any(select_rows(cursor, where, (content_level,)))


class CopyFacts(Struct, frozen=True):
    """A message of a mailbox, and which of the requested words it has."""

    has_attachments: bool
    words: frozenset[str]


class CopyLookup(Struct, frozen=True):
    """What a mailbox has of some messages, by id.

    `unread` are messages that the index has not read yet. Reading took `read_s`.
    """

    found: Mapping[str, CopyFacts]
    unread: frozenset[str] = frozenset()
    read_s: float = 0.0


def _looked_up(
    cursor: apsw.Cursor, message_ids: Sequence[str], words: Sequence[str], *, read_s: float
) -> CopyLookup:
    sql = (
        "SELECT uid, message_id, has_attachments, content_level FROM message"
        f" WHERE message_id IN ({marks(message_ids)})"
    )
    rows = fetch(cursor, sql, message_ids)
    read = [row for row in rows if row[3] >= TEXT_LEVEL]
    words_by_uid = _words_of(cursor, [row[0] for row in read], words)
    return CopyLookup(
        {row[1]: CopyFacts(bool(row[2]), frozenset(words_by_uid[row[0]])) for row in read},
        frozenset(row[1] for row in rows if row[3] < TEXT_LEVEL),
        read_s,
    )


def _words_of(
    cursor: apsw.Cursor, uids: Sequence[int], words: Sequence[str]
) -> Mapping[int, set[str]]:
    """Return which of the words each text has."""
    words_by_uid: dict[int, set[str]] = {uid: set() for uid in uids}
    sql = "SELECT rowid FROM fulltext WHERE fulltext MATCH ? AND rowid BETWEEN ? AND ?"
    for word in words if uids else ():
        for (uid,) in fetch(cursor, sql, (words_expression(word), min(uids), max(uids))):
            if uid in words_by_uid:
                words_by_uid[uid].add(word)
    return words_by_uid


def find_words(texts: Sequence[TextData], words: Sequence[str]) -> list[set[str]]:
    """Return which of the words each text has, as the index of a mailbox finds them."""
    connection = open_database(None)
    try:
        cursor = connection.cursor()
        numbers = range(1, len(texts) + 1)
        for number, text in zip(numbers, texts, strict=True):
            cursor.execute(_INSERT_TEXT, (number, *text.texts))
        words_by_number = _words_of(cursor, numbers, words)
        return [words_by_number[number] for number in numbers]
    finally:
        connection.close()


def _is_as_read(cursor: apsw.Cursor, row: IndexedMessage, level: int) -> bool:
    body = row.stat_data
    values = (row.uid, level - 1, body.inode, body.size_bytes, body.mtime_ns)
    return cursor.execute(_IS_AS_READ, values).fetchone() is not None


def _write_header_data(cursor: apsw.Cursor, uid: int, facts: HeaderData) -> None:
    state = cursor.execute("SELECT state FROM message WHERE uid = ?", (uid,)).get
    facts = facts.with_state(read_state(state))
    columns = facts.columns
    cursor.execute(_HEADER_SQL, (*columns, uid))
    cursor.executemany(
        INSERT_ITEM, [(kind, address, uid, name) for kind, address, name in facts.items]
    )
    cursor.execute(
        "INSERT INTO trigram (rowid, subject_key, from_key, from_name_key) VALUES (?, ?, ?, ?)",
        (uid, *columns[:3]),
    )


def _write_text(cursor: apsw.Cursor, uid: int, words: TextData) -> None:
    cursor.execute(
        f"UPDATE message SET content_level = {TEXT_LEVEL}, has_attachments = ?, added_bytes = ?"
        " WHERE uid = ?",
        (words.has_attachments, words.added_bytes, uid),
    )
    cursor.execute(_INSERT_TEXT, (uid, *words.texts))


@dataclass(frozen=True, slots=True)
class _Level(Generic[_T]):
    """How one content level is read from a file and written under the row's uid.

    `nothing` is written for a file that cannot be read.
    """

    number: int
    read: Callable[[IndexedMessage, Path], _T]
    nothing: _T
    write: Callable[[apsw.Cursor, int, _T], None]


_LEVELS: tuple[_Level[Any], ...] = (
    _Level(
        HEADER_LEVEL,
        lambda row, path: read_header_data(path, message_id=row.message_id),
        NO_HEADER_DATA,
        _write_header_data,
    ),
    _Level(TEXT_LEVEL, lambda _, path: read_text(path), NO_TEXT, _write_text),
)
