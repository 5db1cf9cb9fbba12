"""Counts by state, and addresses, of the newest messages."""

from collections.abc import Mapping, Sequence
from itertools import islice

from relay.store.journeys.message_list import SCAN_MAX
from relay.store.spool.shared.tables import Tables

_ADDRESSES_MAX = 2000
_IDS_MAX = 10_000  # twice in one statement, which has at most 32,766 values in SQLite
_ENDS_OF_NEWEST = (
    "SELECT count(*), min(id), max(id)"
    " FROM (SELECT id FROM message ORDER BY id DESC LIMIT ?) AS newest"
)


def count_states(
    tables: Tables, *, account: str | None, limit: int
) -> tuple[int, Mapping[str, int]]:
    """SpoolHistory.count_states."""
    if account is None:
        [(total, *ends)] = tables.fetch(_ENDS_OF_NEWEST, (limit,))
        where, values = "{} BETWEEN ? AND ?", tuple(ends)
    else:
        ids = _newest(tables, account=account, limit=limit)
        total, (where, values) = len(ids), tables.among("{}", ids)
    rows = tables.fetch(
        "SELECT state, count(DISTINCT message_id) FROM recipient"
        f" WHERE {where.format('message_id')} AND added_by = '' GROUP BY state"
        f" UNION ALL SELECT source, count(*) FROM message WHERE {where.format('id')}"
        " AND source = 'report' GROUP BY source",
        (*values, *values),
    )
    return total, dict(rows)


def recent_addresses(tables: Tables, *, account: str | None, limit: int) -> Sequence[str]:
    """SpoolHistory.recent_addresses."""
    ids = _newest(tables, account=account, limit=min(limit, _IDS_MAX))
    recipients, senders = tables.among("message_id", ids), tables.among("id", ids)
    rows = tables.fetch(
        "SELECT min(address) FROM (SELECT address, message_id,"
        " CASE state WHEN 'delivered' THEN 1 ELSE 0 END AS is_local"
        f" FROM recipient WHERE {recipients[0]} AND added_by = ''"
        " UNION ALL SELECT reverse_path, id, CASE account WHEN '' THEN 0 ELSE 1 END"
        f" FROM message WHERE {senders[0]}) AS known WHERE address <> '' GROUP BY lower(address)"
        " ORDER BY max(is_local) DESC, max(message_id) DESC LIMIT ?",
        (*recipients[1], *senders[1], _ADDRESSES_MAX),
    )
    return [address for (address,) in rows]


def _newest(tables: Tables, *, account: str | None, limit: int) -> list[str]:
    """Return the ids of the newest messages."""
    rows = tables.each(
        "SELECT id, account FROM message ORDER BY id DESC LIMIT ?",
        (SCAN_MAX if account else limit,),
    )
    own = (queue_id for queue_id, owner in rows if account in (None, owner))
    return list(islice(own, limit))
