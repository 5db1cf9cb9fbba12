"""Wait for a condition that has no event of its own."""

import asyncio
from collections.abc import Callable


async def until(ready: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Return when `ready()` is true. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(0.002)
