"""Find messages by any of their names, by a search, or as a page of the list, and their rows.

A page begins at a place, so that its cost does not grow with the number of newer messages. Each
query is bounded; what a page did not reach is on the next one.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from relay.base.clock import ID_LENGTH, first_id_after, id_time_us
from relay.base.message.address import own_mailbox, shown_address
from relay.base.message.lifecycle import AT_REST, RecipientState, message_state
from relay.base.message.rest_id import read_rest_id
from relay.store.journeys.events import Step
from relay.store.journeys.message_list import (
    FINAL_STATE,
    LISTED_MAX,
    MAIL,
    REPORT,
    SCAN_MAX,
    FoundMessage,
    FoundPage,
    ListedRecipient,
    ListPosition,
    MessageSearch,
    MessageSummary,
    position_of,
)
from relay.store.spool.shared.columns import LOGIN, in_chunks
from relay.store.spool.shared.tables import Tables

_RECIPIENTS_MAX = 200_000  # rows that one page reads
_CHUNK, _SPARE = 200, 10
_SCANNED_AT_ONCE = 200
_ADDRESSES_MAX = 2000
_LATEST = "~"  # sorts after every id
_LOGIN = LOGIN.format("")
_FACTS = (
    f"id, account, reverse_path, subject, submission_id, size, client, source, {_LOGIN} AS login"
)
_Row = tuple[str, str, str, str, str, int, str, str, str]
_RecipientRow = tuple[int, str, str]  # number, address, state

# The beginning of a condition, by kind.
_OF_KIND = {"": "", MAIL: "source <> 'report' AND ", REPORT: "source = 'report' AND "}
_REPORTS = "SELECT id FROM message WHERE source = 'report' AND id < ? ORDER BY id DESC LIMIT ?"
# A submission may be accepted long after it was made: its id is then newer than its place.
_LATE = (
    f"SELECT * FROM (SELECT {_FACTS} FROM message"
    " WHERE source <> 'report' AND id >= ? ORDER BY id LIMIT ?) AS later"
    " WHERE submission_id <> '' AND (submission_id < ? OR submission_id NOT LIKE '%.1')"
)
_SUMMARY = (
    "SELECT id, reverse_path, submission_id, message_id, subject, size, client, account,"
    f" {_LOGIN} FROM message WHERE id = ?"
)
_STATES = (
    "SELECT message_id, state, count(*) FROM recipient WHERE message_id = ? AND added_by = ''"
    " GROUP BY message_id, state"
)
_FIRST_RECIPIENTS = (
    "SELECT message_id, number, address, state, status, reply FROM recipient"
    f" WHERE message_id = ? AND added_by = '' ORDER BY entry, number LIMIT {LISTED_MAX}"
)
_FIRST_ADDED = (
    "SELECT message_id, number, address, state, added_by FROM recipient"
    f" WHERE message_id = ? AND added_by <> '' ORDER BY number LIMIT {LISTED_MAX}"
)
_NEXT_ATTEMPT = (
    "SELECT message_id, min(retry_us) FROM entry WHERE message_id = ? AND state = 'deferred'"
    " GROUP BY message_id"
)
_NEWEST = "SELECT id FROM message ORDER BY id DESC LIMIT ?"
_ENDS_OF_NEWEST = f"SELECT count(*), min(id), max(id) FROM ({_NEWEST}) AS newest"
_BY_MESSAGE_ID = "SELECT id FROM message WHERE message_id IN (?, ?) AND message_id <> ''"
_BY_ID = (
    "SELECT ? UNION SELECT id FROM message WHERE submission_id <> ''"
    " AND submission_id >= ? AND submission_id < ?"
)
_FIRST = ".1"  # the end of the id of a draft's first submission, behind the id of the draft
_ENTRY = re.compile(rf"^([0-9a-z]{{{ID_LENGTH}}})-[0-9]{{1,9}}$", re.ASCII)
# The Graph id of a copy in a mailbox: no clock id begins with an "l". It is in the event of the
# attempt; those of older messages may be missed.
_COPY = re.compile(r"^l[a-z2-7]{15}$", re.ASCII)
_LOOKUP_OF_COPY = (
    "SELECT message.id, account FROM message JOIN event ON event.message_id = message.id"
    f" WHERE message.id IN ({_NEWEST}) AND step = ?"
    " AND detail LIKE ? LIMIT 1"
)


class _Matching:
    """Decides by their rows which messages match, and reads recipients where that is needed."""

    def __init__(self, tables: Tables, search: MessageSearch, account: str | None) -> None:
        self._tables = tables
        self._search = search
        self._strict = search.without_content()
        self._account = account
        self._whose = "" if search.added else " AND added_by = ''"
        self.recipients_left = _RECIPIENTS_MAX  # that it may still read

    def among(self, rows: Sequence[_Row]) -> list[FoundMessage]:
        """Return those that match, with what is needed to check conditions on their content."""
        strict = self._strict
        is_timed = strict.from_us or strict.until_us
        rows = [
            row
            for row in rows
            if self._account in (None, row[1])
            and (strict.indexed is None or row[0] in strict.indexed or self._is_report(row))
            and row[5] > (strict.larger_than_bytes or -1)
            and strict.matches_facts(row[2], row[3])
            and strict.matches_origin(row[8], row[6], row[4])
            and (not is_timed or strict.is_in_time(position_of(row[0], row[4]).at_us))
        ]
        if not rows or not (strict.needs_recipients or self._search.needs_content):
            return [FoundMessage(row[0], row[4]) for row in rows]
        if strict.state not in ("", FINAL_STATE) and not strict.to:
            rows = self._in_state(rows)
        is_known = strict.indexed is not None and not strict.needs_recipients
        asked_rows = [row for row in rows if not is_known or self._is_report(row)]
        recipients = self._recipients_of(asked_rows) if asked_rows else {}
        self.recipients_left -= sum(map(len, recipients.values()))
        messages = []
        for row in rows:
            own = recipients.get(row[0], ())
            asked = self._search if strict.indexed is not None and self._is_report(row) else strict
            if asked.matches_all(row[2], row[3], [recipient[1:] for recipient in own]):
                messages.append(self._found(row, own))
        return messages

    def _is_report(self, row: _Row) -> bool:
        """Whether it is a report that may match: no index has it, so that words are looked for in
        subject and addresses alone.
        """
        return row[7] == REPORT and not (self._search.has_attachment or self._search.tags)

    def _found(self, row: _Row, recipients: Sequence[_RecipientRow]) -> FoundMessage:
        queue_id, account, sender, subject, submission_id, *_ = row
        if not self._search.needs_content:
            return FoundMessage(queue_id, submission_id)
        words: tuple[str, ...] = ()
        if self._search.indexed is None:
            words = self._search.words_of_text(sender, subject, [to[1] for to in recipients])
        return FoundMessage(
            queue_id,
            submission_id,
            account=account,
            words_left=words,
            recipients=tuple(recipients[:LISTED_MAX]),
        )

    def _in_state(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """Return the rows with a recipient in the state."""
        where, values = self._tables.among("message_id", [row[0] for row in rows])
        matches = self._tables.fetch(
            f"SELECT DISTINCT message_id FROM recipient WHERE {where}{self._whose} AND state = ?",
            (*values, self._strict.state),
        )
        ids = {queue_id for (queue_id,) in matches}
        return [row for row in rows if row[0] in ids]

    def _recipients_of(self, rows: Sequence[_Row]) -> Mapping[str, Sequence[_RecipientRow]]:
        """Return the recipients by queue id."""
        recipients: dict[str, list[_RecipientRow]] = defaultdict(list)
        where, values = self._tables.among("message_id", [row[0] for row in rows])
        for queue_id, number, address, state in self._tables.fetch(
            "SELECT message_id, number, address, state FROM recipient"
            f" WHERE {where}{self._whose} LIMIT ?",
            (*values, max(self.recipients_left, 0)),
        ):
            recipients[queue_id].append((number, address, state))
        return recipients


class _PageSearch:
    """Reads messages in the order of their ids, and orders them by their places.

    No message has a place behind its id, so that those before the next id are complete.
    """

    def __init__(
        self,
        tables: Tables,
        search: MessageSearch,
        *,
        account: str | None,
        before: ListPosition | None,
        limit: int,
    ) -> None:
        self._tables = tables
        self._matching = _Matching(tables, search, account)
        self._from_us = search.from_us
        self._indexed = search.indexed
        self._kind = search.kind
        self._before = before
        self._limit = limit
        self._waiting: list[tuple[tuple[int, str], FoundMessage]] = []
        self._found: list[FoundMessage] = []

    def find(self) -> FoundPage:
        """Return the messages that match from the place on."""
        begin = _LATEST
        if self._before is not None:
            begin = first_id_after(self._before.at_us)
            late = self._tables.fetch(_LATE, (begin, SCAN_MAX, begin))
            self._take([row for row in late if _is_before(row[4], begin, self._before.at_us)])
        read = 0
        for chunk in self._chunks(begin):
            read += len(chunk)
            self._take(chunk)
            last_us = id_time_us(chunk[-1][0]) or 0
            self._move(last_us)
            if len(self._found) >= self._limit:
                return FoundPage(tuple(self._found[: self._limit]), None)
            if last_us < self._from_us:
                break  # no place is behind its id
            if self._matching.recipients_left <= 0 or read >= SCAN_MAX:
                return FoundPage(tuple(self._found), ListPosition(last_us, ""))
        self._move(-1)
        return FoundPage(tuple(self._found[: self._limit]), None)

    def _chunks(self, begin: str) -> Iterator[list[_Row]]:
        """Yield the rows with ids before `begin`, newest first."""
        size = min(self._limit + _SPARE, _CHUNK)  # enough if all match
        if self._indexed is not None:
            reports = self._tables.fetch(_REPORTS, (begin, SCAN_MAX)) if self._kind != MAIL else ()
            # in this order, which sorts fast
            ids = [queue_id for queue_id in self._indexed if queue_id < begin]
            ids = sorted(ids + [queue_id for (queue_id,) in reports], reverse=True)
            for at, end in pairwise((0, *range(size, len(ids), _CHUNK), len(ids))):
                where, values = self._tables.among("id", ids[at:end])
                sql = f"SELECT {_FACTS} FROM message WHERE {where} ORDER BY id DESC"
                if rows := self._tables.fetch(sql, values):
                    yield rows
            return
        while True:
            rows = self._tables.fetch(
                f"SELECT {_FACTS} FROM message WHERE {_OF_KIND[self._kind]}id < ?"
                " ORDER BY id DESC LIMIT ?",
                (begin, size),
            )
            if rows:
                yield rows
            if len(rows) < size:
                return
            begin, size = rows[-1][0], _CHUNK

    def _take(self, rows: Sequence[_Row]) -> None:
        for message in self._matching.among(rows):
            position = position_of(message.queue_id, message.submission_id)
            if self._before is None or position.order > self._before.order:
                heapq.heappush(self._waiting, (position.order, message))

    def _move(self, until_us: int) -> None:
        """Move the messages whose places are after `until_us` into the page."""
        while self._waiting and -self._waiting[0][0][0] > until_us:
            if len(self._found) >= self._limit:
                return
            self._found.append(heapq.heappop(self._waiting)[1])


def _is_before(submission_id: str, begin: str, at_us: int) -> bool:
    """Whether a submission was made before a place: a first one has its time in its id, a later one
    behind the point.
    """
    suffix = submission_id[ID_LENGTH:]
    if suffix == _FIRST:
        return submission_id < begin
    return not suffix[1:].isdecimal() or int(suffix[1:]) <= at_us


def find_queue_ids(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """SpoolHistory.find_queue_ids; also for an entry's ID-NUMBER."""
    key = _ENTRY.sub(r"\1", key)
    where, values = naming(key)
    sql = f"SELECT id, account FROM message WHERE id IN ({where})"
    rows = tables.fetch(sql, values) if key != "last" else []
    if not rows and _COPY.match(key):
        rows = tables.fetch(
            _LOOKUP_OF_COPY, (SCAN_MAX, int(Step.DELIVERY), f'%"graph_id":"{key}"%')
        )
    ids = [row[0] for row in rows if account in (None, row[1])]
    if ids or (key != "last" and "@" not in key):
        return sorted(ids, reverse=True)[:limit]
    return _scan(tables, key, account=account, limit=limit)


