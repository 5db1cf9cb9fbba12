"""Accept messages and record the results of attempts: operations of the writer, and their rows.

What they decide is in relay.store.spool.shared. Ordinary mail only adds rows to the commit, which
one statement writes: the arrays of commit.sql. accept() ends step 5 of a message, record() ends
steps 6 and 7. See docs/design.md 4, invariants 1, 2, 3, 7.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from zlib import crc32

from msgspec.structs import astuple, replace

from relay.base.clock import Anchor
from relay.base.message.content import Content
from relay.base.message.envelope import domain_of
from relay.base.message.nexthop import HopKind
from relay.store.journeys.events import Event
from relay.store.spool import types
from relay.store.spool.postgres.nodes import Stores
from relay.store.spool.postgres.tables import ConnectionTables, statement
from relay.store.spool.shared import results
from relay.store.spool.shared.accepted import (
    AcceptedRows,
    CapturedMail,
    NewMail,
    NotAccepted,
    accepted,
    accepted_rows,
    decided_before,
    suppressed_of,
    used_contents,
)
from relay.store.spool.shared.columns import json_text, message_row
from relay.store.spool.shared.hold_counters import count_holds
from relay.store.spool.shared.hold_rules import HoldRule, as_held_now, hold_rules
from relay.store.spool.shared.suppression import Heard
from relay.store.spool.shared.tables import StoredBodies, StoredBody

_ENDS, _WAITS, _GOES_ON = 1, 0, 2  # what a result does to its entry; see commit.sql
# A release, or another hold of the domain, waits for acceptances, and then finds their entries.
_LOCK_HOLD_RULES = "SELECT 1 FROM standing_hold WHERE domain = ANY(?) ORDER BY domain FOR SHARE"
_SENT_TO = "UPDATE recipient SET next_hop = ? WHERE message_id = ? AND entry = ?"
_PARTS = "SELECT id, count(*) FROM body WHERE id = ? GROUP BY id"
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
# Of an entry: its key, epoch, owner and content; whether it ends; of one that waits its state,
# attempts and waiting_columns().
_RECORDED = "wooooooonnooon"
_OUTCOME = "oooowoo"
_COUNT = "ww"
_ANCHOR = "wwwwww"


@lru_cache
def _parts(*names: str) -> tuple[str, Sequence[int]]:
    """Return these parts of commit.sql, and the numbers of the parameters that they use."""
    _, *pieces = re.split(r"^-- (\w+):\n", statement("commit.sql"), flags=re.MULTILINE)
    parts = zip(pieces[::2], pieces[1::2], strict=True)
    text = "".join(sql for name, sql in parts if name in names)
    used = sorted({int(number) for number in _PARAMETER.findall(text)})
    return _PARAMETER.sub(lambda match: f"${1 + used.index(int(match[1]))}", text), used


class CommitRows:
    """Collects the rows of a commit."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []
        self.contents: list[tuple[Any, ...]] = []
        self.entries: list[tuple[Any, ...]] = []
        self.recipients: list[tuple[Any, ...]] = []
        self.events: list[tuple[str, Event]] = []
        self.submissions: list[tuple[str, str, int]] = []
        self.results: list[tuple[Any, ...]] = []  # see _RECORDED
        self.outcomes: list[tuple[Any, ...]] = []
        self.hops: list[str] = []  # the next hop of each outcome: a command may have changed it
        self.alive: list[str] = []  # addresses that are not dead
        self.counts: Counter[str] = Counter()

    def made_by(self, node: str) -> None:
        """Have the events name this node, not the node that commits."""
        self.events = [
            (message_id, replace(event, detail=replace(event.detail, node=node)))
            for message_id, event in self.events
        ]

    def statement(
        self, *, incarnation: int, name: str, number: int, anchor: Anchor | None, pid: int
    ) -> tuple[str, Sequence[Any]]:
        """Return the statement of a commit, and its values. `number` is the number of the commit in
        this incarnation, `name` the name of the node, which each event records, `pid` the server's
        process for the session.
        """
        events = []
        for message_id, event in self.events:
            detail = replace(event.detail, node=event.detail.node or name)
            events.append((message_id, detail.step, event.at_us, json_text(detail)))
        counts = [(name, by) for name, by in sorted(self.counts.items()) if by]
        values = [
            *_columns(self.messages, _MESSAGE),
            *_columns(self.contents, _CONTENT),
            *_columns(self.entries, _ENTRY),
            *_columns(self.recipients, _RECIPIENT),
            *_columns(events, _EVENT),
            *_columns(self.submissions, _SUBMISSION),
            *_columns(self.results, _RECORDED),
            _once(self._ended_with()),
            *_columns(self.outcomes, _OUTCOME),
            _once(self.hops),
            *_columns(counts, _COUNT),
            *_columns([astuple(anchor)] if anchor is not None else (), _ANCHOR),
            incarnation,
            number,
            name,
            self.alive,
            pid,
        ]
        sql, used = _parts(
            "always",
            "accepted" if self.messages else "",
            "submitted" if self.submissions else "",
            "results" if self.results else "",
            "alive" if self.alive else "",
            "noted" if anchor is not None else "",
        )
        return sql, [values[number - 1] for number in used]

    def _ended_with(self) -> list[str]:
        """Return for each result the numbers of the entries of its message that end here."""
        ended: dict[str, str] = {}
        for message_id, number, *_, ends in (result[:6] for result in self.results):
            if ends == _ENDS:
                known = ended.get(message_id)
                ended[message_id] = f"{known},{number}" if known else str(number)
        return [ended.get(result[0], "") for result in self.results]


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
        self.hold_rules: Sequence[HoldRule] | None = ()  # None: the first new message reads them

    @property
    def counts(self) -> Counter[str]:
        """OpenTransaction.counts."""
        return self.rows.counts

    def append_events(self, message_id: str, events: Sequence[Event]) -> None:
        """OpenTransaction.append_events."""
        self.rows.events += [(message_id, event) for event in events]

    def forget_dead(self, addresses: Sequence[str]) -> None:
        """OpenTransaction.forget_dead."""
        self.rows.alive += addresses

    def lock_dead(self) -> None:
        """OpenTransaction.lock_dead. It conflicts with itself alone, so that deliveries go on."""
        self.execute("LOCK TABLE suppressed IN SHARE UPDATE EXCLUSIVE MODE")

    def rules_met(self, message: types.NewMessage) -> Sequence[HoldRule]:
        """Return the hold rules that a new message meets; they stay until the commit."""
        now_us = message.facts.received_us
        if self.hold_rules is None:
            self.hold_rules = hold_rules(self, now_us=now_us)
        if not self.hold_rules:  # nearly always: the commit stays one statement
            return ()
        recipients = [to for entry in message.entries for to in entry.recipients]
        domains = {domain_of(to.path.address) for to in recipients}
        met = [rule.domain for rule in self.hold_rules if any(map(rule.takes, domains))]
        if not met:
            return ()
        if not self.connection.is_in_transaction():
            self.wait(self.connection.execute("BEGIN"))
        self.fetch(_LOCK_HOLD_RULES, (met,))
        return hold_rules(self, now_us=now_us)


