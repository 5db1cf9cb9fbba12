"""Apply a queue command to some entries in one transaction: load what it needs of them, decide,
and store the result.

See relay/spool/common/queued_entries.py and relay/spool/common/queue_decisions.py.
"""

from collections.abc import Collection, Sequence

from relay.spool.common.cancel_reports import NOTHING_PLANNED, PlannedReports
from relay.spool.common.claim_changes import PAY
from relay.spool.common.queue_decisions import ChangeResult, CommandTimes, decide
from relay.spool.common.queue_engine import QueueEngine
from relay.spool.common.queued_entries import load_entries, store_changes
from relay.spool.queue_commands import CommandResult, QueueCommand
from relay.spool.tables import OpenTransaction
from relay.spool.types import Key


def change(
    transaction: OpenTransaction,
    command: QueueCommand,
    keys: Sequence[Key],
    *,
    engine: QueueEngine,
    taken: Collection[Key],
    times: CommandTimes,
    planned: PlannedReports = NOTHING_PLANNED,
) -> ChangeResult:
    """Apply `command` to these entries; `taken` are entries whose claims were withdrawn.

    A withdrawn entry that is not changed is released; it is due as before. A cancel changes
    messages with reports only if they are as `planned` knew them. What another node has claimed is
    left alone.
    """
    loaded = load_entries(transaction, command, keys)
    # what was withdrawn may have been taken over since, by the node that delivers it now
    elsewhere = engine.elsewhere(transaction, taken) if taken else {}
    result, changes = decide(
        loaded, command, keys, taken=[key for key in taken if key not in elsewhere],
        times=times, planned=planned.epochs,
    )  # fmt: skip
    result.cancelled = store_changes(transaction, changes)
    done = [key[0] for key, (one, _) in result.results.items() if one is CommandResult.DONE]
    for message_id in dict.fromkeys(done):
        if (made := planned.by_message.get(message_id)) is not None:
            engine.add_reports(transaction, made.plan.messages, made.stored, original=message_id)
            transaction.append_events(message_id, made.plan.events)
            paid = [key for key in planned.epochs if key[0] == message_id]
            transaction.execute_each(PAY, paid)
            result.reports += made.plan.messages
            result.due_us = times.queue_us
    return result
