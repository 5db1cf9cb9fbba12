"""Find the messages of one page of the list, or of a search.

A page begins at a place, so that its cost does not grow with the number of newer messages. Each
query is bounded; messages that a page did not reach are on the next page.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from relay.base.clock import ID_LENGTH, first_id_after, id_time_us
from relay.base.message.status import SUPPRESSED
from relay.store.journeys.message_list import (
    FINAL_STATE,
    LISTED_MAX,
    MAIL,
    REPORT,
    SCAN_MAX,
    FoundMessage,
    FoundPage,
    ListPosition,
    MessageSearch,
    position_of,
)
from relay.store.spool.shared.columns import IS_COMPLAINT, LOGIN
from relay.store.spool.shared.tables import Tables

_RECIPIENTS_MAX = 200_000  # rows that one page reads
_CHUNK, _SPARE = 200, 10
_LATEST = "~"  # sorts after every id
_FACTS = (
    "id, account, reverse_path, subject, submission_id, size, client, source,"
    f" {LOGIN.format('')} AS login"
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
_FIRST = ".1"  # follows the id of a draft in the id of its first submission


class _Matching:
    """Decides which messages match. It reads their recipients only where the search needs them."""

    def __init__(self, tables: Tables, search: MessageSearch, account: str | None) -> None:
        self._tables = tables
        self._search = search
        self._strict = search.without_content()
        self._account = account
        self._whose = "" if search.added else " AND added_by = ''"
        self.recipients_left = _RECIPIENTS_MAX  # rows that may still be read

    def among(self, rows: Sequence[_Row]) -> list[FoundMessage]:
        """Return the messages that match, with what a check of their content needs."""
        strict = self._strict
        is_timed = strict.from_us or strict.until_us
        rows = [
            row
            for row in rows
            if self._account in (None, row[1])
            and row[0] > strict.after_id
            and (strict.indexed is None or row[0] in strict.indexed or self._is_report(row))
            and row[5] > (strict.larger_than_bytes or -1)
            and strict.matches_facts(row[2], row[3])
            and strict.matches_origin(row[8], row[6], row[4])
            and (not is_timed or strict.is_in_time(position_of(row[0], row[4]).at_us))
        ]
        if strict.has_complaint and rows:
            rows = self._among(rows, "event", IS_COMPLAINT)
        if strict.has_suppressed and rows:
            rows = self._among(rows, "recipient", f"entry = 0 AND reply LIKE '{SUPPRESSED}%'")
        if not rows or not (strict.needs_recipients or self._search.needs_content):
            return [FoundMessage(row[0], row[4]) for row in rows]
        if strict.state not in ("", FINAL_STATE) and not strict.to:
            in_state = f"state = ?{self._whose}"
            rows = self._among(rows, "recipient", in_state, strict.state)
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
        """Whether the row is a report that may match. No index has reports, so that words are
        searched in the subject and the addresses only.
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

    def _among(self, rows: Sequence[_Row], table: str, condition: str, *values: str) -> list[_Row]:
        """Return the rows of messages for which a row of `table` meets the condition."""
        where, ids = self._tables.among("message_id", [row[0] for row in rows])
        sql = f"SELECT DISTINCT message_id FROM {table} WHERE {where} AND {condition}"
        matching = {queue_id for (queue_id,) in self._tables.fetch(sql, (*ids, *values))}
        return [row for row in rows if row[0] in matching]

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


@dataclass(eq=False, repr=False)
class _PageSearch:
    """Reads messages in the order of their ids, and orders them by their places.

    No message has a place behind its id, so that those before the next id are complete.
    """

    tables: Tables
    search: MessageSearch
    account: str | None
    before: ListPosition | None
    limit: int

    def __post_init__(self) -> None:
        self._matching = _Matching(self.tables, self.search, self.account)
        self._waiting: list[tuple[tuple[int, str], FoundMessage]] = []
        self._found: list[FoundMessage] = []

    def find(self) -> FoundPage:
        """Return the messages that match, from the place `before` on."""
        begin = _LATEST
        if self.before is not None:
            begin = first_id_after(self.before.at_us)
            late = self.tables.fetch(_LATE, (begin, SCAN_MAX, begin))
            self._take([row for row in late if _is_before(row[4], begin, self.before.at_us)])
        read = 0
        for chunk in self._chunks(begin):
            read += len(chunk)
            self._take(chunk)
            last_us = id_time_us(chunk[-1][0]) or 0
            self._move(last_us)
            if len(self._found) >= self.limit:
                return FoundPage(tuple(self._found[: self.limit]), None)
            if last_us < self.search.from_us or chunk[-1][0] <= self.search.after_id:
                break  # the places, and the ids, of all further messages are earlier
            if self._matching.recipients_left <= 0 or read >= SCAN_MAX:
                return FoundPage(tuple(self._found), ListPosition(last_us, ""))
        self._move(-1)
        return FoundPage(tuple(self._found[: self.limit]), None)

    def _chunks(self, begin: str) -> Iterator[list[_Row]]:
        """Yield the rows with ids before `begin`, newest first."""
        size = min(self.limit + _SPARE, _CHUNK)  # enough if all match
        if (indexed := self.search.indexed) is not None:
            reports = (
                self.tables.fetch(_REPORTS, (begin, SCAN_MAX)) if self.search.kind != MAIL else ()
            )
            # in this order, which sorts fast
            ids = [queue_id for queue_id in indexed if queue_id < begin]
            ids = sorted(ids + [queue_id for (queue_id,) in reports], reverse=True)
            for at, end in pairwise((0, *range(size, len(ids), _CHUNK), len(ids))):
                where, values = self.tables.among("id", ids[at:end])
                sql = f"SELECT {_FACTS} FROM message WHERE {where} ORDER BY id DESC"
                if rows := self.tables.fetch(sql, values):
                    yield rows
            return
        while True:
            rows = self.tables.fetch(
                f"SELECT {_FACTS} FROM message WHERE {_OF_KIND[self.search.kind]}id < ?"
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
            if self.before is None or position.order > self.before.order:
                heapq.heappush(self._waiting, (position.order, message))

    def _move(self, until_us: int) -> None:
        """Move the messages whose places are after `until_us` into the page."""
        while self._waiting and -self._waiting[0][0][0] > until_us:
            if len(self._found) >= self.limit:
                return
            self._found.append(heapq.heappop(self._waiting)[1])


def _is_before(submission_id: str, begin: str, at_us: int) -> bool:
    """Whether a submission was made before a place. The time of the first submission of a draft is
    in the id of the draft; the time of a later one follows the point.
    """
    suffix = submission_id[ID_LENGTH:]
    if suffix == _FIRST:
        return submission_id < begin
    return not suffix[1:].isdecimal() or int(suffix[1:]) <= at_us


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
