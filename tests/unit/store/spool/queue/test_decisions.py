"""What a queue command decides about the entries of one transaction, without a spool."""

from collections.abc import Mapping, Sequence
from typing import Any

from relay.base.message.lifecycle import RecipientState
from relay.store.spool.queue_commands import CommandResult, QueueCommand
from relay.store.spool.shared.decisions import ChangeResult, decide
from relay.store.spool.shared.entry_changes import EntryChanges
from relay.store.spool.shared.entry_facts import EntryFacts, LoadedEntries
from relay.store.spool.types import EntryExtra, Key, extra_text
from tests.support.operator import HOUR_US, command
from tests.support.tables import each_row

NOW_US = 1000 * HOUR_US
END_US = NOW_US + 48 * HOUR_US
FIRST, SECOND = ("m", 1), ("m", 2)


def facts(extra: EntryExtra | None = None, **changes: Any) -> EntryFacts:
    extra = extra or EntryExtra()
    values = {
        "state": RecipientState.QUEUED,
        "is_claimed": False,
        "next_hop": "mx:a.test",
        "retry_us": NOW_US,
        "due_us": NOW_US,
        "warn_us": None,
        "content_id": 1,
        "attempts": 0,
        "expires_us": extra.expires_us or END_US,
        "epoch": 3,
        "extra_text": extra_text(extra),
        "extra": extra,
        "reverse_path": "s@a.test",
        "ends_alone": bool(extra.expires_us),
    }
    return EntryFacts(**values | changes)


def decided(
    order: QueueCommand,
    entries: Mapping[Key, EntryFacts],
    *,
    taken: Sequence[Key] = (),
    planned: Mapping[Key, int | None] | None = None,
    **more: Any,
) -> tuple[ChangeResult, EntryChanges]:
    return decide(
        LoadedEntries(entries, **more),
        order,
        list(entries),
        taken=taken,
        now_us=NOW_US,
        at_us=NOW_US,
        planned=planned or {},
    )


@each_row(
    "planned, ended",
    [
        ({FIRST: 3, SECOND: 3}, [FIRST, SECOND]),
        ({FIRST: 3, SECOND: None}, [FIRST, SECOND]),  # one that is damaged
        ({FIRST: 3, SECOND: 2}, []),  # it was claimed and released since
        ({FIRST: 3, SECOND: 3, ("m", 4): 3}, []),  # it has ended since
        ({FIRST: 3}, [FIRST]),  # it is new
    ],
)
def test_a_message_is_cancelled_only_as_its_reports_know_it(planned, ended) -> None:
    entries = dict.fromkeys((FIRST, SECOND), facts())
    order = command("cancel", bounce=True)
    result, changes = decided(order, entries, planned=planned, to_be_planned=list(entries))
    assert changes.states.get(RecipientState.CANCELLED, []) == list(result.ended) == ended
    passed_over = [
        key for key, (one, _) in result.results.items() if one is CommandResult.IN_FLIGHT
    ]
    assert passed_over == [key for key in entries if key not in ended]
