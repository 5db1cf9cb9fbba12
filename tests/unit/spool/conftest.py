from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.clock import Ids, ManualClock
from relay.message.nexthop import LOCAL, NextHop
from relay.message.verdict import Source
from relay.spool.sqlite.spool import SqliteSpool
from relay.spool.types import NewEntry, NewMessage, NewRecipient
from tests.support.spools import new_spool


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ids(clock: ManualClock) -> Ids:
    return Ids(clock)


@pytest.fixture
def open_spool(clock: ManualClock) -> Callable[[Path], SqliteSpool]:
    return lambda path: new_spool(path, clock)


@pytest.fixture
async def spool(tmp_path: Path, open_spool) -> AsyncIterator[SqliteSpool]:
    spool = open_spool(tmp_path / "spool.sqlite")
    await spool.start()
    yield spool
    await spool.stop()


@pytest.fixture
def make(ids: Ids, clock: ManualClock):
    """Return a function that builds a message for the given next hops: {"a.test": ["x@a.test"], "local": [...]}."""

    def make(
        hops: dict[str, list[str]] | None = None,
        content: bytes = b"Subject: s\r\n\r\nbody\r\n",
        **changes,
    ) -> NewMessage:
        hops = {"mx:a.test": ["x@a.test"]} if hops is None else hops
        entries = tuple(
            NewEntry(
                LOCAL if hop == "local" else NextHop.parse(hop),
                tuple(NewRecipient(address) for address in addresses),
            )
            for hop, addresses in hops.items()
        )
        values = {
            "id": ids.new(), "reverse_path": "alice@example.test", "source": Source.SMTP,
            "trusted": True, "received_us": clock.time_us(),
            "expires_us": clock.time_us() + 3600_000_000, "contents": (content,),
            "entries": entries, "account": "alice@example.test",
        }  # fmt: skip
        return NewMessage(**(values | changes))

    return make
