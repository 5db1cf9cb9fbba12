"""A spool on a file, and messages for it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from relay.clock import Clock, Ids, SystemClock
from relay.crashpoints import CrashPoints
from relay.message.nexthop import NextHop
from relay.message.verdict import Source
from relay.observe.metrics import Metrics
from relay.spool.sqlite.spool import SqliteSpool
from relay.spool.types import NewEntry, NewMessage, NewRecipient

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
    now_us = _CLOCK.queue_us()
    values = {
        "id": _IDS.new(), "reverse_path": "alice@example.test", "source": Source.SMTP,
        "trusted": True, "received_us": now_us, "expires_us": now_us + 3600 * 1_000_000,
        "contents": (b"Subject: s\r\n\r\nHello.\r\n",),
        "entries": tuple(
            NewEntry(NextHop.parse(hop), (NewRecipient(address),)) for hop, address in hops
        ),
    }  # fmt: skip
    return NewMessage(**(values | changes))
