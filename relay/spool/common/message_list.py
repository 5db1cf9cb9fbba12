"""Read a page of the message list, and what its rows show; find what is after a cursor.

A page begins at a place, so that its cost does not grow with the number of newer messages. Each
query is bounded; what a page did not reach is on the next one.
"""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from relay.clock import first_id_after, id_time_us
from relay.journeys.events import Step
from relay.journeys.message_list import (
    LISTED_MAX,
    FoundPage,
    ListedRecipient,
    ListPosition,
    MessageSummary,
    position_of,
)
from relay.journeys.message_search import (
    CLOCK_MARGIN_US,
    FINAL_STATE,
    SCAN_MAX,
    FoundMessage,
    MessageSearch,
)
from relay.message.lifecycle import RecipientState, message_state
from relay.spool.common.rows import in_chunks
from relay.spool.tables import Tables

_RECIPIENTS_MAX = 200_000  # rows that one page reads
_CHUNK = 200
_SEARCHED_AT_ONCE = 50
_ADDRESSES_MAX = 50
_LATEST = "~"  # sorts after every id
_FACTS = "id, account, reverse_path, subject, submission_id, size"
_Row = tuple[str, str, str, str, str, int]
_RecipientRow = tuple[int, str, str]  # number, address, state
_Recipients = Mapping[str, Sequence[_RecipientRow]]

# A submission may be accepted long after it was made: its id is then newer than its place.
_LATE = (
    f"SELECT {_FACTS} FROM (SELECT {_FACTS} FROM message"
    " WHERE source <> 'report' AND id >= ? ORDER BY id LIMIT ?) AS later"
    " WHERE submission_id <> '' AND (submission_id < ? OR submission_id NOT LIKE '%.1')"
)
_SUMMARY = (
    "SELECT id, reverse_path, submission_id, message_id, subject, size, account FROM message"
    " WHERE id = ?"
)
_STATES = (
    "SELECT message_id, state, count(*) FROM recipient WHERE message_id = ? AND added_by = ''"
    " GROUP BY message_id, state"
)
_FIRST_RECIPIENTS = (
    "SELECT message_id, number, address, state, status, reply FROM recipient"
    f" WHERE message_id = ? AND added_by = '' ORDER BY entry, number LIMIT {LISTED_MAX}"
)
_NEXT_ATTEMPT = (
    "SELECT message_id, min(retry_us) FROM entry WHERE message_id = ? AND state = 'deferred'"
    " GROUP BY message_id"
)
_FIRST = ".1"  # the end of the id of a draft's first submission, behind the id of the draft
_ID_LENGTH = 16


def _matches(wanted: MessageSearch, row: _Row, recipients: Sequence[_RecipientRow]) -> bool:
    return wanted.matches_all(row[2], row[3], [(one[1], one[2]) for one in recipients])


def _found_message(
    wanted: MessageSearch, row: _Row, recipients: Sequence[_RecipientRow], *, at_us: int = 0
) -> FoundMessage:
    """Return a message that matches, with what is needed to check conditions on its content."""
    queue_id, account, sender, subject, submission_id, _ = row
    if not wanted.needs_content:
        return FoundMessage(queue_id, submission_id, at_us)
    words = wanted.words_of_text(sender, subject, [one[1] for one in recipients])
    return FoundMessage(
        queue_id, submission_id, at_us, account=account, words_left=words,
        recipients=tuple(recipients[:LISTED_MAX]),
    )  # fmt: skip