def find_page(
    tables: Tables,
    search: MessageSearch,
    *,
    account: str | None,
    before: ListPosition | None,
    limit: int,
) -> FoundPage:
    """SpoolHistory.find_page."""
    return _PageSearch(tables, search, account=account, before=before, limit=limit).find()


def summaries(
    tables: Tables, queue_ids: Sequence[str], *, account: str | None, added: bool = False
) -> Sequence[MessageSummary]:
    """SpoolHistory.summaries."""
    rows = [
        row
        for row in tables.fetch_each(_SUMMARY, [(queue_id,) for queue_id in queue_ids])
        if account in (None, row[7])
    ]
    keys = [(row[0],) for row in rows]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, list[Any]] = defaultdict(list)
    for queue_id, *recipient in tables.fetch_each(_FIRST_RECIPIENTS, keys):
        first[queue_id].append(recipient)
        counts[queue_id][recipient[2]] += 1
    more = [(queue_id,) for queue_id, recipients in first.items() if len(recipients) == LISTED_MAX]
    for queue_id, state, number in tables.fetch_each(_STATES, more):
        counts[queue_id][state] = number
    copies: dict[str, list[ListedRecipient]] = defaultdict(list)
    for queue_id, *copy in tables.fetch_each(_FIRST_ADDED, keys) if added else ():
        copies[queue_id].append(ListedRecipient(*copy))
    waiting = [(queue_id,) for queue_id, states in counts.items() if not AT_REST.issuperset(states)]
    retries = dict(tables.fetch_each(_NEXT_ATTEMPT, waiting))
    listed = []
    for queue_id, sender, submission_id, message_id, subject, size, client, _, login in rows:
        recipients = sorted(first[queue_id])
        state = str(message_state([RecipientState(name) for name in counts[queue_id]]))
        status, reply = _deciding(tables, queue_id, state=state, first=recipients)
        listed.append(
            MessageSummary(
                position=position_of(queue_id, submission_id),
                id=queue_id,
                submission_id=submission_id or None,
                message_id=message_id,
                sender=sender,
                subject=subject,
                state=state,
                recipients=tuple(ListedRecipient(*recipient[:3]) for recipient in recipients),
                recipient_count=sum(counts[queue_id].values()),
                size_bytes=size,
                client=client,
                login=login,
                status=status,
                reply=reply,
                next_attempt_us=retries.get(queue_id),
                added=tuple(copies[queue_id]),
            )
        )
    return listed


