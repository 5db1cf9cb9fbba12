"""A development relay in the process of the test, on free ports."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from relay.base.socket_address import Address
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import open_folder

FREE = Address("127.0.0.1", 0)


@asynccontextmanager
async def development_relay(folder: Path, **options: Any) -> AsyncIterator[DevelopmentRelay]:
    """Run it in a folder, which goes with it; `options` are those of DevelopmentOptions."""
    opened = open_folder(folder)
    chosen = DevelopmentOptions(**({"http": FREE, "https": FREE, "smtp": FREE} | options))
    relay = await asyncio.to_thread(DevelopmentRelay, opened, chosen)
    try:
        await relay.start()
        yield relay
    finally:
        await relay.stop()
        opened.remove()
