"""Wait for a condition that has no event of its own."""

import asyncio
from collections.abc import Callable


async def until(ready: Callable[[], object], *, timeout_s: float = 60) -> None:
    """Return when `ready()` is true. Raises TimeoutError. The longer it takes, the less often it is asked."""
    pause_s = 0.002
    async with asyncio.timeout(timeout_s):
        while not ready():
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.1, 0.02)