def accepted_submissions(tables: Tables, submission_ids: Sequence[str]) -> Sequence[str]:
    """SpoolHistory.accepted_submissions."""
    where, values = tables.among("submission_id", submission_ids)
    rows = tables.fetch(
        f"SELECT submission_id FROM message WHERE {where} AND submission_id <> ''", values
    )
    return [name for (name,) in rows]


def count_states(
    tables: Tables, *, account: str | None, limit: int
) -> tuple[int, Mapping[str, int]]:
    """SpoolHistory.count_states."""
    if account is None:
        [(total, *ends)] = tables.fetch(_ENDS_OF_NEWEST, (limit,))
        where, values = "{} BETWEEN ? AND ?", tuple(ends)
    else:
        ids = _newest(tables, account=account, limit=limit)
        total, (where, values) = len(ids), tables.among("{}", ids)
    rows = tables.fetch(
        "SELECT state, count(DISTINCT message_id) FROM recipient"
        f" WHERE {where.format('message_id')} AND added_by = '' GROUP BY state"
        f" UNION ALL SELECT source, count(*) FROM message WHERE {where.format('id')}"
        " AND source = 'report' GROUP BY source",
        (*values, *values),
    )
    return total, dict(rows)


def recent_addresses(tables: Tables, *, account: str | None, limit: int) -> Sequence[str]:
    """SpoolHistory.recent_addresses."""
    ids = _newest(tables, account=account, limit=limit)
    recipients, senders = tables.among("message_id", ids), tables.among("id", ids)
    rows = tables.fetch(
        "SELECT min(address) FROM (SELECT address, message_id,"
        " CASE state WHEN 'delivered' THEN 1 ELSE 0 END AS is_local"
        f" FROM recipient WHERE {recipients[0]} AND added_by = ''"
        " UNION ALL SELECT reverse_path, id, CASE account WHEN '' THEN 0 ELSE 1 END"
        f" FROM message WHERE {senders[0]}) AS known WHERE address <> '' GROUP BY lower(address)"
        " ORDER BY max(is_local) DESC, max(message_id) DESC LIMIT ?",
        (*recipients[1], *senders[1], _ADDRESSES_MAX),
    )
    return [address for (address,) in rows]


