"""Who may use the scenario of a development relay."""

import httpx
import pytest

from relay.front_door.api.app import scenario_response
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import RequestLimits
from tests.support.manual_clock import ManualClock


class Controls:
    scenario_toml = "seed = 1\n"

    def used_replies(self):
        return []

    async def use_scenario(self, content):
        self.scenario_toml = content


async def answer(client: str, method: str = "GET", **more) -> httpx.Response:
    async def handle(request):
        return await scenario_response(request, Controls())

    app = Gateway(handle, clock=ManualClock(), limits=RequestLimits(1 << 20, 1 << 20))
    transport = httpx.ASGITransport(app, client=(client, 123))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as session:
        return await session.request(method, "/", **more)


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("client", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1"])
async def test_clients_elsewhere_are_refused(method, client):
    headers = {"content-type": "application/toml"}
    found = await answer(client, method, content=b"", headers=headers)
    assert found.status_code == 403
    assert "expected one on loopback" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("*/*", "application/toml"),
        ("", "application/toml"),
        ("application/json", "application/json"),
        ("application/toml, application/json;q=0.5", "application/toml"),
    ],
)
async def test_the_form_is_chosen_by_accept(accept, media_type):
    found = await answer("127.0.0.1", headers={"accept": accept})
    assert found.headers["content-type"].startswith(media_type)
