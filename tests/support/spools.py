"""A spool on a file, and messages for it."""

import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from relay.base.clock import Clock, Ids, SystemClock
from relay.base.crashpoints import CrashPoint, CrashPoints
from relay.base.message.content import size_of
from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.nexthop import NextHop
from relay.base.observe.metrics import Metrics
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import DueBatch, NewEntry, NewMessage, NewRecipient

# Makes of the tables of this Relay's schema, in SQLite, those of 0.2.0.
AS_0_2_0 = """
ALTER TABLE recipient RENAME COLUMN owed_report TO owed;
DROP TABLE standing_hold;
DROP TABLE usage;
DROP INDEX recipient_remote_id;
ALTER TABLE recipient DROP COLUMN remote_id;
PRAGMA user_version = 1;
"""
_CLOCK = SystemClock()
_IDS = Ids(_CLOCK)


def new_spool(path: Path, clock: Clock = _CLOCK, **options: Any) -> SqliteSpool:
    """Open a spool that is not started; `options` are those of SqliteSpool."""
    defaults = {"crash": CrashPoints(), "metrics": Metrics(), "submission_keep_s": 8 * 86400}
    return SqliteSpool(path, clock=clock, **(defaults | options))


@asynccontextmanager
async def spool_on(path: Path, clock: Clock = _CLOCK, **options: Any) -> AsyncIterator[SqliteSpool]:
    """Start a spool and stop it at the end."""
    spool = new_spool(path, clock, **options)
    await spool.start()
    try:
        yield spool
    finally:
        await spool.stop()


def new_message(hops: Sequence[tuple[str, str]], **changes: Any) -> NewMessage:
    """Return a message with one entry for each (next hop, address); it expires in an hour."""
    entries = [(hop, [address]) for hop, address in hops]
    return message_of(entries, queue_id=_IDS.new(), now_us=_CLOCK.queue_us(), **changes)


def message_of(
    hops: Iterable[tuple[str, Iterable[str]]], *, queue_id: str, now_us: int, **changes: Any
) -> NewMessage:
    """Return a message with one entry for each (next hop, addresses).

    `changes` are fields of Envelope, MessageFacts or NewMessage.
    """
    values: dict[str, Any] = {
        "id": queue_id,
        "reverse_path": "alice@example.test",
        "source": Source.SMTP,
        "trusted": True,
        "received_us": now_us,
        "expires_us": now_us + 3600 * 1_000_000,
        "contents": (b"Subject: s\r\n\r\nHello.\r\n",),
        "entries": tuple(
            NewEntry(NextHop.parse(hop), tuple(NewRecipient(ForwardPath(one)) for one in addresses))
            for hop, addresses in hops
        ),
    }
    values |= changes
    values.setdefault("size", size_of(values["contents"][0]))
    values["envelope"] = _taken(Envelope, values)
    values["facts"] = _taken(MessageFacts, values)
    return NewMessage(**values)


def changed_message(message: NewMessage, **changes: Any) -> NewMessage:
    """Return a message with other values for fields of Envelope, MessageFacts or NewMessage."""
    envelope = replace(message.facts.envelope, **_fields_of(Envelope, changes))
    facts = replace(message.facts, **(_fields_of(MessageFacts, changes) | {"envelope": envelope}))
    return replace(message, **(_fields_of(NewMessage, changes) | {"facts": facts}))


def _fields_of(kind: type[Struct], values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in kind.__struct_fields__ if name in values}


def _taken(kind: type[Struct], values: dict[str, Any]) -> Any:
    """Return an object of the values that are its fields, and remove these."""
    return kind(**{name: values.pop(name) for name in kind.__struct_fields__ if name in values})


def ids_of(batch: DueBatch) -> list[str]:
    """Return the queue ids of the claims."""
    return [claim.message.id for claim in batch.claims]


class Stopped(CrashPoints):
    """Stops the writer in the transaction of an acceptance."""

    def __init__(self) -> None:
        super().__init__()
        self.reached_it, self.goes_on = threading.Event(), threading.Event()

    def reached(self, point: CrashPoint) -> None:
        if point is CrashPoint.SPOOL_BEFORE_COMMIT:
            self.reached_it.set()
            assert self.goes_on.wait(30)