class PageSearch:
    """Reads messages in the order of their ids, and orders them by their places.

    No message has a place behind its id, so that those before the next id are complete.
    """

    def __init__(
        self,
        tables: Tables,
        wanted: MessageSearch,
        *,
        account: str | None,
        before: ListPosition | None,
        limit: int,
    ) -> None:
        self._tables = tables
        self._wanted = wanted
        self._strict = wanted.without_content()
        self._account = account
        self._before = before
        self._limit = limit
        self._recipients_left = _RECIPIENTS_MAX
        self._waiting: list[tuple[tuple[int, str], FoundMessage]] = []
        self._found: list[FoundMessage] = []

    def find(self) -> FoundPage:
        """Return the messages that match from the place on, without reports."""
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
            self._settle(last_us)
            if len(self._found) >= self._limit:
                return FoundPage(tuple(self._found[: self._limit]), None)
            if last_us < self._strict.from_us:
                break  # no place is behind its id
            if self._recipients_left <= 0 or read >= SCAN_MAX:
                return FoundPage(tuple(self._found), ListPosition(last_us, ""))
        self._settle(-1)
        return FoundPage(tuple(self._found[: self._limit]), None)

    def _chunks(self, begin: str) -> Iterator[list[_Row]]:
        """Yield the rows with ids before `begin`, newest first."""
        while True:
            rows = self._tables.fetch(
                f"SELECT {_FACTS} FROM message WHERE source <> 'report' AND id < ?"
                " ORDER BY id DESC LIMIT ?",
                (begin, _CHUNK),
            )
            if rows:
                yield rows
            if len(rows) < _CHUNK:
                return
            begin = rows[-1][0]

    def _take(self, rows: Sequence[_Row]) -> None:
        wanted = self._strict
        rows = [row for row in rows if self._account in (None, row[1])]
        if wanted.larger_than_bytes:
            rows = [row for row in rows if row[5] > wanted.larger_than_bytes]
        if wanted.sender or wanted.subject:
            rows = [row for row in rows if wanted.matches_facts(row[2], row[3])]
        if rows and wanted.state and not wanted.to:
            rows = self._in_state(rows)
        recipients: _Recipients = {}
        if rows and (wanted.needs_recipients or self._wanted.needs_content):
            recipients = _recipients_of(self._tables, rows, limit=self._recipients_left)
            self._recipients_left -= sum(map(len, recipients.values()))
            rows = [row for row in rows if _matches(wanted, row, recipients.get(row[0], ()))]
        for row in rows:
            position = position_of(row[0], row[4])
            if position.at_us < wanted.from_us:
                continue
            if self._before is None or position.order > self._before.order:
                found = _found_message(self._wanted, row, recipients.get(row[0], ()))
                heapq.heappush(self._waiting, (position.order, found))

    def _in_state(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """Return the rows with a recipient in the state; for "final" all of them."""
        if self._wanted.state == FINAL_STATE:
            return rows
        where, values = self._tables.among("message_id", [row[0] for row in rows])
        found = self._tables.fetch(
            f"SELECT DISTINCT message_id FROM recipient WHERE {where} AND added_by = ''"
            " AND state = ?",
            (*values, self._wanted.state),
        )
        ids = {queue_id for (queue_id,) in found}
        return [row for row in rows if row[0] in ids]

    def _settle(self, until_us: int) -> None:
        """Move the messages whose places are after `until_us` into the page."""
        while self._waiting and -self._waiting[0][0][0] > until_us:
            if len(self._found) >= self._limit:
                return
            self._found.append(heapq.heappop(self._waiting)[1])


def _is_before(submission_id: str, begin: str, at_us: int) -> bool:
    """Whether a submission was made before a place: a first one has its time in its id, a later one
    behind the point.
    """
    suffix = submission_id[_ID_LENGTH:]
    if suffix == _FIRST:
        return submission_id < begin
    return not suffix[1:].isdecimal() or int(suffix[1:]) <= at_us


def search(
    tables: Tables,
    wanted: MessageSearch,
    *,
    account: str | None,
    since_us: int | None,
    limit: int,
) -> list[FoundMessage]:
    """Scan the newest messages, without reports; older ones may be missed."""
    found: list[FoundMessage] = []
    strict = wanted.without_content()
    earliest = "" if since_us is None else first_id_after(since_us - CLOCK_MARGIN_US)
    rows = tables.each(
        f"SELECT {_FACTS} FROM message WHERE source <> 'report' AND id > ?"
        " ORDER BY id DESC LIMIT ?",
        (earliest, SCAN_MAX),
    )
    recipients_left = _RECIPIENTS_MAX
    for some in in_chunks(rows, _SEARCHED_AT_ONCE):
        chunk = [
            row
            for row in some
            if account in (None, row[1])
            and strict.matches_facts(row[2], row[3])
            and row[5] > (strict.larger_than_bytes or -1)
            and not position_of(row[0], row[4]).at_us < strict.from_us
        ]
        recipients: _Recipients = {}
        if chunk and (strict.needs_recipients or wanted.needs_content):
            recipients = _recipients_of(tables, chunk, limit=recipients_left)
            recipients_left -= sum(map(len, recipients.values()))
            chunk = [row for row in chunk if _matches(strict, row, recipients.get(row[0], ()))]
        times = {} if since_us is None else _accepted_us(tables, [row[0] for row in chunk])
        for row in chunk:
            at_us = times.get(row[0], 0)
            if since_us is None or at_us > since_us:
                its_own = recipients.get(row[0], ())
                found.append(_found_message(wanted, row, its_own, at_us=at_us))
        if len(found) >= limit or recipients_left <= 0:
            break
    return found[:limit]


def _recipients_of(tables: Tables, rows: Sequence[_Row], *, limit: int) -> _Recipients:
    """Return the recipients by queue id, except those that policy added."""
    found: dict[str, list[_RecipientRow]] = defaultdict(list)
    where, values = tables.among("message_id", [row[0] for row in rows])
    for queue_id, number, address, state in tables.fetch(
        f"SELECT message_id, number, address, state FROM recipient WHERE {where}"
        " AND added_by = '' LIMIT ?",
        (*values, max(limit, 0)),
    ):
        found[queue_id].append((number, address, state))
    return found


def _accepted_us(tables: Tables, queue_ids: Sequence[str]) -> dict[str, int]:
    """Return when each message was accepted."""
    rows = tables.fetch_each(
        "SELECT message_id, at_us FROM event WHERE message_id = ? AND step = ?"
        " ORDER BY sequence LIMIT 1",
        [(queue_id, int(Step.POLICY_AND_ROUTING)) for queue_id in queue_ids],
    )
    known = dict(rows)
    return {one: known.get(one, id_time_us(one) or 0) for one in queue_ids}


def summaries(
    tables: Tables, queue_ids: Sequence[str], *, account: str | None
) -> list[MessageSummary]:
    """Return what the rows of these messages show, with `account` only of those of the account;
    those that are gone are left out.
    """
    rows = [
        row
        for row in tables.fetch_each(_SUMMARY, [(one,) for one in queue_ids])
        if account in (None, row[6])
    ]
    keys = [(row[0],) for row in rows]
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for queue_id, state, number in tables.fetch_each(_STATES, keys):
        counts[queue_id][state] = number
    first: dict[str, list[Any]] = defaultdict(list)
    for queue_id, *recipient in tables.fetch_each(_FIRST_RECIPIENTS, keys):
        first[queue_id].append(recipient)
    retries = dict(tables.fetch_each(_NEXT_ATTEMPT, keys))
    found = []
    for queue_id, sender, submission_id, message_id, subject, size_bytes, _ in rows:
        recipients = sorted(first[queue_id])
        state = str(message_state([RecipientState(one) for one in counts[queue_id]]))
        status, reply = _deciding(tables, queue_id, state=state, first=recipients)
        found.append(
            MessageSummary(
                position=position_of(queue_id, submission_id), id=queue_id,
                submission_id=submission_id or None, message_id=message_id, sender=sender,
                subject=subject, state=state,
                recipients=tuple(ListedRecipient(*one[:3]) for one in recipients),
                recipient_count=sum(counts[queue_id].values()), size_bytes=size_bytes,
                status=status, reply=reply, next_attempt_us=retries.get(queue_id),
            )
        )  # fmt: skip
    return found


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


def accepted_submissions(tables: Tables, submission_ids: Sequence[str]) -> list[str]:
    """Return those of these submissions that the spool has."""
    where, values = tables.among("submission_id", submission_ids)
    rows = tables.fetch(
        f"SELECT submission_id FROM message WHERE {where} AND submission_id <> ''", values
    )
    return [name for (name,) in rows]


def count_states(tables: Tables, *, account: str | None, limit: int) -> tuple[int, dict[str, int]]:
    """Return the number of messages, at most `limit`, and in how many of them, the newest, a
    recipient is in each state.
    """
    ids = _newest(tables, account=account, limit=limit)
    where, values = tables.among("message_id", ids)
    rows = tables.fetch(
        "SELECT state, count(DISTINCT message_id) FROM recipient"
        f" WHERE {where} AND added_by = '' GROUP BY state",
        values,
    )
    return len(ids), dict(rows)


def recent_addresses(tables: Tables, *, account: str | None, limit: int) -> list[str]:
    """Return the senders and recipients of the newest messages, the most frequent first."""
    ids = _newest(tables, account=account, limit=limit)
    recipients, senders = tables.among("message_id", ids), tables.among("id", ids)
    rows = tables.fetch(
        f"SELECT min(address) FROM (SELECT address FROM recipient WHERE {recipients[0]}"
        f" AND added_by = '' UNION ALL SELECT reverse_path FROM message WHERE {senders[0]})"
        " AS known WHERE address <> '' GROUP BY lower(address) ORDER BY count(*) DESC LIMIT ?",
        (*recipients[1], *senders[1], _ADDRESSES_MAX),
    )
    return [address for (address,) in rows]


def _newest(tables: Tables, *, account: str | None, limit: int) -> list[str]:
    """Return the ids of the newest messages, without reports."""
    rows = tables.each(
        "SELECT id, account FROM message WHERE source <> 'report' ORDER BY id DESC LIMIT ?",
        (SCAN_MAX if account else limit,),
    )
    own = (queue_id for queue_id, owner in rows if account in (None, owner))
    return list(islice(own, limit))
