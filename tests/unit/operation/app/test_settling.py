"""Settling: a request in progress is something to do."""

import asyncio

import pytest

from relay.base.socket_address import Address
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import open_folder
from relay.operation.app.settling import UnsettledError

FREE = Address("127.0.0.1", 0)
HALF_A_REQUEST = (
    b"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
)


async def test_a_request_in_progress_is_something_to_do(short_path):
    folder = open_folder(short_path / "dev")
    options = DevelopmentOptions(http=FREE, https=FREE, smtp=FREE)
    relay = await asyncio.to_thread(DevelopmentRelay, folder, options)
    try:
        await relay.start()
        await relay.settle()  # what a start does
        at = relay.addresses.http
        _, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(HALF_A_REQUEST)
        async with asyncio.timeout(30):
            while not relay.daemon.settling.graph.changes_in_progress:
                await asyncio.sleep(0.001)
        expected = r"after 0\.05 seconds: HTTP requests [a-z ]+: 1\b"
        with pytest.raises(UnsettledError, match=expected):
            await relay.settle(0.05)
        writer.close()
        await relay.settle()
    finally:
        await relay.stop()
        folder.remove()
