"""The command line's way to a daemon, over a real Unix socket."""

import asyncio
import socket
from pathlib import Path

import pytest
from starlette.responses import Response

from relay.base.running_relay import ControlClient, ControlError, ControlUnavailableError, path_of
from relay.base.socket_address import Address
from relay.front_door.http.errors import ApiError
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.responses import json_response
from tests.support.manual_clock import ManualClock


async def test_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    client = ControlClient(path, timeout_s=5)

    async def handler(call: HttpRequest) -> Response:
        if call.method == "POST":
            raise ApiError(404, "ErrorItemNotFound", "No such entry.")
        return json_response({"path": list(call.segments), "query": list(call.query)})

    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # what a daemon that was killed leaves behind
    with pytest.raises(ControlUnavailableError, match="nothing listens on"):
        client.get("/queue")
    app = Gateway(
        handler, clock=ManualClock(), limits=RequestLimits(body_bytes=1000, held_bytes=1000)
    )
    server = HttpServer(app, [Address(path=str(path))], clock=ManualClock())
    await server.start()
    try:
        reported = await asyncio.to_thread(client.get, path_of("<a/b@c>"), {"state": "queued"})
        assert reported == {
            "path": ["relay", "v1", "messages", "<a/b@c>"],
            "query": [["state", "queued"]],
        }
        with pytest.raises(ControlError, match=r"No such entry\.") as refused:
            await asyncio.to_thread(client.post, "/queue/retry", {"all": True})
        assert (refused.value.status, refused.value.code) == (404, "ErrorItemNotFound")
    finally:
        await server.stop(0.5)
    with pytest.raises(ControlUnavailableError, match="there is no"):
        client.get("/queue")


async def test_an_invalid_answer_on_the_control_socket(tmp_path: Path) -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 this is SMTP\r\n")
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(nonsense, path):
        with pytest.raises(ControlUnavailableError, match="did not answer"):
            await asyncio.to_thread(ControlClient(path, timeout_s=5).get, "/queue")
