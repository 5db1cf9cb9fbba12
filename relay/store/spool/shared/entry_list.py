"""The entries of the queue as the JSON of `queue list`.

An answer has a bounded number of entries and of recipients. Its times are wall time. See
docs/names.md (Commands).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from relay.base.clock import rfc3339
from relay.base.message.lifecycle import FINAL, RecipientState, message_state
from relay.base.message.nexthop import text_and_route
from relay.store.spool.queue_commands import (
    EntryRecipient,
    ListedEntry,
    ShownTimes,
    has_been_restored,
)
from relay.store.spool.shared.entries import ENTRY, EntryFacts, entry_columns, read_entry
from relay.store.spool.shared.tables import Tables
from relay.store.spool.types import Key, PriorityLevel

_RECIPIENTS = (
    f"SELECT message_id, entry, {', '.join(EntryRecipient.__struct_fields__)} FROM recipient"
    " WHERE message_id = ? AND entry = ? ORDER BY number LIMIT ?"
)
_AT_ONCE = 50  # entries that are read for a list
_FEW = 20  # recipients of each of these entries, at first
_NOTHING: Mapping[Key, Mapping[str, str]] = {}


class EntryListBuilder:
    """Builds the list of one answer."""

    def __init__(self, times: ShownTimes, *, entries_max: int, recipients_max: int) -> None:
        self.entries: list[dict[str, Any]] = []
        self.recipients_left = recipients_max
        self._entries_max = entries_max
        self._times = times

    @property
    def is_full(self) -> bool:
        """Whether no more entries are listed."""
        return len(self.entries) >= self._entries_max

    def add(
        self, tables: Tables, keys: Sequence[Key], more: Mapping[Key, Mapping[str, str]] = _NOTHING
    ) -> None:
        """Append these entries as `tables` has them, until the list is full. `more` has additional
        fields of an entry.
        """
        for start in range(0, len(keys), _AT_ONCE):
            chunk = keys[start : start + _AT_ONCE][: self._entries_max - len(self.entries)]
            if not chunk:
                return
            recipients: dict[Key, list[EntryRecipient]] = {}
            few = tables.fetch_each(_RECIPIENTS, [(*key, _FEW + 1) for key in chunk])
            for message_id, number, *row in few:
                recipients.setdefault((message_id, number), []).append(EntryRecipient(*row))
            for columns in map(entry_columns, tables.fetch_each(ENTRY, chunk)):
                key, state = (columns["message_id"], columns["number"]), None
                listed = recipients.get(key, [])
                if len(listed) > _FEW:
                    rows = tables.fetch(_RECIPIENTS, (*key, self.recipients_left + 1))
                    listed = [EntryRecipient(*row) for _, _, *row in rows]
                if columns["state"] == "final":
                    state = message_state([RecipientState(recipient.state) for recipient in listed])
                self._append(read_entry(columns, state), recipients=listed, more=more.get(key, {}))

    def _append(
        self,
        facts: EntryFacts,
        *,
        recipients: Sequence[EntryRecipient],
        more: Mapping[str, str],
    ) -> None:
        state, retry_us = facts.state, facts.retry_us
        next_hop, route = text_and_route(facts.next_hop)
        listed = recipients[: self.recipients_left]
        self.recipients_left -= len(listed)
        is_held, is_final = state is RecipientState.HELD, state in FINAL
        due = None if retry_us is None or is_final else self._times.wall_time(retry_us)
        entry = ListedEntry(
            id=facts.message_id,
            entry=facts.number,
            sender=facts.reverse_path,
            subject=facts.subject,
            route=route,
            next_hop=next_hop,
            state=state,
            due=due,
            attempts=facts.attempts,
            size=facts.size,
            recipients=tuple(listed),
            claimed=facts.is_claimed,
            priority=PriorityLevel(facts.level).name.lower(),
            expires=self._times.end(state, facts.end_us, received_us=facts.received_us),
            held_until=due if is_held else None,
            **_hold(facts, times=self._times, held=is_held),
            restored=is_held and has_been_restored(facts.due_us),
            order=facts.ordered,
            recipients_cut=len(listed) < len(recipients),
        )
        self.entries.append({**entry.as_json(), **more})


def _hold(facts: EntryFacts, *, times: ShownTimes, held: bool) -> dict[str, str]:
    """Return why an entry is held, which rule holds it, and since when; "" if it is not held."""
    extra = facts.extra
    if not held or extra is None or not extra.reason:
        return dict.fromkeys(("reason", "rule", "since"), "")
    since = rfc3339(extra.since_us) if extra.since_us else times.wall_time(facts.received_us or 0)
    return {"reason": extra.reason, "rule": extra.rule, "since": since}