def _deciding(
    tables: Tables, queue_id: str, *, state: str, first: Sequence[Any]
) -> tuple[str, str]:
    """Return status and reply of a recipient in the state of the message."""
    for _, _, one_state, status, reply in first:
        if one_state == state:
            return status, reply
    row = tables.fetch_one(
        "SELECT status, reply FROM recipient WHERE message_id = ? AND added_by = ''"
        " AND state = ? LIMIT 1",
        (queue_id, state),
    )
    return (row[0], row[1]) if row is not None else ("", "")


def _newest(tables: Tables, *, account: str | None, limit: int) -> list[str]:
    """Return the ids of the newest messages."""
    rows = tables.each(
        "SELECT id, account FROM message ORDER BY id DESC LIMIT ?",
        (SCAN_MAX if account else limit,),
    )
    own = (queue_id for queue_id, owner in rows if account in (None, owner))
    return list(islice(own, limit))


def naming(name: str) -> tuple[str, tuple[str, ...]]:
    """Return a query for the ids of messages with this name: a queue id, Message-ID, submission id,
    or draft id (the part of a submission id before the point).
    """
    name, _ = read_rest_id(name)
    if "@" in name or name.startswith("<"):
        bare = name.removeprefix("<").removesuffix(">")
        return _BY_MESSAGE_ID, (bare, f"<{bare}>")
    low, high = (name, name + "\1") if "." in name else (name + ".", name + "/")
    return _BY_ID, (name, low, high)


