"""What an operation of the write connection sees: a transaction, and the rows of its commit, which
one statement writes: the arrays of commit.sql.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import astuple, replace

from relay.base.clock import Anchor
from relay.journeys.events import Event
from relay.spool.postgres.nodes import Stores
from relay.spool.postgres.tables import ConnectionTables, statement
from relay.spool.shared.columns import json_text
from relay.spool.types import SpoolError

T = TypeVar("T")
_PARAMETER = re.compile(r"\$(\d+)")
# For each column of a table, what is passed of it: the whole of it, one value for all rows if they
# have the same, or nothing if all have NULL. Most columns have one value in nearly all mail, and an
# element of an array takes more time than anything else here.
_MESSAGE = "wooowwwooooooowwo"
_CONTENT = "wowwnoow"
_ENTRY = "wooooonnoonoooo"
_RECIPIENT = "woowoooooooo"
_EVENT = "wwww"
_SUBMISSION = "www"
_SETTLED = "wooooooonnooon"
_OUTCOME = "ooowoo"
_COUNT = "ww"
_ANCHOR = "wwwwww"


class SettledEntry(Struct, frozen=True):
    """What a result does to its entry, in the order of commit.sql."""

    message_id: str  # of the entry
    number: int  # of the entry
    epoch: int  # that the claim has
    owner: int  # that has the claim
    content_id: int  # the number of the content, which goes if no other entry has it
    ends: int  # 1: the entry is deleted; 0: it waits; 2: it stays claimed
    state: str  # of an entry that waits
    attempts: int  # of an entry that waits
    due_us: int | None = None  # this and the following as in EntrySchedule
    retry_us: int | None = None  # when it may be attempted
    lane: int = 0  # its level
    cause: str = ""  # of the last deferral
    cause_attempts: int = 0  # in a row
    warn_us: int | None = None  # of the delay warning


@lru_cache
def _parts(*names: str) -> tuple[str, Sequence[int]]:
    """Return these parts of commit.sql, and which of its parameters they have."""
    _, *pieces = re.split(r"^-- (\w+):\n", statement("commit.sql"), flags=re.MULTILINE)
    parts = zip(pieces[::2], pieces[1::2], strict=True)
    text = "".join(sql for name, sql in parts if name in names)
    used = sorted({int(one) for one in _PARAMETER.findall(text)})
    return _PARAMETER.sub(lambda one: f"${1 + used.index(int(one[1]))}", text), used


class CommitRows:
    """Collects the rows of a commit."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.contents: list[tuple[Any, ...]] = []
        self.entries: list[tuple[Any, ...]] = []
        self.recipients: list[tuple[Any, ...]] = []
        self.events: list[tuple[str, Event]] = []
        self.submissions: list[tuple[str, str, int]] = []
        self.settled: list[SettledEntry] = []
        self.outcomes: list[tuple[Any, ...]] = []
        self.hops: list[str] = []  # the next hop of each outcome: a command may have changed it
        self.counts: Counter[str] = Counter()

    def made_by(self, node: str) -> None:
        """Have the events name another node than that of the commit."""
        self.events = [
            (message_id, replace(event, detail={**event.detail, "node": node}))
            for message_id, event in self.events
        ]

    def statement(
        self, *, incarnation: int, name: str, number: int, anchor: Anchor | None
    ) -> tuple[str, Sequence[Any]]:
        """Return the statement, with its values, that is the commit with this number of this
        incarnation; `name` is that of the node, which each event names.
        """
        events = [
            (message_id, int(event.step), event.at_us, json_text({"node": name, **event.detail}))
            for message_id, event in self.events
        ]
        counts = [one for one in sorted(self.counts.items()) if one[1]]
        values = [
            *_columns(self.messages, _MESSAGE),
            *_columns(self.contents, _CONTENT),
            *_columns(self.entries, _ENTRY),
            *_columns(self.recipients, _RECIPIENT),
            *_columns(events, _EVENT),
            *_columns(self.submissions, _SUBMISSION),
            *_columns([astuple(one) for one in self.settled], _SETTLED),
            _once(self._ended_with()),
            *_columns(self.outcomes, _OUTCOME),
            _once(self.hops),
            *_columns(counts, _COUNT),
            *_columns([astuple(anchor)] if anchor is not None else (), _ANCHOR),
            incarnation,
            number,
            name,
        ]
        sql, used = _parts(
            "always",
            "accepted" if self.messages else "",
            "submitted" if self.submissions else "",
            "settled" if self.settled else "",
            "noted" if anchor is not None else "",
        )
        return sql, [values[one - 1] for one in used]

    def _ended_with(self) -> list[str]:
        """Return for each result the numbers of the entries of its message that end here."""
        ended: dict[str, str] = {}
        for one in self.settled:
            if one.ends == 1:
                known = ended.get(one.message_id)
                ended[one.message_id] = f"{known},{one.number}" if known else str(one.number)
        return [ended.get(one.message_id, "") for one in self.settled]


class WriteTransaction(ConnectionTables):
    """An OpenTransaction. Rows that are added are written with its commit, after all else."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Any,
        *,
        incarnation: int,
        stores: Stores,
    ) -> None:
        super().__init__(loop, connection)
        self.rows = CommitRows()
        self.incarnation = incarnation  # of this node
        self.stores = stores
        self.has_changed = True  # an operation that runs alone and changes nothing says so

    @property
    def counts(self) -> Counter[str]:
        """OpenTransaction.counts."""
        return self.rows.counts

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """OpenTransaction.append_events."""
        self.rows.events += [(message_id, event) for event in events]


Operation = Callable[[WriteTransaction], T]


class StaleClaimError(SpoolError):
    """A result is of a claim that has ended."""


class KnownKeyError(SpoolError):
    """A message was accepted with this submission key before."""


def _columns(rows: Sequence[Sequence[Any]], kinds: str) -> Iterable[Sequence[Any]]:
    """Return the arrays of columns of these kinds."""
    if not rows:
        return ((),) * len(kinds)
    columns = zip(*rows, strict=True)
    return [_KINDS[kind](column) for kind, column in zip(kinds, columns, strict=True)]


def _once(column: Sequence[Any]) -> Sequence[Any]:
    return column[:1] if column and column.count(column[0]) == len(column) else column


def _none(column: Sequence[Any]) -> Sequence[Any]:
    return () if column.count(None) == len(column) else column


def _whole(column: Sequence[Any]) -> Sequence[Any]:
    return column


_KINDS = {"w": _whole, "o": _once, "n": _none}
