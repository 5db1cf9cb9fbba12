"""Settling: a request in progress is something to do."""

import asyncio

import pytest

from relay.operation.app.settling import UnsettledError
from tests.support.development_relay import development_relay

HALF_A_REQUEST = (
    b"POST /v1.0/me/sendMail HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer alice\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
)


async def test_a_request_in_progress_is_something_to_do(short_path):
    async with development_relay(short_path / "dev") as relay:
        await relay.settle()  # what a start does
        at = relay.addresses.http
        _, writer = await asyncio.open_connection(at.host, at.port)
        writer.write(HALF_A_REQUEST)
        async with asyncio.timeout(120):
            while not relay.daemon.settling.graph.changes_in_progress:
                await asyncio.sleep(0.001)
        expected = r"after 0\.05 seconds: HTTP requests [a-z ]+: 1\b"
        with pytest.raises(UnsettledError, match=expected):
            await relay.settle(0.05)
        writer.close()
        await relay.settle()
