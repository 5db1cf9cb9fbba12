"""Faults that a scenario asks for, in front of an application on a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
from starlette.responses import Response

from relay.base.accounts.account import Account
from relay.base.socket_address import Address
from relay.development.graph_faults import FaultyFrontDoor
from relay.development.internet.scenario_file import parse_scenario
from relay.development.internet.scenario_state import ScenarioState
from relay.front_door.http.errors import ApiError
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.http_server import HttpServer
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.manual_clock import ManualClock

ACCOUNTS = TokenAccounts(
    {"alice": Account("alice@example.test"), "bob": Account("bob@example.test")}
)
SEND = "/v1.0/me/sendMail"


@dataclass
class Application:
    client: httpx.AsyncClient
    handled: list[bytes] = field(default_factory=list)

    async def send(self, token: str = "alice", path: str = SEND) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return await self.client.post(path, content=b"m" * 70_000, headers=headers)


@asynccontextmanager
async def faulty(text: str, *, status: int = 202) -> AsyncIterator[Application]:
    clock = ManualClock()

    async def handle(request: HttpRequest) -> Response:
        served.handled.append(await request.body())
        if status >= 400:
            raise ApiError(status, "ErrorInvalidRequest", "no")
        return Response(b"content" * 100_000, status_code=status)

    app = Gateway(handle, clock=clock, limits=RequestLimits(1_000_000, 1_000_000))
    state = ScenarioState(parse_scenario(text).scenario, clock)
    front_door = FaultyFrontDoor(
        app, authentication_of(ACCOUNTS), scenario=lambda: state, realm="relay", clock=clock
    )
    server = HttpServer(front_door, [Address("127.0.0.1", 0)], clock=clock)
    await server.start()
    try:
        base = f"http://{server.bound[0]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            served = Application(client)
            yield served
    finally:
        await server.stop(0.5)


async def test_other_accounts_paths_and_methods_are_not_concerned():
    text = '[[graph]]\naccount = "bob@*"\npath = "*/sendMail"\nmethod = "POST"\nstatus = 429\n'
    async with faulty(text) as app:
        assert (await app.send("alice")).status_code == 202
        assert (await app.send("nobody")).status_code == 202
        assert (await app.send("bob", "/v1.0/me/messages")).status_code == 202
        assert (await app.client.get(SEND, headers={"authorization": "Bearer bob"})).is_success
        assert (await app.send("bob")).status_code == 429
        assert (
            await app.send("bob", "/beta//users/bob%40example.test/SendMail")
        ).status_code == 429


async def test_a_token_that_has_expired():
    async with faulty('[[graph]]\nstatus = "expired-token"\ntimes = 1\n') as app:
        answer = await app.send()
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "InvalidAuthenticationToken"
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert "retry-after" not in answer.headers
        assert app.handled == []
        assert (await app.send()).status_code == 202
