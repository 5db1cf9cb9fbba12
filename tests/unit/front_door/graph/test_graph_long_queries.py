"""Long queries over real connections: they are cancelled, and block no other account or mailbox."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from relay.base.clock import SystemClock
from relay.base.socket_address import Address
from relay.front_door.http.http_server import HttpServer
from relay.submission.outbox.store import FileStore
from tests.support.graph_fakes import graph_app, refused
from tests.support.stores import open_log, open_store

MESSAGES = 6
BODY = ("a " * 35 + "\r\n") * 7_000  # 500 kB of one word: each phrase of it takes seconds to match
PHRASE = '\\"' + "a " * 126 + 'a\\"'
MINUTES = {"$search": '"' + " OR ".join([PHRASE] * 25) + '"'}  # that it takes if nothing stops it
SHORT = {"$search": '"zebra"'}
WAIT_S = 120.0


@dataclass
class Served:
    """A mailbox of large messages, served to alice and bob; bob's is empty."""

    store: FileStore
    inbox: Path
    url: str

    def client(self, name: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {name}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=WAIT_S)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    clock, root = SystemClock(), tmp_path / "mail"
    log = open_log(root, clock)
    store = open_store(root, clock, log=log)
    server = HttpServer(graph_app(store, clock), [Address("127.0.0.1", 0)], clock=clock)
    await server.start()
    url = f"http://127.0.0.1:{server.bound[0].port}/v1.0/me"
    made = Served(store, root / "example.test/alice/cur", url)
    async with made.client("alice") as alice, made.client("bob") as bob:
        assert (await bob.get("/messages")).status_code == 200
        assert (await alice.get("/messages")).status_code == 200
        for number in range(MESSAGES):
            header = f"From: <b@b.test>\r\nSubject: {number}\r\n\r\n"
            (made.inbox / f"{number}.M1.h:2,").write_text(header + BODY, newline="")
        assert (await alice.get("/messages", params=SHORT)).json()["value"] == []
    yield made
    await server.stop(0.0)
    await asyncio.to_thread(store.close)
    log.close()


@pytest.fixture
def no_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.store.mailbox.threads.QUERY_TIME_MAX_S", 3600.0)


async def until(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not ready():
            await asyncio.sleep(0.01)


async def leave(*searches: asyncio.Task[httpx.Response]) -> None:
    for one in searches:
        one.cancel()
    await asyncio.gather(*searches, return_exceptions=True)


@pytest.mark.usefixtures("no_time_limit")
async def test_during_long_searches_others_are_served_and_too_many_are_503(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.store.lists.queries._turns, "_waiting_max", 3)
    async with served.client("alice") as alice, served.client("bob") as bob:
        listed = await alice.get("/messages", params={"$top": 1, "$select": "id"})
        path = f"/messages/{listed.json()['value'][0]['id']}"
        searches = [asyncio.create_task(alice.get("/messages", params=MINUTES)) for _ in range(9)]
        await until(lambda: sum(one.done() for one in searches) >= 4)
        for one in searches:
            if one.done():
                refused(one.result(), 503, "ResourceUnhealthy")
                assert one.result().headers["retry-after"]
        for _ in range(3):
            assert (await bob.get("/messages")).status_code == 200
            assert (await bob.get("/messages", params=SHORT)).status_code == 200
            assert (await alice.get(path, params={"$select": "subject"})).status_code == 200
        assert not all(one.done() for one in searches)
        await leave(*searches)
        assert (await alice.get("/messages", params=SHORT)).status_code == 200


async def test_a_slow_search_is_rejected_with_advice(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.mailbox.threads.QUERY_TIME_MAX_S", 0.2)
    async with served.client("alice") as alice:
        for path in ("/messages", "/messages/$count"):
            answer = await alice.get(path, params=MINUTES)
            message = refused(answer, 400, "InefficientFilter")
            assert "0.2 seconds" in message
            assert "$search: use fewer words" in message
            assert "retry-after" not in answer.headers
        monkeypatch.undo()
        assert (await alice.get("/messages", params=SHORT)).status_code == 200