Operation = Callable[[WriteTransaction], T]


class StaleClaimError(types.SpoolError):
    """A result is of a claim that has ended."""


class KnownKeyError(types.SpoolError):
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


_KINDS = {"w": lambda column: column, "o": _once, "n": _none}


def reads_first(new: NewMail) -> bool:
    """Whether an acceptance reads rows before it decides, and so has to run alone."""
    first = new.messages[0]
    return new.receipt is not None or (first.held_max is not None and bool(first.held_by_rules))


def accept(transaction: WriteTransaction, new: NewMail) -> types.Accepted | NotAccepted:
    """Write a message and the reports that follow it. Where rules would hold more entries than
    they may, or recipients are on the list of dead addresses, write nothing and return the error.
    The commit raises KnownKeyError for a known key.
    """
    before = decided_before(transaction, new) if reads_first(new) else None
    answer = before or suppressed_of(transaction, new)
    if answer is not None:
        return answer
    first, key = new.messages[0], new.submission_key
    if key:
        if any(submission[0] == key for submission in transaction.rows.submissions):
            raise KnownKeyError("the submission key is used twice in one commit")
        transaction.rows.submissions.append((key, first.facts.id, new.key_expires_us))
    added = [
        add_message(transaction, message, bodies, claim=new.claim, captured=new.captured)
        for message, bodies in zip(new.messages, new.stored, strict=True)
    ]
    return accepted(first, added)


