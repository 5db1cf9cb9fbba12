"""Events of messages; and how to wait for a condition that has no event of its own."""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from relay.store.journeys.details import read_detail
from relay.store.journeys.events import Event


async def until(ready: Callable[[], object], *, timeout_s: float = 90) -> None:
    """Return when `ready()` is true. Raises TimeoutError. The longer it takes, the less often it is asked."""
    pause_s = 0.002
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.1, 0.02)


def an_event(step: int, at_us: int, detail: Mapping[str, Any] = MappingProxyType({})) -> Event:
    """Return an event of a step, with what its JSON has."""
    return Event(at_us, read_detail(step, detail))
