"""Read entries with their messages, and what a queue command needs of them.

load_entries() takes a few statements, however many entries there are. What a command does to them
is decided in relay/store/spool/shared/decisions.py, which reads no tables.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.lifecycle import RecipientState
from relay.base.message.nexthop import Destination
from relay.store.journeys.details import CommandDetail, read_detail
from relay.store.journeys.events import Step
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.shared.columns import LIVE_STATES
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import ContentKey, EntryExtra, Key, PriorityLevel, readable_extra

# The key, and the columns in the order of EntryFacts.
ENTRY = (
    "SELECT e.message_id, e.number, e.state, e.claimed, e.next_hop, e.retry_us, e.due_us,"
    " e.warn_us, e.content_id, e.attempts, m.expires_us, e.epoch, e.extra, m.reverse_path,"
    " m.subject, m.size, e.lane, m.received_us"
    " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ?"
)
_EVENTS_MAX = 50  # of a message, the newest, that are searched for an operation
_LIVE_ENTRY = f"{ENTRY} AND e.state <> 'final'"
_LIVE_RECIPIENTS = (
    "SELECT message_id, entry, number, address FROM recipient WHERE message_id = ? AND entry = ?"
    f" AND state IN {LIVE_STATES} ORDER BY number"
)
_OPERATIONS = (
    "SELECT message_id, detail FROM event WHERE message_id = ? AND step = ?"
    " ORDER BY sequence DESC LIMIT ?"
)
_LAST_ENTRY = "SELECT message_id, max(number) FROM entry WHERE message_id = ? GROUP BY message_id"
# Recipients outlive their entry.
_LAST_RECIPIENT = (
    "SELECT message_id, max(entry), max(number) FROM recipient WHERE message_id = ?"
    " GROUP BY message_id"
)
_OWING = (
    "SELECT DISTINCT message_id, entry FROM recipient WHERE message_id = ? AND entry = ?"
    " AND owed_report <> ''"
)


class EntryFacts(Struct, frozen=True):
    """An entry with its message, as they are stored; times are queue time in µs."""

    state: RecipientState  # before the operation
    is_claimed: bool  # delivery has it, or had it when the relay was killed
    next_hop: str  # as it is stored
    retry_us: int | None  # when it may be attempted; None: not without an operator
    due_us: int  # the earliest of retry, warning and expiry
    warn_us: int | None  # of the delay warning; None: none is due
    content_id: ContentKey  # of its content
    attempts: int  # so far
    expires_us: int  # of the entry if `ends_alone`, else of its message; 0: no message is there
    epoch: int  # which each change raises
    extra_text: str  # as it is stored
    # reverse_path, subject, size and received_us are None if the message is missing
    reverse_path: str | None = None  # of its message
    subject: str | None = None  # of its message
    size: int | None = None  # of its message, in octets
    level: int = PriorityLevel.NORMAL  # of the entry
    received_us: int | None = None  # of its message
    extra: EntryExtra | None = None  # of the entry; None: it cannot be read
    ends_alone: bool = False  # it has another expiry than its message

    @property
    def rule(self) -> str:
        """The rule that holds it, "" if no rule does."""
        is_held = self.state is RecipientState.HELD and self.extra is not None
        return self.extra.rule if self.extra is not None and is_held else ""

    @property
    def is_awaited(self) -> bool:
        """Whether the answer of Microsoft Graph to a /send is not known."""
        return self.extra is not None and self.extra.in_doubt

    @property
    def ordered(self) -> str:
        """The operation that waits for this answer, "" for none."""
        order = self.extra.order if self.extra is not None else None
        return order.operation if order is not None else ""

    def is_held_by(self, to: Destination) -> bool:
        """Whether a route holds it at this next hop. An entry that was released before, or that is
        captured, is not held: an operator has seen it.
        """
        if not to.held or self.state not in (RecipientState.QUEUED, RecipientState.DEFERRED):
            return False
        return self.extra is None or not self.extra.released


class LoadedEntries(Struct, frozen=True):
    """What a command reads of some entries. Entries that have ended are left out."""

    facts: Mapping[Key, EntryFacts]
    # the number and address of each recipient that is not final, of entries that are rerouted
    recipients: Mapping[Key, Sequence[tuple[int, str]]] = {}
    # by message, newest first: the operations on entries that are held, if the command depends on
    # it
    operations: Mapping[str, Sequence[CommandDetail]] = {}
    # of messages that may get new entries: the greatest number of an entry, and of a recipient
    last_numbers: Mapping[str, tuple[int, int]] = {}
    to_be_planned: Collection[Key] = ()  # a cancel does not end these without a plan for reports

    def operations_on(self, key: Key) -> Iterable[CommandDetail]:
        """Return the operations on an entry, newest first."""
        message_id, number = key
        operations = self.operations.get(message_id, ())
        return [detail for detail in operations if number in detail.entries]


def load_entries(tables: Tables, command: QueueCommand, keys: Sequence[Key]) -> LoadedEntries:
    """Read what `command` needs of these entries."""
    facts = {
        (str(message_id), int(number)): read_entry_facts(*row)
        for message_id, number, *row in tables.fetch_each(_LIVE_ENTRY, keys)
    }
    moving = [key for key, entry in facts.items() if command.is_rerouting(entry.state)]
    if command.to is None:
        moving = []
    held = {
        key[0]: None
        for key, entry in facts.items()
        if entry.state is RecipientState.HELD and _depends_on_hold(command)
    }
    recipients: dict[Key, list[tuple[int, str]]] = {}
    if moving and not command.copy_to:
        for message_id, entry, number, address in tables.fetch_each(_LIVE_RECIPIENTS, moving):
            recipients.setdefault((message_id, entry), []).append((number, address))
    is_cancel = command.operation is Operation.CANCEL
    return LoadedEntries(
        facts,
        recipients,
        operations=_operations(tables, held),
        last_numbers=_last_numbers(tables, dict.fromkeys(key[0] for key in moving)),
        to_be_planned=to_be_planned(tables, keys, command) if is_cancel else (),
    )


def to_be_planned(tables: Tables, keys: Sequence[Key], command: QueueCommand) -> Collection[Key]:
    """Return which of these entries a cancel must not end without a plan for reports. Without
    --bounce there are nearly always none.
    """
    if command.bounce:
        return keys
    rows = tables.fetch_each(_OWING, keys)
    return dict.fromkeys((str(message_id), int(entry)) for message_id, entry in rows)


def read_entry_facts(state: str, is_claimed: int, *columns: Any) -> EntryFacts:
    """Return the facts in a row of ENTRY, of which the key is left out."""
    facts = EntryFacts(RecipientState(state), bool(is_claimed), *columns)
    extra = readable_extra(facts.extra_text)
    own_us = extra.expires_us if extra is not None else 0
    end_us = own_us or facts.expires_us or 0
    return replace(facts, expires_us=end_us, extra=extra, ends_alone=bool(own_us))


def _depends_on_hold(command: QueueCommand) -> bool:
    """Whether the command depends on the operation that held an entry."""
    if command.operation is Operation.RELEASE:
        return command.as_before or command.selector.restored
    return command.operation is Operation.HOLD


def _operations(tables: Tables, message_ids: Collection[str]) -> dict[str, list[CommandDetail]]:
    """Return the newest operations on entries of these messages, newest first."""
    operations: dict[str, list[CommandDetail]] = {}
    if message_ids:
        values = [(message_id, int(Step.DELIVERY), _EVENTS_MAX) for message_id in message_ids]
        for message_id, text in tables.fetch_each(_OPERATIONS, values):
            if '"operation"' in text:
                detail = read_detail(Step.DELIVERY, msgspec.json.decode(text))
                if isinstance(detail, CommandDetail):
                    operations.setdefault(message_id, []).append(detail)
    return operations


def _last_numbers(tables: Tables, message_ids: Collection[str]) -> dict[str, tuple[int, int]]:
    if not message_ids:
        return {}
    ids = [(message_id,) for message_id in message_ids]
    entries = dict(tables.fetch_each(_LAST_ENTRY, ids))
    last = {}
    for message_id, entry, number in tables.fetch_each(_LAST_RECIPIENT, ids):
        last[message_id] = (max(entries.get(message_id, 0), entry), number)
    return {message_id: (number, 0) for message_id, number in entries.items()} | last