def _scan(tables: Tables, key: str, *, account: str | None, limit: int) -> list[str]:
    """Scan the newest messages by sender or recipient; older ones may be missed."""
    ids: list[str] = []
    address = own_mailbox(key)
    rows = tables.each(
        "SELECT id, account, reverse_path FROM message WHERE source <> 'report'"
        " ORDER BY id DESC LIMIT ?",
        (SCAN_MAX,),
    )
    for chunk in in_chunks(rows, _SCANNED_AT_ONCE):
        own = {row[0]: own_mailbox(row[2]) for row in chunk if account in (None, row[1])}
        named = set(own) if key == "last" else _sent_to(tables, tuple(own), address)
        ids += [queue_id for queue_id in own if own[queue_id] == address or queue_id in named]
        if len(ids) >= limit:
            break
    return ids[:limit]


def _sent_to(tables: Tables, queue_ids: Sequence[str], address: str) -> set[str]:
    """Return those of these messages that have this recipient, not added by policy."""
    where, values = tables.among("message_id", queue_ids)
    rows = tables.fetch(
        f"SELECT DISTINCT message_id FROM recipient WHERE {where} AND lower(address) IN (?, ?)"
        " AND added_by = ''",
        (*values, address, shown_address(address)),
    )
    return {queue_id for (queue_id,) in rows}
