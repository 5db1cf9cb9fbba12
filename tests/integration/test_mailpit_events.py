"""Mailpit's events of a real development relay: which there are, who gets them, and until when."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from wsproto.events import CloseConnection, TextMessage

from tests.support.dev_process import DevProcess
from tests.support.events import until
from tests.support.relay_process import until as until_blocking
from tests.support.tables import each_row
from tests.support.web_socket import web_socket

TOKEN = "0123456789abcdef-token"
BASIC = "Basic " + base64.b64encode(f"any:{TOKEN}".encode()).decode()
HERE, OTHER = "http://{host}", "http://localhost:3000"


@pytest.fixture(scope="module")
def private(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--listen-all", "--token", TOKEN)


def call(relay: DevProcess, method: str, path: str, body: Any = None, **fields: str) -> None:
    octets = None if body is None else json.dumps(body).encode()
    answer = relay.request(method, path, octets, fields)
    assert answer.status == 200, answer.body


def open_files(relay: DevProcess) -> int:
    return len(list(Path(f"/proc/{relay.process.pid}/fd").iterdir()))


async def test_each_event_is_sent_in_its_order(dev) -> None:
    relay = dev("--no-demo")
    old = relay.send_captured("ann@b.example", b"Subject: Old\r\n\r\nx\r\n")
    async with web_socket(*relay.http) as client:
        assert (await client.message("stats"))["Total"] == 1
        text = b"Subject: Hello\r\nX-Tags: a\r\n\r\nSome words.\r\n"
        key = relay.submit("app@shop.example", ["ann@b.example"], text)
        call(relay, "GET", f"/api/v1/message/{key}")
        call(relay, "PUT", "/api/v1/tags", {"IDs": [key], "Tags": ["b"]})
        call(relay, "DELETE", "/api/v1/messages", {"IDs": [key]})
        new = await client.message("new")
        assert (new["ID"], new["Subject"], new["Read"], new["Tags"]) == (key, "Hello", False, ["a"])
        assert new["Snippet"] == "Some words."
        assert await client.message("update") == {"ID": key, "Read": True}
        assert await client.message("update") == {"ID": key, "Tags": ["b"]}
        assert await client.message("delete") == {"ID": key}
        stats = await client.message("stats")
        assert (stats["Total"], stats["Unread"], stats["Version"]) == (1, 1, "v1.30")
        # a mail program marks a copy, and a report comes, which the list has not
        inbox = f"/users/{'ann@b.example'}/messages"
        [copy] = relay.graph("GET", inbox).json()["value"]
        relay.graph("PATCH", f"{inbox}/{copy['id']}", {"isRead": True})
        assert await client.message("update") == {"ID": old, "Read": True}
        failed = relay.submit("alice@example.test", ["x+550@b.example"], text)
        until_blocking("it is reported", lambda: relay.inbox("alice"))
        call(relay, "DELETE", "/relay/v1/messages")
        assert (await client.message("new"))["ID"] == failed
        assert await client.message("truncate") is None
        assert (await client.message("stats"))["Total"] == 0


@each_row(
    "status, fields",
    [
        (101, {"Authorization": BASIC}),
        (101, {"Authorization": f"Bearer {TOKEN}"}),
        (101, {"Authorization": BASIC, "Origin": HERE}),
        (401, {}),
        (401, {"Authorization": "Bearer alice"}),
        (401, {"target": f"/api/events?access_token={TOKEN}&token={TOKEN}"}),
        (403, {"Authorization": BASIC, "Origin": OTHER}),
        (403, {"Authorization": BASIC, "Origin": "null"}),
        (403, {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "same-site"}),
        (421, {"Authorization": BASIC, "Host": "evil.example"}),
        (404, {"Authorization": BASIC, "target": "/api/v1/events"}),
        (200, {"Authorization": BASIC, "target": "/api/v1/messages"}),  # passed over
    ],
)
async def test_the_handshake_is_judged_as_a_get(
    private: DevProcess, status: int, fields: dict[str, str]
) -> None:
    here = "{}:{}".format(*private.http)
    named = {name: text.format(host=here) for name, text in fields.items()}
    async with web_socket(*private.http, **named) as client:
        assert client.status == status


async def test_a_hundred_are_open_and_a_stop_ends_them(dev) -> None:
    relay = dev("--no-demo")
    before = open_files(relay)
    offered = relay.request("GET", "/api/events")
    assert (offered.status, offered.headers["sec-websocket-version"]) == (426, "13")
    wrong = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    wrong["Sec-WebSocket-Key"] = "x"
    assert relay.request("GET", "/api/events", None, wrong).status == 400
    clients = [web_socket(*relay.http) for _ in range(101)]
    opened = [await client.__aenter__() for client in clients]
    assert [client.status for client in opened] == [101] * 100 + [503]
    relay.send_captured("ann@b.example", b"Subject: All\r\n\r\nx\r\n")
    for client in opened[:100]:
        assert (await client.message("new"))["Subject"] == "All"
    for client in clients[1:]:
        await client.__aexit__(None, None, None)
    await until(lambda: open_files(relay) < before + 50)  # threads that read open files too
    stop = asyncio.create_task(asyncio.to_thread(relay.stop))
    while isinstance(event := await opened[0].event(), TextMessage):
        pass
    assert event == CloseConnection(1001, "")
    assert await stop == 0


async def test_it_ends_when_its_client_may_not_read_any_more(private: DevProcess) -> None:
    """Such as after guesses of the token from its address, as an event stream does."""
    async with web_socket(*private.http, Authorization=BASIC) as client:
        wrong = (f"Bearer {number}" for number in range(1000))
        while (
            answer := private.request("GET", "/api/v1/info", None, {"Authorization": next(wrong)})
        ).status == 401:
            pass
        assert answer.status == 429
        while await client.event() is not None:
            pass
    assert "Traceback" not in private.log
