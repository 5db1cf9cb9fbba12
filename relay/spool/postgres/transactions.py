"""Accept messages and settle delivery attempts: operations of the writer.

What they decide is in relay.spool.shared.rows; ordinary mail only adds rows to the commit. accept()
ends step 5 of a message, settle() ends steps 6 and 7. See docs/design.md 4, invariants 1, 2, 3, 7.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from relay.message.content import Content
from relay.message.nexthop import HopKind
from relay.spool.postgres.write_transaction import KnownKeyError, SettledEntry, WriteTransaction
from relay.spool.shared.columns import message_row
from relay.spool.shared.queue.holds import count_holds, lack_of_room
from relay.spool.shared.queue.standing_holds import as_held_now, is_held_as_it_comes
from relay.spool.shared.rows.accepted import (
    AcceptedRows,
    CapturedMail,
    accepted_as,
    accepted_rows,
    used_contents,
)
from relay.spool.shared.rows.receipts import note_receipt, record_sent
from relay.spool.shared.rows.settled import Recorded, record_beside, settled_rows, waiting_columns
from relay.spool.shared.tables import StoredBodies, StoredBody, StoredContents
from relay.spool.types import (
    NEVER_US,
    Accepted,
    Claim,
    HoldsFullError,
    NewMessage,
    SentReceipt,
    Settlement,
    SpoolUnavailableError,
)

_ENDS, _WAITS, _GOES_ON = 1, 0, 2
# A release, or another hold of the domain, waits for acceptances, and then finds their entries.
_LOCK_HOLDS = " FOR SHARE"
_PARTS = "SELECT id, count(*) FROM body WHERE id = ? GROUP BY id"


def reads_for(messages: Sequence[NewMessage], stored: StoredContents) -> bool:
    """Whether an operation that adds messages has to run alone, since it looks for the parts of
    bodies, or for holds of domains.
    """
    return any(stored) or is_held_as_it_comes(messages)


def reads_first(message: NewMessage, receipt: SentReceipt | None) -> bool:
    """Whether an acceptance has to run alone, since it reads before it decides."""
    return receipt is not None or (message.held_max is not None and bool(message.held_by_rules))


def accept(
    transaction: WriteTransaction,
    messages: Sequence[NewMessage],
    bodies: StoredContents,
    *,
    submission_key: str,
    submission_expires_us: int,
    captured: CapturedMail,
    claim: bool,
    receipt: SentReceipt | None = None,
) -> Accepted | HoldsFullError:
    """Write messages[0] and the reports that follow it; or return the error, and nothing is done,
    where rules would hold more entries than they may. The commit raises KnownKeyError for a known
    key.
    """
    first = messages[0]
    if reads_first(first, receipt):
        if receipt is not None:
            record_sent(transaction, receipt)
        if submission_key and (known := accepted_as(transaction, submission_key)):
            return Accepted(known, repeated=True)
        if (full := lack_of_room(transaction, first)) is not None:
            return full
        if receipt is not None:
            note_receipt(transaction, receipt)
    if submission_key:
        row = (submission_key, first.facts.id, submission_expires_us)
        if any(one[0] == submission_key for one in transaction.rows.submissions):
            raise KnownKeyError("the submission key is used twice in one commit")
        transaction.rows.submissions.append(row)
    claims: list[Claim] = []
    ends: list[int] = []
    for message, stored in zip(messages, bodies, strict=True):
        added = add_message(transaction, message, stored, claim=claim, captured=captured)
        claims += added.claims
        ends += added.parked_until_us
    return Accepted(first.facts.id, tuple(claims), parked_until_us=min(ends, default=None))


def add_message(
    transaction: WriteTransaction,
    message: NewMessage,
    bodies: StoredBodies,
    *,
    claim: bool,
    captured: CapturedMail,
    store: int = 0,
) -> AcceptedRows:
    """Add the rows of a message, and return those that all engines have. Its local mail goes to the
    mail root `store`, if it is given, else to that of this node.
    """
    message = as_held_now(transaction, message, lock=_LOCK_HOLDS)
    facts, rows = message.facts, transaction.rows
    _check_parts(transaction, bodies)
    used = used_contents(message)
    keys = {index: (facts.id, index) for index in used}
    store = store or transaction.stores.own
    claim = claim and (transaction.stores.is_held_by_us(store) or not _is_local(message))
    added = accepted_rows(
        message, keys, kept=used, claim=claim, captured=captured,
        claimed_by=(transaction.incarnation, store),
    )  # fmt: skip
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


def _is_local(message: NewMessage) -> bool:
    return any(entry.next_hop.kind is HopKind.LOCAL for entry in message.entries)


def _check_parts(transaction: WriteTransaction, bodies: StoredBodies) -> None:
    """Raise SpoolUnavailableError if a part is not there: they were not synced, and the server may
    have crashed since. What this transaction sees is durable with its commit.
    """
    if not bodies:
        return
    expected = {(one.name, one.parts) for one in bodies.values()}
    ids = [(body_id,) for body_id, _ in expected]
    if {tuple(row) for row in transaction.fetch_each(_PARTS, ids)} != expected:
        raise SpoolUnavailableError("the server has lost a part of the message")


def settle(
    transaction: WriteTransaction,
    settlement: Settlement,
    bodies: StoredContents,
    *,
    captured: CapturedMail,
    claim_reports: bool,
    now_us: int,
) -> Recorded:
    """Record outcomes; the commit raises StaleClaimError where the claim has ended. `now_us` is
    queue time, or NEVER_US if no read receipts are to be recorded.
    """
    claim, rows = settlement.claim, transaction.rows
    changed = settled_rows(settlement, captured=captured, takes_receipts=now_us != NEVER_US)
    ends = _ENDS if changed.is_finished else _GOES_ON if settlement.goes_on else _WAITS
    entry = SettledEntry(
        *claim.key, claim.epoch, claim.owner, claim.content_id[1], ends, changed.state,
        changed.attempts, *waiting_columns(changed.waiting),
    )  # fmt: skip
    rows.settled.append(entry)
    rows.outcomes += changed.recipients
    rows.hops += [claim.next_hop.key] * len(changed.recipients)
    rows.counts.update(changed.final)
    if changed.is_finished and claim.is_held_by_rule:
        count_holds(transaction, {claim.extra.rule: -1})
    transaction.append_events(claim.message.id, settlement.events)
    if runs_statements(settlement):
        record_beside(transaction, settlement, changed, now_us=now_us, store=claim.store)
    claims: list[Claim] = []
    for message, stored in zip(settlement.reports, bodies, strict=True):
        added = add_message(
            transaction, message, stored, claim=claim_reports, captured=captured, store=claim.store
        )
        claims += added.claims
    return Recorded(tuple(claims), owes=bool(changed.receipts))


def runs_statements(settlement: Settlement) -> bool:
    """Whether a settlement has to run alone, since it does more than add rows."""
    return bool(
        settlement.held
        or settlement.unanswered
        or settlement.owed
        or settlement.pays
        or settlement.ends_warning
        or settlement.remote_report is not None
        or any(one.evidence.receipt is not None for one in settlement.outcomes.values())
    )


def _content_columns(content: Content, body: StoredBody | None) -> tuple[Any, ...]:
    """Return size, data, header, body, eight_bit and crc32, which is that of the body continued
    with the header.
    """
    if isinstance(content, bytes):
        return len(content), content, None, "", 0, crc32(content)
    assert body is not None
    found = crc32(content.header, body.crc32)
    return content.size, None, content.header, body.name, content.flags, found
