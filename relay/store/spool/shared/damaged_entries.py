"""Entries that cannot be read are held, so that others continue."""

from relay.base.message.lifecycle import RecipientState
from relay.base.observe.logs import get_logger
from relay.store.spool.shared.entry_notes import MOVE_RECIPIENTS, command_event, note_hold
from relay.store.spool.shared.tables import OpenTransaction
from relay.store.spool.types import Key

DAMAGED_DUE_US = 1 << 62  # when a damaged entry is due: never
_HOLD_DAMAGED = (
    "UPDATE entry SET state = 'held', due_us = ?, retry_us = NULL, warn_us = NULL, claimed = 0,"
    " epoch = epoch + 1 WHERE message_id = ? AND number = ? AND claimed = ?"
)
_log = get_logger("spool")


def hold_damaged(
    transaction: OpenTransaction, key: Key, text: str, *, at_us: int, is_claimed: bool
) -> None:
    """Hold an entry that cannot be read, so that others continue. The log, the journey and the
    queue list say so.
    """
    if not transaction.execute(_HOLD_DAMAGED, (DAMAGED_DUE_US, *key, int(is_claimed))):
        return
    message_id, number = key
    transaction.execute(MOVE_RECIPIENTS, (RecipientState.HELD, *key))
    note_hold(transaction, key, f"relay: damaged: {text}", since_us=at_us)
    event = command_event("hold", number, at_us=at_us, why=f"damaged: {text}")
    transaction.append_events(message_id, [event])
    _log.error("entry damaged", qid=message_id, entry=number, error=text)
