"""The rows of a new message, so that every engine writes the same ones."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.content import size_of
from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import HopKind, NextHop
from relay.base.phrases import words_in
from relay.store.spool import types
from relay.store.spool.queue_commands import earliest_due_us
from relay.store.spool.shared.columns import ACCEPTED_COUNTER, recipient_row
from relay.store.spool.shared.hold_counters import lack_of_room
from relay.store.spool.shared.receipts import note_receipt, record_sent
from relay.store.spool.shared.suppression import since_of
from relay.store.spool.shared.tables import OpenTransaction, StoredContents, Tables

# The columns of a new entry, in the order of AcceptedRows.entries. The others: no attempts, the
# first epoch, no cause.
ENTRY_COLUMNS = words_in(
    "message_id number next_hop content_id state claimed due_us retry_us lane sender warn_us"
    " priority extra"
)
# Of submission keys: the history of a message may be gone before its key.
RECIPIENTS_OF_KEYS = (
    "SELECT s.key, coalesce(s.message_id || '-' || r.number, '')"
    " FROM submission s LEFT JOIN recipient r ON r.message_id = s.message_id WHERE {}"
)

RECIPIENTS_OF_MESSAGES = "SELECT message_id, address, state FROM recipient WHERE message_id {}"


class CapturedMail(Struct, frozen=True):
    """What happens to captured mail: it is captured when it is accepted, and expires `keep_us`
    after its arrival.

    With `is_delivered`, as in a development relay, it is queued until delivery has put a copy into
    the recipient's mailbox. It does not expire, because the queue follows a clock that is advanced:
    what removes it after `keep_us` of real time uses DevelopmentSpool.discard().
    """

    keep_us: int
    is_delivered: bool = False

    def due_us(self, received_us: int) -> int:
        """Return when captured mail expires, in queue time."""
        return types.NEVER_US if self.is_delivered else received_us + self.keep_us

    def ends_at_acceptance(self, next_hop: NextHop) -> bool:
        """Whether mail for `next_hop` is captured when it is accepted."""
        return next_hop.kind is HopKind.CAPTURE and not self.is_delivered


class AcceptedRows(Struct, frozen=True):
    """The rows of the entries and recipients of one message, and the claims of its entries."""

    entries: Sequence[tuple[Any, ...]]  # ENTRY_COLUMNS
    recipients: Sequence[tuple[Any, ...]]  # recipient_row()
    counts: Counter[str]  # by how much counters change, without those of holds
    claims: Sequence[types.Claim]  # of the entries that are claimed
    first_end_us: Sequence[int]  # when entries end that are held or captured from the beginning


def accepted_as(tables: Tables, submission_key: str) -> str:
    """SpoolEngine.accepted_as."""
    known = tables.fetch_one("SELECT message_id FROM submission WHERE key = ?", (submission_key,))
    return str(known[0]) if known else ""


NotAccepted = types.HoldsFullError | types.SuppressedError


class NewMail(Struct, frozen=True):
    """A message to accept, and the reports that follow it."""

    messages: Sequence[types.NewMessage]  # the message first
    stored: StoredContents  # of each message
    captured: CapturedMail  # what happens to it
    submission_key: str  # "": none
    key_expires_us: int  # in queue time
    claim: bool  # whether the queued entries are claimed
    receipt: types.SentReceipt | None  # what is recorded if the message is a read receipt
    sought: Sequence[str] = ()  # addresses that must not be on the list of dead addresses
    ended_us: int = 0  # SuppressionList.ended_us


def decided_before(
    transaction: OpenTransaction, new: NewMail
) -> types.Accepted | types.HoldsFullError | None:
    """Return the answer of an acceptance that adds nothing: the submission key is known, or rules
    would hold more entries than they may. None: the message is to be added. A read receipt is
    recorded as sent.
    """
    if new.receipt is not None:
        record_sent(transaction, new.receipt)
    queue_id = accepted_as(transaction, new.submission_key) if new.submission_key else ""
    if queue_id:
        return types.Accepted(queue_id, repeated=True)
    full = lack_of_room(transaction, new.messages[0])
    if full is None and new.receipt is not None:
        note_receipt(transaction, new.receipt)
    return full


def suppressed_of(tables: Tables, new: NewMail) -> types.SuppressedError | None:
    """Return the error if addresses that are sought are on the list of dead addresses."""
    since_us = since_of(tables, new.sought, new.ended_us) if new.sought else {}
    return types.SuppressedError(since_us) if since_us else None


def accepted(message: types.NewMessage, added: Sequence[AcceptedRows]) -> types.Accepted:
    """Return the answer for a message. `added` are its rows, and the rows of its reports."""
    claims = tuple(claim for rows in added for claim in rows.claims)
    ends = (end_us for rows in added for end_us in rows.first_end_us)
    return types.Accepted(message.facts.id, claims, first_end_us=min(ends, default=None))


def used_contents(message: types.NewMessage) -> set[int]:
    """Return the contents that an entry has; the others are not stored."""
    return {entry.content for entry in message.entries}


def accepted_rows(
    message: types.NewMessage,
    content_keys: Mapping[int, types.ContentKey],
    *,
    kept: Collection[int],
    claim: bool,
    captured: CapturedMail,
    claimed_by: tuple[int, int] = (0, 0),
) -> AcceptedRows:
    """Return the rows that a message adds.

    `content_keys` are the keys of its contents, by index. With `claim` its queued entries are
    claimed; a claim carries its content if the index is in `kept`. `claimed_by` is Claim.owner and
    Claim.store.
    """
    facts = message.facts
    counts: Counter[str] = Counter()
    entries, recipients, claims, first_end_us = [], [], [], []
    numbers = _numbers(message)
    for recipient in message.final_recipients:
        number = recipient.position or next(numbers)
        recipients.append(recipient_row(facts.id, recipient, entry=0, number=number))
        counts[recipient.state] += 1
    for position, entry in enumerate(message.entries, 1):
        state = _first_state(entry, captured)
        is_queued = state is RecipientState.QUEUED
        retry_us: int | None = facts.received_us
        due_us, warn_us = facts.received_us, message.warn_us
        if not is_queued:  # it is not attempted, and no delay is reported
            retry_us, warn_us = entry.extra.until_us or None, None
            end_us = entry.extra.expires_us or facts.expires_us
            if state is RecipientState.CAPTURED:
                end_us = captured.due_us(facts.received_us)
            due_us = earliest_due_us(retry_us, warn_us=warn_us, end_us=end_us)
            first_end_us.append(due_us)
        level, priority = message.level_of(entry), message.priority_of(entry)
        entries.append(
            (
                facts.id,
                position,
                entry.next_hop.key,
                content_keys[entry.content],
                state,
                int(claim and is_queued),
                due_us,
                retry_us,
                level,
                message.sender_key,
                warn_us,
                priority,
                types.extra_text(entry.extra),
            )
        )
        claimed: list[types.ClaimedRecipient] = []
        for recipient in entry.recipients:
            number = recipient.position or next(numbers)
            if not is_queued:
                recipient = replace(recipient, state=state)  # noqa: PLW2901
            recipients.append(recipient_row(facts.id, recipient, entry=position, number=number))
            claimed.append(types.ClaimedRecipient(number, recipient.path, recipient.added_by))
        if claim and is_queued:
            claims.append(
                _first_claim(
                    message,
                    entry,
                    content_keys,
                    position=position,
                    recipients=claimed,
                    has_content=entry.content in kept,
                    claimed_by=claimed_by,
                )
            )
    counts[ACCEPTED_COUNTER] += len(recipients)
    return AcceptedRows(entries, recipients, counts, claims, first_end_us)


def _first_claim(
    message: types.NewMessage,
    entry: types.NewEntry,
    content_keys: Mapping[int, types.ContentKey],
    *,
    position: int,
    recipients: Sequence[types.ClaimedRecipient],
    has_content: bool,
    claimed_by: tuple[int, int],
) -> types.Claim:
    """Return the claim of an entry that is due at once; with its content, if that is in memory."""
    content, (owner, store) = message.contents[entry.content], claimed_by
    return types.Claim(
        entry_id=position,
        epoch=types.FIRST_EPOCH,
        message=message.facts,
        next_hop=entry.next_hop,
        recipients=tuple(recipients),
        attempts=0,
        content_id=content_keys[entry.content],
        content_size=size_of(content),
        content=content if isinstance(content, bytes) and has_content else None,
        retry_us=message.facts.received_us,
        due_us=message.facts.received_us,
        level=message.level_of(entry),
        sender=message.sender_key,
        warn_us=message.warn_us,
        priority=message.priority_of(entry),
        extra=entry.extra,
        owner=owner,
        store=store,
    )


def _numbers(message: types.NewMessage) -> Iterator[int]:
    """Return the numbers after the last position, for recipients without a position."""
    recipients = chain(message.final_recipients, *[entry.recipients for entry in message.entries])
    return count(1 + max([recipient.position for recipient in recipients], default=0))


def _first_state(entry: types.NewEntry, captured: CapturedMail) -> RecipientState:
    if entry.extra.reason:
        return RecipientState.HELD
    ends_here = captured.ends_at_acceptance(entry.next_hop)
    return RecipientState.CAPTURED if ends_here else RecipientState.QUEUED
