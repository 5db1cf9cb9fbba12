"""Choose among due entries, decode the rows of claims, and end claims of a killed process.

Each engine has its own query for due entries. A query reads a bounded number of index rows, however
long the queue is.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from relay.base.message.address import ascii_address
from relay.base.message.envelope import ForwardPath, Notify
from relay.base.message.lifecycle import HELD_OR_CAPTURED, RecipientState
from relay.base.message.nexthop import NextHop, text_and_route
from relay.base.message.outcome import Evidence
from relay.formats.dsn import ReportedRecipient
from relay.store.journeys.details import AttemptDetail, AttemptedRecipient
from relay.store.journeys.events import Event
from relay.store.spool import types
from relay.store.spool.shared.columns import LIVE_STATES, MESSAGE_COLUMNS, WAITS, read_facts
from relay.store.spool.shared.tables import OpenTransaction, Tables

ROWS_MAX = 2000  # of an index, in one query
SENDERS_MAX = 500  # in one query for a next hop
# The columns of an entry `e`, of the size of its content `c`, and of its message `m`, in the order
# of claims_of().
CLAIM_COLUMNS = (
    "e.message_id, e.number, e.epoch, e.next_hop, e.attempts, c.size, e.state, e.retry_us,"
    " e.due_us, e.lane, e.sender, e.cause, e.cause_attempts, e.warn_us, e.priority, e.extra, "
    + ", ".join(f"m.{column}" for column in MESSAGE_COLUMNS)
)
_FACTS = 16  # before the columns of the message
RECIPIENT_COLUMNS = "r.number, r.address, r.notify, r.orcpt, r.added_by, r.status, r.reply"
# The report that is owed for a recipient `r`, "" for none; and which recipients a claim needs.
OWED = "CASE WHEN r.owed_report = '' THEN '' ELSE r.state || ' ' || r.owed_report END"
IS_NEEDED = f"(r.state IN {LIVE_STATES} OR r.owed_report <> '')"
# Of due entries for a next hop; {} is the column of the priority level.
_FOR_HOP = f"FROM entry INDEXED BY entry_hop WHERE {WAITS} AND next_hop = ? AND {{}} = ? AND"
# A loose index scan: one seek to the next sender, one to its first due entry.
_SENDERS = (
    "WITH RECURSIVE walk (sender) AS ("
    f" SELECT (SELECT sender {_FOR_HOP} sender > ? ORDER BY sender LIMIT 1) UNION ALL"
    f" SELECT (SELECT sender {_FOR_HOP} sender > walk.sender ORDER BY sender LIMIT 1)"
    " FROM walk WHERE walk.sender IS NOT NULL)"
    f" SELECT sender, (SELECT due_us {_FOR_HOP} sender = walk.sender ORDER BY due_us LIMIT 1)"
    " FROM walk WHERE sender IS NOT NULL LIMIT ?"
)
_OF_SENDER = (
    f"SELECT message_id, number {_FOR_HOP} sender = ? AND due_us <= ? ORDER BY due_us LIMIT ?"
)
CLAIMS_AT_ONCE = 500
_NOT_RECORDED = "the relay was stopped before this attempt was recorded"
_LOST_STATUS = "4.4.2"  # RFC 3463: bad connection, which is how the peer saw it
_LATE = (
    f"SELECT r.entry, {RECIPIENT_COLUMNS} FROM entry e JOIN recipient r"
    " ON r.message_id = e.message_id AND r.entry = e.number"
    f" AND r.state IN {LIVE_STATES} WHERE e.message_id = ?"
    " AND (e.number = ? OR e.next_hop <> 'capture'"
    " AND (e.state IN ('queued', 'deferred') OR e.warn_us > 0))"  # or held by the relay
    " AND EXISTS (SELECT 1 FROM entry WHERE message_id = ? AND number = ? AND warn_us > 0)"
    " ORDER BY 1, 2"
)
_DOUBT = (
    "UPDATE recipient SET state = 'deferred', status = ?, reply = ?"
    " WHERE message_id = ? AND entry = ? AND state IN ('queued', 'deferred')"
    " RETURNING number, address"
)
_DUE_AGAIN = (
    "UPDATE entry SET state = 'deferred', retry_us = ?, attempts = attempts + 1,"
    " due_us = CASE WHEN due_us < ? THEN due_us ELSE ? END WHERE message_id = ? AND number = ?"
)
_FREE = "UPDATE entry SET claimed = 0, epoch = epoch + 1 WHERE message_id = ? AND number = ?"

# Of a due entry; its values are the present time, twice. An entry without its message is held as
# damaged.
HAS_ENDED = (
    "state IN ('held', 'captured') OR coalesce(warn_us <= ?, 1 = 0) OR coalesce("
    "(SELECT m.expires_us <= ? FROM message m WHERE m.id = entry.message_id), 1 = 1)"
)


def scan_level(
    rows: Iterable[Sequence[Any]], look: types.DueQuery, *, limit: int
) -> tuple[list[types.Key], types.DueBatch]:
    """Choose up to `limit` entries of a priority level, or of one sender in it.

    `rows` are the due time, the key, the next hop and the sender of due entries after look.after,
    oldest due first, at most ROWS_MAX. They are read only as far as needed. With look.only_ended
    HAS_ENDED follows.
    """
    full_hops = {hop.key: hop for hop in look.without_hops}
    full_pairs = {(hop.key, sender): hop for hop, sender in look.without_pairs}
    full_senders = frozenset(look.without_senders) if look.sender is None else frozenset()
    keys: list[types.Key] = []
    left_hops, left_senders = set(), set()
    rows_read, stopped, last = 0, False, None
    for row in rows:
        if len(keys) == limit:
            stopped = True
            break
        rows_read += 1
        last = row
        if look.only_ended and not row[5]:
            continue
        _, message_id, number, next_hop, sender = row[:5]
        if (hop := full_hops.get(next_hop)) is not None:
            left_hops.add(hop)
        elif sender in full_senders:
            left_senders.add(sender)
        elif (hop := full_pairs.get((next_hop, sender))) is not None:
            left_hops.add(hop)
        else:
            keys.append((message_id, number))
    reached = look.after if last is None else (last[0], last[1], last[2])
    seen = types.DueBatch(
        ended=not stopped and rows_read < ROWS_MAX,
        reached=reached,
        left_hops=frozenset(left_hops),
        left_senders=frozenset(left_senders),
    )
    return keys, seen


def scan_next_hop(
    tables: Tables, look: types.DueQuery, level: tuple[str, int], *, now_us: int, limit: int
) -> tuple[list[types.Key], types.DueBatch]:
    """Choose the same number of entries from each sender of a next hop, round robin. The round
    continues after the sender look.after_sender. `level` is the column of the priority level, and
    the value of the level in it.
    """
    assert look.next_hop is not None
    column, number = level
    hop = (look.next_hop.key, number)
    values = (*hop, look.after_sender, *hop, *hop, SENDERS_MAX)
    senders = tables.fetch(_SENDERS.format(column, column, column), values)
    with_due = [sender for sender, due_us in senders if due_us <= now_us]
    left = [sender for sender in with_due if sender in look.without_senders]
    asked = [sender for sender in with_due if sender not in look.without_senders]
    share = max(1, limit // max(1, len(asked)))
    keys: list[types.Key] = []
    last = senders[-1][0] if senders else -1
    reached, more = look.after_sender, False
    for sender in asked:
        if len(keys) == limit:
            break
        count = min(share, limit - len(keys))
        rows = tables.fetch(_OF_SENDER.format(column), (*hop, sender, now_us, count + 1))
        keys += [(row[0], row[1]) for row in rows[:count]]
        more = more or len(rows) > count
        reached = sender
    if len(keys) == limit and asked and reached != asked[-1]:
        return keys, types.DueBatch(
            ended=False, reached_sender=reached, left_senders=frozenset(left)
        )
    if len(senders) == SENDERS_MAX:
        return keys, types.DueBatch(ended=False, reached_sender=last, left_senders=frozenset(left))
    return keys, types.DueBatch(ended=not more, left_senders=frozenset(left))


def claims_of(
    rows: Iterable[Sequence[Any]], recipients: Iterable[Sequence[Any]], *, by_message: bool = False
) -> tuple[tuple[types.Claim, ...], dict[types.Key, str]]:
    """Return the claims of entries, and by key what is wrong with the entries that cannot be read.

    `rows` are CLAIM_COLUMNS, content id, owner and store. `recipients` are the key of the entry,
    OWED and RECIPIENT_COLUMNS. With `by_message` a content id is a number in its message.
    """
    by_entry: dict[types.Key, list[Sequence[Any]]] = {}
    for row in recipients:
        by_entry.setdefault((row[0], row[1]), []).append(row[2:])
    claims: list[types.Claim] = []
    damaged: dict[types.Key, str] = {}
    for row in rows:
        key = (row[0], row[1])
        content_id = (row[0], row[-3]) if by_message else row[-3]
        try:
            claims.append(_claim_of(row, by_entry.get(key, ()), content_id))
        except (TypeError, ValueError) as error:
            damaged[key] = str(error)
    return tuple(claims), damaged


def _claim_of(
    row: Sequence[Any], recipients: Sequence[Sequence[Any]], content_id: types.ContentKey
) -> types.Claim:
    """Raises TypeError or ValueError for inconsistent rows."""
    facts = row[_FACTS:-3]
    if facts[0] is None:
        raise ValueError("its message is missing")
    live = tuple(recipient_of(recipient[1:]) for recipient in recipients if not recipient[0])
    if not live:
        raise ValueError("its recipients are missing")
    return types.Claim(
        entry_id=row[1],
        epoch=row[2],
        message=read_facts(facts),
        next_hop=NextHop.parse(row[3]),
        recipients=live,
        attempts=row[4],
        content_id=content_id,
        content_size=row[5] or 0,
        state=RecipientState(row[6]),
        retry_us=row[7],
        due_us=row[8],
        level=types.PriorityLevel(row[9]),
        sender=row[10],
        cause=row[11],
        cause_attempts=row[12],
        warn_us=row[13],
        priority=types.PriorityLevel(row[14]),
        owed=tuple(_owed(row, recipient) for recipient in recipients if recipient[0]),
        extra=types.parse_entry_extra(row[15]),
        owner=row[-2],
        store=row[-1],
    )


def recipient_of(row: Sequence[Any]) -> types.ClaimedRecipient:
    """Return the recipient in a row of RECIPIENT_COLUMNS. Raises ValueError."""
    path = ForwardPath(ascii_address(row[1]), _parse_notify(row[2]), row[3])
    return types.ClaimedRecipient(row[0], path, *row[4:])


def _owed(entry: Sequence[Any], row: Sequence[Any]) -> ReportedRecipient:
    """Return a recipient that a host accepted and whose sender is owed a report."""
    state, at_us, host = row[0].split(" ", 2)
    recipient = recipient_of(row[1:])
    evidence = Evidence(recipient.status, recipient.reply, host=host, remote=True)
    log_id = f"{entry[0]}-{entry[1]}"
    return ReportedRecipient(
        recipient.path,
        evidence,
        last_attempt_us=int(at_us),
        log_id=log_id,
        is_delivered=state == RecipientState.DELIVERED,
    )


def _parse_notify(text: str) -> frozenset[Notify]:
    """Parse what recipient_row() wrote."""
    return frozenset(Notify(word) for word in text.split(",")) if text else frozenset()


def late_recipients(tables: Tables, key: types.Key) -> dict[int, list[types.ClaimedRecipient]]:
    """SpoolEngine.late_recipients."""
    late: dict[int, list[types.ClaimedRecipient]] = {}
    for entry, *row in tables.fetch(_LATE, (*key, *key)):
        late.setdefault(entry, []).append(recipient_of(row))
    return late


def release_abandoned(
    transaction: OpenTransaction, claimed: Sequence[Sequence[Any]], *, now_us: int, at_us: int
) -> None:
    """Record abandoned claims as indeterminate attempts; their entries are due at once. `claimed`
    are key, next hop, attempts and state.

    An entry keeps its earlier due time, so that it is attempted although it may have expired
    meanwhile. Held and captured entries were claimed to end them, not for an attempt. `now_us` is
    queue time, `at_us` wall time.
    """
    tried = [row for row in claimed if row[4] not in HELD_OR_CAPTURED]
    for message_id, entry, hop, attempts, _ in tried:
        recipients = transaction.fetch(_DOUBT, (_LOST_STATUS, _NOT_RECORDED, message_id, entry))
        attempted = [
            AttemptedRecipient(number, address, "indeterminate", _LOST_STATUS, _NOT_RECORDED)
            for number, address in recipients
        ]
        next_hop, route = text_and_route(hop)
        detail = AttemptDetail(
            entry=entry, attempt=attempts + 1, next_hop=next_hop, route=route, recipients=attempted
        )
        record_doubt(transaction, message_id, Event(at_us, detail))
    transaction.execute_each(
        _DUE_AGAIN, [(now_us, now_us, now_us, row[0], row[1]) for row in tried]
    )
    transaction.execute_each(_FREE, [(row[0], row[1]) for row in claimed])


def record_doubt(transaction: OpenTransaction, message_id: str, attempt: Event) -> None:
    """Record an attempt whose result is unknown."""
    transaction.append_events(message_id, [attempt])