def add_message(
    transaction: WriteTransaction,
    message: types.NewMessage,
    bodies: StoredBodies,
    *,
    claim: bool,
    captured: CapturedMail,
    store: int = 0,
) -> AcceptedRows:
    """Add the rows of a message, and return those that all engines have. Local mail goes to the
    mail root with the number `store`; 0 is the mail root of this node.
    """
    message = as_held_now(transaction, message, rules=transaction.rules_met(message))
    facts, rows = message.facts, transaction.rows
    _check_parts(transaction, bodies)
    used = used_contents(message)
    keys = {index: (facts.id, index) for index in used}
    store = store or transaction.stores.own
    claim = claim and (transaction.stores.is_held_by_us(store) or not _is_local(message))
    added = accepted_rows(
        message,
        keys,
        kept=used,
        claim=claim,
        captured=captured,
        claimed_by=(transaction.incarnation, store),
    )
    rows.messages.append(message_row(facts))
    rows.contents += [
        (facts.id, index, *_content_columns(content, bodies.get(index)))
        for index, content in enumerate(message.contents)
        if index in used
    ]
    rows.entries += [
        (*row[:3], row[3][1], *row[4:], transaction.incarnation if row[5] else 0, store)
        for row in added.entries
    ]
    hops = ["", *(row[2] for row in added.entries)]
    rows.recipients += [(*row, hops[row[1]]) for row in added.recipients]
    transaction.append_events(facts.id, message.events)
    for name, number in added.counts.items():  # faster than update()
        rows.counts[name] += number
    count_holds(transaction, Counter(message.held_by_rules))
    return added


def _is_local(message: types.NewMessage) -> bool:
    return any(entry.next_hop.kind is HopKind.LOCAL for entry in message.entries)


def _check_parts(transaction: WriteTransaction, bodies: StoredBodies) -> None:
    """Raise SpoolUnavailableError if a part is missing: parts are written without a sync, and the
    server may have crashed since. What this transaction sees is durable with its commit.
    """
    if not bodies:
        return
    expected = {(body.name, body.parts) for body in bodies.values()}
    ids = [(body_id,) for body_id, _ in expected]
    if {tuple(row) for row in transaction.fetch_each(_PARTS, ids)} != expected:
        raise types.SpoolUnavailableError("the server has lost a part of the message")


def record(transaction: WriteTransaction, new: results.NewResult) -> results.Recorded:
    """Record outcomes; the commit raises StaleClaimError where the claim has ended."""
    claim_result, claim, rows = new.claim_result, new.claim_result.claim, transaction.rows
    changed = results.result_rows(new)
    if new.order is None:
        ends = _GOES_ON if claim_result.goes_on else _WAITS
        if changed.is_finished:
            ends = _ENDS
        rows.results.append(
            (
                *claim.key,
                claim.epoch,
                claim.owner,
                claim.content_id[1],
                ends,
                changed.state,
                changed.attempts,
                *results.waiting_columns(changed.waiting),
            )
        )
        rows.outcomes += changed.recipients
        rows.hops += [claim.next_hop.key] * len(changed.recipients)
    elif results.leave_entry(
        transaction, claim_result, changed
    ):  # the order reads what this has changed
        transaction.execute_each(results.RECORD, changed.recipients)
        transaction.execute(_SENT_TO, (claim.next_hop.key, *claim.key))
    else:
        raise StaleClaimError("the claim has ended")
    complaint, suppressed = results.record_effects(transaction, new, changed, store=claim.store)
    ordered = new.order(transaction) if new.order is not None else None
    claims: list[types.Claim] = []
    for message, bodies in zip(claim_result.reports, new.stored, strict=True):
        claims += add_message(
            transaction,
            message,
            bodies,
            claim=new.claim_reports,
            captured=new.captured,
            store=claim.store,
        ).claims
    return results.Recorded(
        tuple(claims),
        owes=bool(changed.receipts),
        ordered=ordered,
        complaint=complaint,
        suppressed=suppressed,
    )


def runs_statements(claim_result: types.ClaimResult, said: Heard | None) -> bool:
    """Whether a result has to run alone, because it does more than add rows."""
    evidence = [outcome.evidence for outcome in claim_result.outcomes.values()]
    return bool(
        claim_result.held
        or claim_result.unanswered
        or claim_result.fallback_us != claim_result.claim.extra.fallback_us
        or claim_result.owed
        or claim_result.pays
        or claim_result.ends_warning
        or claim_result.remote_report is not None
        or (said is not None and said.dead)
        or any(known.receipt for known in evidence)
    )


def _content_columns(content: Content, body: StoredBody | None) -> tuple[Any, ...]:
    """Return size, data, header, body, eight_bit and crc32: the CRC-32 of the body, continued over
    the header.
    """
    if isinstance(content, bytes):
        return len(content), content, None, "", 0, crc32(content)
    assert body is not None
    checksum = crc32(content.header, body.crc32)
    return content.size, None, content.header, body.name, content.flags, checksum
