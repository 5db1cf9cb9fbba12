"""If the outcome of a submission is unknown, the connection is closed without a response."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.socket_address import Address
from relay.front_door.http.http_server import HttpServer
from relay.store.mailbox.errors import OutcomeUnknownError
from tests.support.graph_fakes import WatchedStore, graph_app, to

MESSAGE = {"subject": "s", "toRecipients": to("bob@b.test")}
CALLS = ["sendMail", "sendMail in MIME", "send"]


@asynccontextmanager
async def serving(store: WatchedStore) -> AsyncIterator[HttpServer]:
    server = HttpServer(graph_app(store, store.clock), [Address("127.0.0.1", 0)], clock=store.clock)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0.1)


async def ask(server: HttpServer, store: WatchedStore, call: str) -> bytes:
    """Return everything until the server closes the connection."""
    path, body = "sendMail", json.dumps({"message": MESSAGE}).encode()
    kind = "application/json"
    if call == "sendMail in MIME":
        kind, body = "text/plain", b"VG86IGJvYkBiLnRlc3QNCg0KYg0K"
    elif call == "send":
        path, body = f"messages/{store.draft_id}/send", b""
    elif call == "batch":
        send = {"id": "1", "method": "POST", "url": "/me/sendMail", "body": {"message": MESSAGE}}
        then = {"id": "2", "method": "GET", "url": "/me/messages", "dependsOn": ["1"]}
        path, body = "../$batch", json.dumps({"requests": [send, then]}).encode()
    path = f"me/{path}".removeprefix("me/../")
    head = (
        f"POST /v1.0/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer alice\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(server.bound[0].host, server.bound[0].port)
    writer.write(head.encode() + body)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.fixture
async def store(store: WatchedStore) -> WatchedStore:
    """A mail store with one draft of alice."""
    properties = MessageProperties(subject="s", to=(EmailAddress("bob@b.test"),))
    store.draft_id = (await store.messages.create("alice@example.test", properties)).id
    return store


@pytest.mark.parametrize("call", CALLS)
async def test_where_the_disk_leaves_it_open_there_is_no_answer(store, call):
    store.refuse = OutcomeUnknownError("The disk failed.")
    async with serving(store) as server:
        assert await ask(server, store, call) == b""
        store.refuse = None
        assert (await asyncio.wait_for(first_line(server, store), 120)).endswith(b" 202 Accepted")


async def first_line(server: HttpServer, store: WatchedStore) -> bytes:
    """The server still serves other connections."""
    reader, writer = await asyncio.open_connection(server.bound[0].host, server.bound[0].port)
    head = f"POST /v1.0/me/messages/{store.draft_id}/send HTTP/1.1\r\nHost: x\r\n"
    writer.write(head.encode() + b"Authorization: Bearer alice\r\nContent-Length: 0\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line.strip()


@pytest.mark.parametrize("call", CALLS)
async def test_a_stop_that_cuts_a_submission_off_answers_nothing(store, monkeypatch, call):
    begun = asyncio.Event()

    async def hanging(*_: object, **__: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store.submissions, "submit_new", hanging)
    monkeypatch.setattr(store.submissions, "submit_draft", hanging)
    async with serving(store) as server:
        asking = asyncio.create_task(ask(server, store, call))
        await begun.wait()
    assert await asking == b""


async def test_a_stop_during_a_batch_that_sent_a_message_answers_nothing(store, monkeypatch):
    begun = asyncio.Event()

    async def hanging(*_: object) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(store.lists, "query", hanging)
    async with serving(store) as server:
        asking = asyncio.create_task(ask(server, store, "batch"))
        await begun.wait()
    assert await asking == b""
    assert len(store.submitted) == 1
