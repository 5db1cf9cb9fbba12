"""Answer a query from a mailbox's rows: a page of messages, and how many there are.

On the path: filling has read what the query asks about; the store loads the files of what is found.
Holds: what is read is the page, by the index that leads; counting is for who asks for it.
Fails: StalePositionError; with apsw's exceptions.
Standards: relay.mailbox.query.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import apsw

from relay.mailbox.index.conditions import UID, Clause, Lead, compiled, joined
from relay.mailbox.index.database import fetch
from relay.mailbox.index.paging import beyond, read_token, sort_keys, written_token
from relay.mailbox.index.rows import COLUMNS, Row, read_row
from relay.mailbox.query import MessageQuery

_WIDTH = len(COLUMNS.split(","))


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A message of a page; `position` is where the page behind it begins."""

    row: Row
    position: str


@dataclass(frozen=True, slots=True)
class FoundRows:
    """A page; `more` says whether there is another."""

    rows: tuple[FoundRow, ...]
    total: int | None
    more: bool


class Prepared:
    """A query, compiled. `level` is what it needs to be read of the messages."""

    def __init__(self, query: MessageQuery) -> None:
        """Raise StalePositionError for a token of another query."""
        self._query = query
        self._keys = sort_keys(query.order)
        self._compiled = compiled(query.condition)
        self._after = read_token(self._keys, query.after) if query.after else ()
        clauses = (self._compiled.lead.where, self._compiled.filter)
        self.level = max(*(one.level for one in clauses), *(one.level for one in self._keys))

    def answer(self, cursor: apsw.Cursor, folder: int | None) -> FoundRows:
        """Return the page; `folder` is the number of the only one that is asked about."""
        query, lead = self._query, self._compiled.lead
        where = [lead.where, self._compiled.filter]
        if folder is not None:
            where.append(Clause(self._compiled.folder, (folder,)))
        total = self._count(cursor, where, folder) if query.count else None
        if self._after:
            where.append(beyond(self._keys, self._after))
        where += [Clause(f"{key.sql} IS NOT NULL") for key in self._keys if key.is_text]
        clause = joined(where, " AND ", "1")
        keys = ", ".join(key.sql for key in self._keys)
        order = ", ".join(f"{key.sql} {'DESC' if key.descending else 'ASC'}" for key in self._keys)
        distinct = "DISTINCT " if lead.may_repeat else ""
        behind = _led(f"WHERE {clause.sql} ORDER BY {order} LIMIT ? OFFSET ?", lead)
        found = fetch(
            cursor,
            f"SELECT {distinct}{_COLUMNS}, {_led(keys, lead)} FROM {lead.tables} {behind}",
            (*clause.values, query.top + 1, query.skip),
        )
        rows = tuple(
            FoundRow(read_row(one[:_WIDTH]), written_token(self._keys, one[_WIDTH:]))
            for one in found[: query.top]
        )
        return FoundRows(rows, total, more=len(found) > query.top)

    def _count(self, cursor: apsw.Cursor, where: Sequence[Clause], folder: int | None) -> int:
        if self._query.condition is None:
            sql = "SELECT coalesce(sum(total), 0) FROM folder WHERE ?1 IS NULL OR number = ?1"
            return int(fetch(cursor, sql, (folder,))[0][0])
        clause, lead = joined(where, " AND ", "1"), self._compiled.lead
        what = f"DISTINCT {lead.uid}" if lead.may_repeat else "*"
        sql = f"SELECT count({what}) FROM {lead.tables} WHERE {_led(clause.sql, lead)}"
        return int(fetch(cursor, sql, clause.values)[0][0])


def _led(sql: str, lead: Lead) -> str:
    """Call the uid by the leading table's name, so that its order is used and nothing is sorted."""
    return sql.replace(UID, lead.uid)


_COLUMNS = ", ".join(f"message.{one.strip()}" for one in COLUMNS.split(","))
