"""The index of all texts of a development relay: an SQLite file next to the spool.

It is a cache of the spool's messages. It is built when it is first used, is written after the 250,
and is never synced. Terms of three characters and more are found by trigrams and then compared.
Shorter terms are looked for in every text. The first MiB of each message is read. When the disk
rejects the index, it is closed for 10 s. After another error of SQLite it is built anew: at once,
then after 1, 2, 4 … 60 minutes. Meanwhile searches of pages read mailboxes as a service does.

Tags are the categories of all copies of a message. The tags in its fields Keywords and X-Tags are
set when it is indexed. The copies get those of X-Tags as soon as they exist.
"""

import asyncio
import json
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import accumulate, islice, starmap
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from relay.base.clock import id_time_us
from relay.base.message.address import own_mailbox
from relay.base.message.content import Content, octets_of
from relay.base.message.header import with_first_fields
from relay.base.message.lifecycle import RecipientState
from relay.base.message.properties import EmailAddress
from relay.base.observe.logs import get_logger, inherit
from relay.base.task_set import TaskSet, shielded
from relay.development.removal import development_spool
from relay.formats.html_text import without_tags
from relay.formats.read_mime import read_mime
from relay.front_door.api.message_source import MessageSources, preview_of
from relay.operation.app.foundation import Foundation
from relay.store.journeys import message_list
from relay.store.journeys.spool_history import CONTENTS_MAX
from relay.store.mailbox.errors import StoreError
from relay.store.mailbox.index import database
from relay.store.mailbox.index.content_index import CONTENT_BYTES_MAX, join_addresses
from relay.store.mailbox.mailbox_list import ReadFlags
from relay.store.mailbox.message_file import MessageFile, delivered_id, is_delivered_id
from relay.store.spool.types import SpoolError

