"""What web pages may ask: nothing without a token, and anything from loopback in development."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.responses import Response

from relay.base.accounts.account import Account
from relay.base.socket_address import Address
from relay.front_door.http.browsers import BrowserGuard
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.responses import json_response
from relay.front_door.sign_in.authentication import HttpAuthentication
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ACCOUNTS = TokenAccounts({"alice": Account("alice@example.test"), "": Account("anon@example.test")})
OWN = "http://127.0.0.1:{port}"
FOREIGN = ["http://evil.test", "https://127.0.0.1:{port}", "http://localhost:3000", "null", ""]


@asynccontextmanager
async def guarded(
    *, dev: bool = False, anonymous: str = "anon@example.test"
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that answers with the account of a request."""
    authentication = authentication_of(ACCOUNTS)
    authentication = HttpAuthentication(
        ACCOUNTS, authentication.tokens, realm="relay", anonymous=anonymous
    )

    async def who(request: HttpRequest) -> Response:
        await request.body()
        headers = {"x-relay-message-id": "m1"}
        address = authentication.account(request).address
        return json_response({"account": address}, headers=headers)

    clock = ManualClock()
    app = Gateway(who, clock=clock, limits=RequestLimits(1000, 1000))
    guard = BrowserGuard(
        app, clock=clock, own_origins=["https://mail.example.test"], allows_loopback_pages=dev
    )
    server = HttpServer(guard, [Address("127.0.0.1", 0)], clock=clock)
    await server.start()
    try:
        base = f"http://{server.bound[0]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            yield client
    finally:
        await server.stop(0.5)


def port_of(client: httpx.AsyncClient) -> int:
    return client.base_url.port or 0


def account_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(json.loads(answer.content)["account"])


def assert_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "ErrorAccessDenied")
    assert answer.headers["request-id"]
    assert "access-control-allow-origin" not in answer.headers


@each_row("field", ["", "Bearer", "Bearer x", "Basic YTpi"])
async def test_a_wrong_token_is_not_anonymous(field: str) -> None:
    async with guarded() as client:
        answer = await client.get("/", headers={"authorization": field})
        assert answer.status_code == 401


@each_row(
    "headers",
    [
        {"host": "evil.test"},
        {"host": "127.0.0.1.evil.test"},
        {"host": "[::::]"},
        {"host": "[v1.x]"},
        {"x-forwarded-for": "192.0.2.1"},
        {"forwarded": "for=192.0.2.1"},
        {"via": "1.1 proxy"},
    ],
)
async def test_a_forwarded_request_and_another_host_are_not_anonymous(headers) -> None:
    async with guarded() as client:
        assert (await client.get("/", headers=headers)).status_code == 401


@pytest.mark.parametrize("dev", [True, False])
@each_row("origin", FOREIGN)
async def test_a_foreign_page_without_a_token_is_refused(origin: str, dev: bool) -> None:
    async with guarded(dev=dev) as client:
        named = origin.format(port=port_of(client))
        for method in ("GET", "POST", "OPTIONS"):
            headers = {"origin": named, "content-type": "text/plain"}
            answer = await client.request(method, "/v1.0/me/sendMail", headers=headers)
            if dev and ("127.0.0.1" in named or "localhost" in named):
                assert account_of(answer) == "anon@example.test"
                assert answer.headers["access-control-allow-origin"] == named
            else:
                assert_refused(answer)


@each_row(
    "site, is_refused",
    [("cross-site", True), ("Cross-Site", True), ("same-origin", False), ("none", False)],
)
async def test_fetch_metadata_without_an_origin(site: str, is_refused: bool) -> None:
    async with guarded() as client:
        answer = await client.get("/", headers={"sec-fetch-site": site})
        if is_refused:
            assert_refused(answer)
        else:
            assert account_of(answer) == "anon@example.test"


@each_row("origin", [OWN, "https://mail.example.test", "HTTPS://Mail.Example.test"])
@pytest.mark.parametrize("dev", [True, False])
async def test_its_own_pages_are_answered(origin: str, dev: bool) -> None:
    async with guarded(dev=dev) as client:
        headers = {"origin": origin.format(port=port_of(client)), "sec-fetch-site": "same-origin"}
        answer = await client.post("/", headers=headers)
        assert account_of(answer) == "anon@example.test"
        assert "access-control-allow-origin" not in answer.headers


async def test_a_foreign_page_with_a_token_gets_no_cors() -> None:
    """A browser never sends it: its preflight request is refused."""
    async with guarded() as client:
        headers = {"origin": "http://localhost:3000", "authorization": "Bearer alice"}
        answer = await client.get("/", headers=headers)
        assert account_of(answer) == "alice@example.test"
        assert "access-control-allow-origin" not in answer.headers
        preflight = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        assert_refused(await client.options("/", headers=preflight))


@each_row(
    "origin",
    ["http://localhost:3000", "https://127.0.0.1:1", "http://[::1]:5173", "http://a.localhost"],
)
async def test_cors_for_pages_of_this_machine_in_development(origin: str) -> None:
    async with guarded(dev=True) as client:
        asked = {
            "origin": origin,
            "sec-fetch-site": "cross-site",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,client-request-id",
        }
        preflight = await client.options("/v1.0/me/sendMail", headers=asked)
        assert (preflight.status_code, preflight.content) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == origin
        assert "POST" in preflight.headers["access-control-allow-methods"]
        allowed = preflight.headers["access-control-allow-headers"]
        assert allowed == asked["access-control-request-headers"]
        sent = {"origin": origin, "authorization": "Bearer alice"}
        answer = await client.post("/v1.0/me/sendMail", headers=sent)
        assert account_of(answer) == "alice@example.test"
        assert answer.headers["access-control-allow-origin"] == origin
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-relay-message-id", "request-id", "client-request-id"} <= set(exposed)
        assert answer.headers["vary"] == "Origin"
        failed = await client.post("/", headers={"origin": origin, "authorization": "Bearer x"})
        assert (failed.status_code, failed.headers["access-control-allow-origin"]) == (401, origin)


@each_row(
    "origin",
    ["http://localhost.evil.test", "http://evil.test#localhost", "http://[", "file://localhost"],
)
async def test_what_only_looks_like_loopback_is_foreign(origin: str) -> None:
    async with guarded(dev=True) as client:
        assert_refused(await client.post("/", headers={"origin": origin}))
