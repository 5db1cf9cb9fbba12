"""The form in which the scenario of a development relay is returned."""

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


async def handle(request):
    return await scenario_response(request, Controls())


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
    app = Gateway(handle, clock=ManualClock(), limits=RequestLimits(1 << 20, 1 << 20))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as session:
        found = await session.get("/", headers={"accept": accept})
    assert found.headers["content-type"].startswith(media_type)
