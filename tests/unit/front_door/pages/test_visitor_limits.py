"""How many requests of one visitor are answered at once."""

import asyncio

from starlette.responses import Response

from relay.front_door.pages import app
from tests.unit.front_door.pages.conftest import PageReader


async def test_the_requests_of_one_visitor_are_limited(pages: PageReader, monkeypatch) -> None:
    may_end = asyncio.Event()
    began = 0

    async def slow(*_: object) -> Response:
        nonlocal began
        began += 1
        await may_end.wait()
        return Response("done")

    monkeypatch.setattr(app, "PAGES", {**app.PAGES, ("help",): (("GET",), slow)})
    monkeypatch.setattr(app, "REQUESTS_OF_VISITOR_MAX", 2)
    slow_ones = [asyncio.ensure_future(pages.get("/help")) for _ in range(2)]
    async with asyncio.timeout(120):
        while began < 2:
            await asyncio.sleep(0.01)
        refused = await pages.get("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert (await pages.get("/static/pages.css")).status_code == 200
        may_end.set()
        assert [one.text for one in await asyncio.gather(*slow_ones)] == ["done"] * 2
        assert (await pages.get("/")).status_code == 200
