"""The facts of an entry on which a queue command depends.

See relay/spool/sqlite/queue_changes.py, which changes entries by them.
"""

from contextlib import suppress

import apsw
from msgspec import Struct

from relay.message.lifecycle import RecipientState
from relay.message.nexthop import Destination
from relay.spool.sqlite.database import fetch_one
from relay.spool.types import EntryExtra, Key, parse_entry_extra

_FACTS = (
    "SELECT e.state, e.claimed, e.next_hop, e.retry_us, e.due_us, e.warn_us, e.content_id,"
    " e.attempts, coalesce(m.expires_us, 0), e.epoch, e.extra"
    " FROM entry e LEFT JOIN message m ON m.id = e.message_id"
    " WHERE e.message_id = ? AND e.number = ? AND e.state <> 'final'"
)


class EntryFacts(Struct, frozen=True):
    """The facts of an entry on which an operation depends; times are queue time in µs."""

    state: RecipientState  # before the operation
    is_claimed: bool  # delivery has it, or had it when the relay was killed
    next_hop: str  # as it is stored
    retry_us: int | None  # when it may be attempted; None: not without an operator
    due_us: int  # the earliest of retry, warning and expiry
    warn_us: int | None  # of the delay warning; None: none is due
    content_id: int  # of its content
    attempts: int  # so far
    expires_us: int  # of the entry if `ends_alone`, else of its message
    epoch: int  # each change raises it
    extra: EntryExtra | None  # None: it cannot be read
    ends_alone: bool = False  # it has an end of its own

    @property
    def rule(self) -> str:
        """The rule that holds it, "" if none does."""
        is_held = self.state is RecipientState.HELD and self.extra is not None
        return self.extra.rule if self.extra is not None and is_held else ""

    def is_held_by(self, to: Destination) -> bool:
        """Whether the routes hold it at a new next hop: not what was released before, and not what
        an operator sends there who has seen it captured.
        """
        if not to.held or self.state not in (RecipientState.QUEUED, RecipientState.DEFERRED):
            return False
        return self.extra is None or not self.extra.released


def read_entry_facts(cursor: apsw.Cursor, key: Key) -> EntryFacts | None:
    """Read the facts; None where the entry has ended."""
    row = fetch_one(cursor, _FACTS, key)
    if row is None:
        return None
    state, is_claimed, next_hop, retry_us, due_us, warn_us, *others = row
    content_id, attempts, expires_us, epoch, text = others
    extra = None
    with suppress(ValueError):
        extra = parse_entry_extra(text)
    own_us = extra.expires_us if extra is not None else 0
    return EntryFacts(
        state=RecipientState(state), is_claimed=bool(is_claimed), next_hop=next_hop,
        retry_us=retry_us, due_us=due_us, warn_us=warn_us, content_id=content_id,
        attempts=attempts, expires_us=own_us or expires_us, epoch=epoch, extra=extra,
        ends_alone=bool(own_us),
    )  # fmt: skip
