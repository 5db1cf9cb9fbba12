"""A form is read only with the token of its visitor, and within limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.responses import Response

from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import json_response
from relay.front_door.pages.logins import read_form
from tests.support.http_server import LIMIT, serving
from tests.support.tables import each_row

TOKEN = "the-token"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@asynccontextmanager
async def reader(csrf: str = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    async def answer(request: HttpRequest) -> Response:
        form = await read_form(request, csrf)
        return json_response({"id": form.every("id"), "to": form.text("to")})

    async with serving(answer) as server:
        base = f"http://{server.bound[0]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            yield client


async def test_fields_may_occur_several_times():
    async with reader() as client:
        answer = await client.post("/", content=f"csrf={TOKEN}&id=1&id=%C3%A92&to=", headers=FORM)
        assert answer.json() == {"id": ["1", "é2"], "to": ""}
        answer = await client.post("/", headers={"x-csrf-token": TOKEN})
        assert answer.json() == {"id": [], "to": ""}


@each_row(
    "csrf, body, headers",
    [
        (TOKEN, "", {}),
        (TOKEN, "csrf=", {}),
        (TOKEN, "csrf=The-Token", {}),
        (TOKEN, "csrf=the-token2", {}),
        (TOKEN, "csrf=x&csrf=the-token", {}),
        (TOKEN, "csrf=%FF", {}),
        (TOKEN, "Csrf=the-token", {}),
        (TOKEN, "", {"x-csrf-token": ""}),
        (TOKEN, "", {"x-csrf-token": "x"}),
        (TOKEN, "", {"x-csrf-token": b"\xff"}),
        ("", "csrf=", {}),  # a visitor without a token has no forms
        ("", "", {}),
        ("", "csrf=x", {}),
    ],
)
async def test_without_the_token_nothing_is_read(csrf, body, headers):
    async with reader(csrf) as client:
        answer = await client.post("/", content=f"{body}&id=1", headers=FORM | headers)
        assert answer.status_code in (400, 403)
        assert "id" not in answer.json()


@each_row("kind", ["multipart/form-data; boundary=x", "text/plain", "application/json", ""])
async def test_other_media_types_are_refused(kind):
    async with reader() as client:
        headers = {"content-type": kind, "x-csrf-token": TOKEN}
        assert (await client.post("/", content="id=1", headers=headers)).status_code == 415


async def test_forms_are_bounded():
    async with reader() as client:
        headers = FORM | {"x-csrf-token": TOKEN}
        many = "&".join(["id=1"] * 2001)
        assert (await client.post("/", content=many, headers=headers)).status_code == 400
        large = "id=" + "x" * LIMIT
        assert (await client.post("/", content=large, headers=headers)).status_code == 413