_VERSION = 4
_BATCH, _BATCH_BYTES = 250, 8 << 20  # messages that are read together
_PAUSE_S = 0.5
_WAIT_S = 5.0  # how long a search waits for messages accepted before it
_QUERY_S = 10.0
_CLOSED_S = 10.0  # after an error of the disk
_REBUILD_MIN_S, _REBUILD_MAX_S = 60.0, 3600.0  # between two damages; the pause doubles
_STEPS_BETWEEN_CHECKS = 10_000
_TRIGRAMS_MAX = 100  # trigrams of a term that are looked up
_COLUMNS = ", ".join(message_list.FIELDS)
_SCHEMA = f"""
    CREATE TABLE message (
        number      INTEGER PRIMARY KEY,  -- of its text
        queue_id    TEXT NOT NULL,
        accepted_us INTEGER NOT NULL,
        size_bytes  INTEGER NOT NULL,
        attachments INTEGER NOT NULL,
        inline      INTEGER NOT NULL,
        copies      TEXT NOT NULL,  -- their ids, with blanks between
        preview     BLOB NOT NULL,  -- JSON; empty: its content was not there
        UNIQUE (queue_id, copies)  -- is:unread reads all of them
    );
    CREATE VIRTUAL TABLE text USING fts5(
        {_COLUMNS}, tokenize = 'trigram case_sensitive 1', detail = column, columnsize = 0
    );
    CREATE TABLE tag (
        queue_id TEXT NOT NULL, folded TEXT NOT NULL, name TEXT NOT NULL,
        PRIMARY KEY (queue_id, folded)
    ) WITHOUT ROWID;
    CREATE INDEX tag_folded ON tag (folded, name);
    PRAGMA user_version = {_VERSION};
"""
_FOUND = "SELECT queue_id, copies FROM message WHERE {} ORDER BY queue_id DESC"
_INSERT = (
    "INSERT INTO message (queue_id, accepted_us, size_bytes, attachments, inline, copies, preview)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_VALUES = ", ?" * len(message_list.FIELDS)
_INSERT_TEXT = f"INSERT INTO text (rowid, {_COLUMNS}) VALUES (?{_VALUES})"
_REMOVE_TEXT = "DELETE FROM text WHERE rowid = (SELECT number FROM message WHERE queue_id = ?)"
_ACCEPTED_IN = _FOUND.format("accepted_us / 1000000 IN (SELECT value FROM json_each(?))")
_ALL = ("", 0)  # in `_restated`: any copy, as before the index existed
_ACCENTS = re.compile("[\u0300-\u036f]")
# the rows of the tables message and text; the tags; whether some tags are of X-Tags
_Row = tuple[tuple[Any, ...], tuple[str, ...], tuple[str, ...], bool]
_BEFORE_COPIES = (RecipientState.QUEUED, RecipientState.DEFERRED, RecipientState.HELD)
_TAGS_AT_ONCE = 200
_T = TypeVar("_T")
_log = get_logger("development")


def folded(text: str) -> str:
    """Return a text in the form in which texts are compared.

    It has no case, accents or NUL, and a blank for each white space.
    """
    text = " ".join(text.replace("\0", "\ufffd").casefold().split())
    if text.isascii():
        return text
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    return unicodedata.normalize("NFC", bare).encode("utf-8", "replace").decode()


class SearchIndex:
    """A TextIndex. Call run() in a task, and close() at the end."""

    def __init__(self, path: Path, base: Foundation, sources: MessageSources) -> None:
        self._path = path
        self._base = base
        unread_in = base.store.messages.index.unread
        self._flags = ReadFlags(base.settings.mailboxes.root, base.clock, unread_in)
        base.store.messages.syncs.on_sync = self._flags.note
        self._sources = sources
        self._passes = TaskSet()  # one that runs, and one that waits for its turn
        self._next: asyncio.Task[None] | None = None  # the pass that waits
        self._turn = asyncio.Lock()
        self._tagging = asyncio.Lock()  # held while tags are read and written
        self._thread = ThreadPoolExecutor(1, "search-index", inherit())  # has the connection
        self._connection: apsw.Connection | None = None
        self._indexed: set[str] = set()  # queue ids
        self._untagged: dict[str, Sequence[str]] = {}  # X-Tags of messages without copies yet
        self._restated: set[tuple[str, int]] = set()  # id of a copy, second of its file
        self._others: set[str] = set()  # not indexed, such as reports, in the last tags_of()
        # what the thread keeps about its failures, by clock.monotonic()
        self._opens_s = self._damaged_s = -math.inf
        self._pause_s = 0.0
        self._reason = ""  # of the last failure, until a write succeeds

    @property
    def count(self) -> int:
        """See TextIndex."""
        return len(self._indexed)

    async def run(self) -> None:
        """Index new messages, and remove former ones, until cancelled."""
        while True:
            seen = self._base.changes.count
            try:
                await self._catch_up()
            except message_list.IndexFailedError:
                left_s = max(0.0, self._opens_s - self._base.clock.monotonic())
                await self._base.clock.sleep(left_s, slack_s=math.inf)  # sleeps: it is closed
                continue
            except SpoolError as error:
                _log.warning("messages not indexed", error=str(error))
            await self._base.changes.wait_beyond(seen)
            await asyncio.sleep(_PAUSE_S)  # real time: others may follow

    async def close(self) -> None:
        """Complete the current write, and close the file."""
        await self._passes.end()
        with suppress(message_list.IndexFailedError):
            await self._do(self._end)
        self._thread.shutdown()

    async def search(self, search: message_list.TextSearch) -> message_list.TextAnswer:
        """See TextIndex."""
        is_complete = False
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_S):  # real time: a disk
                await self._catch_up()
                is_complete = True
        rows = await self._do(partial(self._query, search))
        if search.is_unread:
            unread = await asyncio.to_thread(self._flags.unread)
            rows = [
                row for row in rows if row[1] in unread or not unread.isdisjoint(row[1].split())
            ]
        return message_list.TextAnswer([queue_id for queue_id, _ in rows], is_complete)

    async def tags_of(self, queue_ids: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """See TextIndex."""
        missing = set(queue_ids) - self._indexed
        if self._restated or self._tagging.locked() or not missing <= self._others:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):  # real time: a page is awaited
                    await self._catch_up()
                    self._others = missing - self._indexed
        where = f"WHERE queue_id IN ({database.marks(queue_ids)}) ORDER BY folded"
        sql = f"SELECT queue_id, name FROM tag {where}"
        tags: dict[str, list[str]] = {}
        for queue_id, name in await self._do(partial(self._fetch, sql, queue_ids)):
            tags.setdefault(queue_id, []).append(name)
        return tags

    async def tags(self) -> Mapping[str, int]:
        """See TextIndex."""
        await self._catch_up()
        sql = "SELECT min(name), count(*) FROM tag GROUP BY folded ORDER BY folded"
        return dict(await self._do(partial(self._fetch, sql)))

    async def set_tags(self, tags: Mapping[str, Sequence[str]]) -> None:
        """See TextIndex."""
        await self._catch_up()
        async with self._tagging:
            await self._tag(sorted(self._indexed & tags.keys()), tags)

    def note_state(self, copy: MessageFile) -> None:
        """Record that a client has changed the state of a copy. Any thread may call it."""
        self._restated.add((copy.message_id, copy.name.seconds))

    async def _tag(
        self, names: Sequence[str], new_tags: Mapping[str, Sequence[str]], *, is_first: bool = False
    ) -> None:
        """Set tags of messages and of their copies, and take over the categories of other copies.

        Tags of messages whose copies are still to come are kept for them.
        """
        for at in range(0, len(names), _TAGS_AT_ONCE):
            batch = names[at : at + _TAGS_AT_ONCE]
            rows = await self._base.spool.summaries(batch, account=None)
            categories = await self._sources.copies.categories(rows, new_tags, is_first=is_first)
            coming = {row.name for row in rows if row.state in _BEFORE_COPIES}
            tags = {name: new_tags[name] for name in batch if name in new_tags} | categories
            await self._do(partial(self._write_tags, tags))
            for name in new_tags.keys() & batch:  # another one may have been indexed meanwhile
                self._untagged.pop(name, None)
            self._untagged |= {
                name: new_tags[name] for name in batch if name in new_tags and name in coming
            }

    async def _follow_copies(self) -> None:
        """Tag copies that have arrived, and take over what clients have set."""
        if self._untagged:
            await self._tag(list(self._untagged), dict(self._untagged), is_first=True)
        restated, self._restated = self._restated, set()
        names = set(self._indexed) if _ALL in restated else set()
        seconds = [second for copy_id, second in restated if is_delivered_id(copy_id)]
        try:
            rows = await self._do(partial(self._fetch, _ACCEPTED_IN, (json.dumps(seconds),)))
            names.update(queue_id for queue_id, _ in rows)
            for copy_id in {
                copy_id for copy_id, _ in restated - {_ALL} if not is_delivered_id(copy_id)
            }:
                if journey := await self._base.journeys.journey(copy_id, account=None):
                    names.add(journey.id or "")
            await self._tag(sorted(names & self._indexed), {})
        except BaseException:
            self._restated |= restated
            raise

    async def previews(self, queue_ids: Sequence[str]) -> Mapping[str, message_list.MessagePreview]:
        """See TextIndex."""
        known = [queue_id for queue_id in queue_ids if queue_id in self._indexed]
        sql = f"SELECT queue_id, preview FROM message WHERE queue_id IN ({database.marks(known)})"
        rows = await self._do(partial(self._fetch, sql, known)) if known else ()
        decode = partial(msgspec.json.decode, type=message_list.MessagePreview)
        return {queue_id: decode(preview) for queue_id, preview in rows if preview}

    async def flags(self, ids_by_mailbox: Mapping[str, Collection[str]]) -> Mapping[str, bool]:
        """See TextIndex."""
        return await asyncio.to_thread(self._flags.of, ids_by_mailbox)

    async def _catch_up(self) -> None:
        """Index the messages that the spool has now, and remove the others.

        All who call this before the next pass begins share it. It goes on when they have left.
        """
        if self._next is None:
            self._next = self._passes.start(self._pass(), name="search index")
        await shielded(self._next)

    async def _pass(self) -> None:
        async with self._turn:
            self._next, damaged_s = None, self._damaged_s
            await self._do(self._open)
            ids = await development_spool(self._base.spool).accepted_ids()
            if not ids:  # no copies are left
                self._restated.clear()
            if gone := self._indexed - ids:
                await self._do(partial(self._remove, gone))
            missing = sorted(ids - self._indexed)
            for at in range(0, len(missing), _BATCH):
                await self._add(missing[at : at + _BATCH])
            if self._damaged_s != damaged_s:  # a search has met damage
                raise message_list.IndexFailedError("the search index is built anew")
            async with self._tagging:
                if self._untagged or self._restated:
                    with suppress(StoreError):
                        await self._follow_copies()

    async def _add(self, queue_ids: Sequence[str]) -> None:
        """Index messages. Their contents are in the queue or in mailboxes.

        Many are read at once, because each call waits for its turn while a relay receives a burst.
        """
        spool = self._base.spool
        summaries, recipients = await asyncio.gather(
            spool.summaries(queue_ids, account=None), development_spool(spool).addresses(queue_ids)
        )
        while summaries:
            batch, summaries = _split(summaries)
            names = [row.name for row in batch]
            parts = [names[at : at + CONTENTS_MAX] for at in range(0, len(names), CONTENTS_MAX)]
            answers = await asyncio.gather(*map(spool.read_contents, parts))
            contents = {name: content for part in answers for name, content in part.items()}
            others = [row for row in batch if row.name not in contents]
            with suppress(StoreError, OSError):
                contents |= await self._sources.copies.as_delivered(others)
            others = [row for row in others if row.name not in contents]
            sources = await asyncio.gather(*map(self._source, others))
            contents |= {row.name: content for row, content in zip(others, sources, strict=True)}
            read = [(row, recipients.get(row.name, ()), contents[row.name]) for row in batch]
            rows = await asyncio.to_thread(list, starmap(_row, read))
            self._untagged |= {facts[0]: tags for facts, _, tags, is_new in rows if is_new}
            await self._do(partial(self._write, rows))

    async def _source(self, row: message_list.MessageSummary) -> Content:
        """Return the content of a message that is no longer in the queue."""
        with suppress(SpoolError, StoreError, OSError):  # without it, the spool's row is indexed
            return await self._sources.of_row(row) or b""
        return b""

    async def _do(self, operation: Callable[[], _T]) -> _T:
        """Run an operation in the thread that has the connection. Raises IndexFailedError."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, operation)

    def _run(self, operation: Callable[[], _T]) -> _T:
        now_s = self._base.clock.monotonic()
        if now_s < self._opens_s:
            raise message_list.IndexFailedError(self._reason)
        try:
            with database.translate_errors():
                return operation()
        except (database.IndexDamagedError, database.IndexUnusableError, OSError) as error:
            end, pause_s = self._end, _CLOSED_S
            if isinstance(error, database.IndexDamagedError):
                end, is_again = self._unlink, now_s - self._damaged_s < 2 * _REBUILD_MAX_S
                longer_s = min(max(_REBUILD_MIN_S, 2 * self._pause_s), _REBUILD_MAX_S)
                self._damaged_s = now_s
                pause_s = self._pause_s = longer_s if is_again else 0.0
            self._opens_s = now_s + pause_s
            with suppress(apsw.Error, OSError):
                end()
            if (reason := f"the search index is closed: {error}") != self._reason:
                self._reason = reason
                _log.warning("search index closed", error=str(error))
            raise message_list.IndexFailedError(reason) from error

    def _open(self) -> apsw.Connection:
        if self._connection is not None:
            return self._connection
        connection = self._connect()
        if self._fetch("PRAGMA user_version") == [(_VERSION,)]:
            self._indexed = {name for (name,) in self._fetch("SELECT queue_id FROM message")}
            return connection
        self._unlink()
        connection = self._connect()
        connection.execute(_SCHEMA)
        self._restated.add(_ALL)
        return connection

    def _connect(self) -> apsw.Connection:
        self._path.touch(0o600)  # it contains mail; its WAL gets the same mode
        self._connection = apsw.Connection(str(self._path))
        self._connection.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF")
        return self._connection

    def _fetch(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._open().execute(sql, values).fetchall()

    def _query(self, search: message_list.TextSearch) -> list[tuple[str, str]]:
        """Return all messages that match, newest first, with the ids of their copies.

        Flags are not compared here.
        """
        connection = self._open()
        where, values = _condition(search)
        until_s = self._base.clock.real_s() + _QUERY_S
        connection.set_progress_handler(
            lambda: self._base.clock.real_s() > until_s, _STEPS_BETWEEN_CHECKS
        )
        try:
            return self._fetch(_FOUND.format(where), values)
        except apsw.InterruptError:
            raise message_list.IndexFailedError("the search takes too long") from None
        finally:
            connection.set_progress_handler(None)

    def _write(self, rows: Sequence[_Row]) -> None:
        with self._open() as connection:
            for facts, texts, tags, _ in rows:
                connection.execute(_INSERT, facts)
                connection.execute(_INSERT_TEXT, (connection.last_insert_rowid(), *texts))
                if tags:
                    self._write_tags({facts[0]: tags})
        self._indexed.update(facts[0] for facts, *_ in rows)
        self._reason = ""

    def _write_tags(self, tags: Mapping[str, Iterable[str]]) -> None:
        with self._open() as connection:
            connection.executemany(
                "DELETE FROM tag WHERE queue_id = ?", [(queue_id,) for queue_id in tags]
            )
            connection.executemany(
                "INSERT OR IGNORE INTO tag VALUES (?, ?, ?)",
                [(name, tag.casefold(), tag) for name, names in tags.items() for tag in names],
            )

    def _remove(self, gone: set[str]) -> None:
        """Remove messages."""
        if gone == self._indexed:  # faster than row by row
            self._unlink()
            self._open()
            return
        ids = [(queue_id,) for queue_id in gone]
        with self._open() as connection:
            connection.executemany(_REMOVE_TEXT, ids)
            connection.executemany("DELETE FROM tag WHERE queue_id = ?", ids)
            connection.executemany("DELETE FROM message WHERE queue_id = ?", ids)
        self._indexed -= gone

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _unlink(self) -> None:
        with suppress(apsw.Error):
            self._end()
        self._indexed = set()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)


def _split(
    summaries: Sequence[message_list.MessageSummary],
) -> tuple[Sequence[message_list.MessageSummary], Sequence[message_list.MessageSummary]]:
    """Return the first messages, whose texts fit into memory together, and the others."""
    sizes = accumulate(min(row.size_bytes, CONTENT_BYTES_MAX) for row in summaries)
    count = max(1, sum(size <= _BATCH_BYTES for size in sizes))
    return summaries[:count], summaries[count:]


def _row(summary: message_list.MessageSummary, recipients: Iterable[str], content: Content) -> _Row:
    """Return what the index stores of a message."""
    try:
        raw = octets_of(content).read(0, CONTENT_BYTES_MAX)
        first = with_first_fields(raw)
        read = read_mime(first)
        preview = msgspec.json.encode(preview_of(read, octets_of(first))) if raw else b""
    except Exception:  # noqa: BLE001 - the others must be indexed
        _log.exception("text not read", queue_id=summary.id)
        raw, read, preview = b"", read_mime(b""), b""
    properties = read.properties
    named = {
        own_mailbox(address.address)
        for address in (*properties.to, *properties.cc, *properties.bcc)
    }
    unnamed = [EmailAddress(address) for address in recipients if own_mailbox(address) not in named]
    return_path = [EmailAddress(summary.sender), *filter(None, (properties.sender,))]
    texts = {
        "message_id": summary.message_id,
        "sender": join_addresses(filter(None, (properties.from_,))),
        "recipient": join_addresses(properties.to),
        "cc": join_addresses(properties.cc),
        "bcc": join_addresses((*properties.bcc, *unnamed)),
        "reply_to": join_addresses(properties.reply_to),
        "return_path": join_addresses(return_path),
        "subject": properties.subject if raw else summary.subject,
        "attachment": " ".join(attachment.name for attachment in read.attachments),
        "body": without_tags(properties.body)
        if properties.body_type == "html"
        else properties.body,
    }
    inline = sum(attachment.inline for attachment in read.attachments)
    attachments = len(read.attachments) - inline
    ids = (delivered_id(f"{summary.name}-{recipient.number}") for recipient in summary.recipients)
    facts = (
        summary.name,
        id_time_us(summary.name) or 0,
        summary.size_bytes,
        attachments,
        inline,
        " ".join(ids),
        preview,
    )
    its_own = [name.encode("utf-8", "replace").decode() for name in properties.categories]
    tags = {name.casefold(): name for name in its_own}
    fields = [
        text for name, text in properties.internet_message_headers if name.lower() == "x-tags"
    ]
    for tag in ",".join(fields[:1]).split(",")[: message_list.TAGS_MAX]:
        with suppress(ValueError):
            tags |= {name.casefold(): name for name in message_list.split_tags(tag)}
    texts_folded = tuple(folded(texts[name]) for name in message_list.FIELDS)
    return facts, texts_folded, tuple(tags.values()), len(tags) > len(its_own)


def _condition(search: message_list.TextSearch) -> tuple[str, list[Any]]:
    """Return the conditions on a row of `message` as SQL, and the values for its marks."""
    parts = ["1"]
    values: list[Any] = []
    for term in search.terms:
        part, its_own = _term_condition(term)
        parts.append(part)
        values += its_own
    for number in search.numbers:
        parts.append(f"{number.name} {'NOT ' * number.is_excluded}BETWEEN ? AND ?")
        values += (number.low, number.high)
    for tag in search.tags:
        where = ""
        if tag.name:
            where = " WHERE folded = ?"
            values.append(tag.name.casefold())
        parts.append(f"queue_id {'NOT ' * tag.is_excluded}IN (SELECT queue_id FROM tag{where})")
    return " AND ".join(parts), values


def _term_condition(term: message_list.SearchTerm) -> tuple[str, list[str]]:
    text = folded(term.text)
    where = " OR ".join(f"instr({field}, ?)" for field in term.fields)
    values = [text] * len(term.fields)
    trigrams = dict.fromkeys(text[at : at + 3] for at in range(len(text) - 2))
    if trigrams:
        quoted = ('"{}"'.format(trigram.replace('"', '""')) for trigram in trigrams)
        every = " AND ".join(islice(quoted, _TRIGRAMS_MAX))
        where = f"text MATCH ? AND ({where})"
        values.insert(0, f"{{{' '.join(term.fields)}}} : ({every})")
    return f"number {'NOT ' * term.is_excluded}IN (SELECT rowid FROM text WHERE {where})", values
