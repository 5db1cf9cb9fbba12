"""Which mail root each store has, as the spool records it."""

from relay.message.lifecycle import RecipientState
from relay.spool.engine import RecordedRoot
from relay.spool.tables import OpenTransaction, Tables

_ID = "SELECT id FROM mail_root WHERE store = ?"
_RECORD = (
    "INSERT INTO mail_root (store, id) VALUES (?, ?)"
    " ON CONFLICT (store) DO UPDATE SET id = excluded.id WHERE mail_root.id IN ('', ?)"
)
_WAS_USED = "SELECT 1 FROM counter WHERE name = ? AND value > 0"


def mail_root(tables: Tables, store: str) -> RecordedRoot:
    """SpoolEngine.mail_root."""
    row = tables.fetch_one(_ID, (store,))
    delivered = tables.fetch_one(_WAS_USED, (RecipientState.DELIVERED,))
    return RecordedRoot(row[0] if row is not None else "", was_used=delivered is not None)


def record_mail_root(
    transaction: OpenTransaction, store: str, root_id: str, *, instead_of: str
) -> str:
    """SpoolEngine.record_mail_root."""
    transaction.execute(_RECORD, (store, root_id, instead_of))
    return str(transaction.fetch_one(_ID, (store,))[0])
