"""Who visits: by cookie and login, or everyone where the pages are open."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from relay.base.accounts.account import AccountDirectory, LoginDelayedError
from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.directory import FileAccounts
from relay.front_door.api.dependencies import Principal
from relay.front_door.http.connection_limits import ConnectionLimits
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import json_response
from relay.front_door.pages.logins import IDLE_S, Access, Logins
from tests.support.http_server import serving
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ACCOUNTS = """\
[[account]]
address = "alice@example.test"
aliases = ["al@example.test"]
password = "plain:secret"
token = "plain:alice-token"

[[account]]
address = "operator@example.test"
token = "plain:operator-token"
role = "operate"
"""


@pytest.fixture
def accounts(tmp_path: Path) -> AsyncIterator[FileAccounts]:
    file = tmp_path / "accounts.toml"
    file.write_text(ACCOUNTS)
    file.chmod(0o600)
    loaded = load_accounts(file, ["example.test"], clock=ManualClock(), environ={})
    yield loaded
    loaded.close()


class Client:
    """A browser without rules for cookies: the tests read what they allow."""

    def __init__(self, access: Access, http: httpx.AsyncClient, clock: ManualClock) -> None:
        self.access, self.http, self.clock = access, http, clock

    async def who(self, cookie: str = "") -> Mapping[str, object]:
        answer = await self.http.get("/who", headers={"cookie": cookie} if cookie else {})
        return dict(answer.json())

    async def log_in(self, user: str, secret: str, cookie: str = "") -> httpx.Response:
        return await self.http.get(
            "/login", params={"user": user, "secret": secret}, headers={"cookie": cookie}
        )


def cookie_of(answer: httpx.Response) -> str:
    return answer.headers.get_list("set-cookie")[0].partition(";")[0]


def handler(access: Access):
    async def answer(request: HttpRequest) -> Response:
        if request.segments == ("who",):
            visitor = access.visitor(request)
            if visitor is None:
                return json_response({})
            principal = visitor.principal
            facts = {"name": principal.name, "role": principal.role, "csrf": visitor.csrf}
            return json_response({**facts, "out": visitor.may_log_out, "own": principal.account})
        response = Response()
        query = dict(request.query)
        try:
            account = await access.logins.account_of(request, query["user"], query["secret"])
        except LoginDelayedError:
            return Response(status_code=429)
        if account is None:
            return Response(status_code=401)
        access.logins.log_in(request, account, response)
        return response

    return answer


@asynccontextmanager
async def visiting(
    accounts: AccountDirectory,
    *,
    everyone: Principal | None = None,
    proxies: Sequence[str] = (),
    **options: Any,
) -> AsyncIterator[Client]:
    clock = ManualClock()
    logins = Logins(accounts, clock, **{"relay": "one", **options})
    access = Access(everyone=everyone, logins=logins)
    limits = ConnectionLimits(proxy_networks=proxies)
    async with serving(handler(access), connection_limits=limits) as server:
        base = f"http://{server.bound[0]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:
            yield Client(access, http, clock)


async def test_a_login_needs_the_password_and_gives_a_cookie(accounts):
    async with visiting(accounts) as client:
        assert await client.who() == {}
        answer = await client.log_in("Alice@example.test ", "secret")
        who = await client.who(cookie_of(answer))
        assert (who["name"], who["role"], who["own"]) == ("alice@example.test", "user", who["name"])
        assert who["out"] is True
        fields = answer.headers.get_list("set-cookie")[0].split("; ")[1:]
        assert set(fields) == {"HttpOnly", "Path=/", "SameSite=strict"}
        assert await client.who(cookie_of(answer) + "x") == {}


@pytest.mark.parametrize(
    ("user", "secret"),
    [
        ("alice@example.test", "wrong"),
        ("alice@example.test", ""),
        ("nobody@example.test", "secret"),
        ("", "secret"),
        ("bob", "alice-token"),
        ("operator@example.test", "alice-token"),
        ("alice@example.test", "operator-token"),
        ("alice@example.test", "x" * 5000),
        ("\0" * 5000, "secret"),
        ("é\u202e", "ü"),
    ],
)
async def test_other_logins_are_refused(accounts, user, secret):
    async with visiting(accounts) as client:
        answer = await client.log_in(user, secret)
        assert (answer.status_code, answer.headers.get("set-cookie")) == (401, None)


@each_row("user", ["", "alice", "alice@example.test", "al@example.test"])
async def test_a_token_is_a_password(accounts, user):
    async with visiting(accounts) as client:
        answer = await client.log_in(user, "alice-token")
        assert (await client.who(cookie_of(answer)))["name"] == "alice@example.test"


async def test_a_login_has_a_new_identifier_and_ends_the_one_before(accounts):
    """What a visitor brings is never used."""
    async with visiting(accounts) as client:
        fixed = cookie_of(await client.log_in("", "alice-token"))
        before = await client.who(fixed)
        after = cookie_of(await client.log_in("", "operator-token", cookie=fixed))
        assert after != fixed
        assert await client.who(fixed) == {}
        assert (await client.who(after))["csrf"] != before["csrf"]
        given = f"{after.partition('=')[0]}=chosen-by-somebody-else"
        answer = await client.log_in("", "alice-token", cookie=given)
        assert cookie_of(answer) != given
        assert await client.who(given) == {}


async def test_relays_of_one_host_have_cookies_of_different_names(accounts):
    names = []
    for relay in ("one", "two", "two"):
        async with visiting(accounts, relay=relay) as client:
            names.append(cookie_of(await client.log_in("", "alice-token")).partition("=")[0])
    assert names[0] != names[1] == names[2]
    assert all(name.startswith("relay-") for name in names)


async def test_behind_an_https_proxy_the_cookie_is_secure(accounts):
    async with visiting(accounts, public_url="https://mail.example.test/base") as client:
        field = (await client.log_in("", "alice-token")).headers.get_list("set-cookie")[0]
        assert field.startswith("__Host-relay-")
        assert {"Secure", "Path=/"} <= set(field.split("; "))
        assert "domain" not in field.lower()
        assert await client.who(field.partition(";")[0])


@pytest.mark.parametrize(
    ("headers", "goes_on"),
    [
        ({"hx-request": "true"}, False),
        ({"accept": "text/event-stream"}, False),
        ({"hx-request": "true", "hx-boosted": "true"}, True),
    ],
    ids=["poll", "stream", "link"],
)
async def test_a_page_that_is_left_open_does_not_prolong_a_login(accounts, headers, goes_on):
    async with visiting(accounts) as client:
        cookie = cookie_of(await client.log_in("", "alice-token"))
        client.clock.advance(IDLE_S - 1)
        answer = await client.http.get("/who", headers={**headers, "cookie": cookie})
        assert answer.json()
        client.clock.advance(1)
        assert bool(await client.who(cookie)) == goes_on
