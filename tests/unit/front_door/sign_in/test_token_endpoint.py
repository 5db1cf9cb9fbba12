"""Sign-in of applications at the token endpoint, and what their tokens open."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, urlencode

import argon2
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from relay.base.accounts.accounts_file import load_accounts
from relay.base.accounts.passwords import FREE_FAILURES, FREE_FAILURES_OF_CLIENT
from relay.development.user_grants import UserGrants
from relay.front_door.http import http_request
from relay.front_door.http.connection_limits import REQUESTS_MAX, ConnectionLimits
from relay.front_door.http.http_server import HttpServer
from relay.front_door.http.path_router import PathRouter
from relay.front_door.sign_in.access_tokens import LIFETIME_S, AccessTokens
from relay.front_door.sign_in.authentication import HttpAuthentication
from relay.front_door.sign_in.token_endpoint import (
    BODY_BYTES_MAX,
    SIGN_IN_PATHS,
    create_sign_in_app,
)
from tests.support.accounts import HOSTNAME
from tests.support.events import until
from tests.support.graph_fakes import graph_app, refused
from tests.support.http_server import ANY_PORT
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

HASHED = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("s3cret+/ %")
ACCOUNTS = f"""
[[account]]
address = "app@example.test"
client_id = "Client-1"
client_secret = "{HASHED}"
acts_for = ["bob@example.test"]
[[account]]
address = "bob@example.test"
"""
FORM = {
    "grant_type": "client_credentials",
    "client_id": "Client-1",
    "client_secret": "s3cret+/ %",
    "scope": "https://graph.microsoft.com/.default",
}
TOKEN = "/contoso/oauth2/v2.0/token"
BASE = "https://relay.test:8443"
OTHER = "192.0.2.3"


class SignIn:
    """The application with its accounts, which a test may load again."""

    def __init__(self, folder: Path, *, public_url: str = "") -> None:
        self.clock = ManualClock()
        self._file = folder / "accounts.toml"
        self._accounts = None
        self.load(ACCOUNTS)
        tokens = AccessTokens(lambda: ECKey.generate_key("P-256"), self.clock)
        authentication = HttpAuthentication(self, tokens, realm=HOSTNAME)
        sign_in = create_sign_in_app(
            self, tokens, clock=self.clock, hostname=HOSTNAME, public_url=public_url
        )
        graph = graph_app(None, self.clock, authentication=authentication)
        self.app = PathRouter(
            {"v1.0": graph}, by_rest=dict.fromkeys(SIGN_IN_PATHS, sign_in), otherwise=graph
        )

    def load(self, text: str) -> None:
        self.close()
        self._file.write_text(text)
        self._file.chmod(0o600)
        self._accounts = load_accounts(self._file, ["example.test"], clock=self.clock, environ={})

    def close(self) -> None:
        if self._accounts:
            self._accounts.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accounts, name)


@pytest.fixture
async def sign_in(tmp_path: Path) -> AsyncIterator[SignIn]:
    made = SignIn(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def http(sign_in: SignIn) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(sign_in.app, client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as made:
        yield made


async def token_of(http: httpx.AsyncClient) -> str:
    answer = await http.post(TOKEN, data=FORM)
    assert answer.status_code == 200, answer.text
    return answer.json()["access_token"]


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def failed(answer: httpx.Response, status: int, error: str, number: int) -> str:
    """Check an OAuth error and its fields; return its description."""
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, error), answer.text
    assert body["error_codes"] == ([number] if number else [])
    assert body["trace_id"] == answer.headers["request-id"]
    assert body["correlation_id"] == answer.headers["client-request-id"]
    assert body["timestamp"] == "2023-11-14 22:13:20Z"
    assert answer.headers["cache-control"] == "no-store"
    assert body["error_description"].startswith(f"AADSTS{number}: " if number else "")
    assert f" Error: {error}. " in body["error_description"]
    return body["error_description"]


@pytest.mark.parametrize("path", [TOKEN, "/common/oauth2/v2.0/token", "/A%20b//OAuth2/V2.0/Token/"])
@pytest.mark.parametrize(
    ("scope", "audience"),
    [
        ("https://graph.microsoft.com/.default", "https://graph.microsoft.com"),
        ("http://localhost/.default", "http://localhost"),
        ("api://x/.default offline_access", "api://x"),
        (".default", BASE),
        ("", BASE),
    ],
)
async def test_a_token(http, path, scope, audience):
    form = FORM | {"scope": scope, "client_info": "1", "claims": "{}", "x-client-SKU": "MSAL"}
    answer = await http.post(path, data=form)
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    token = body.pop("access_token")
    assert body == {"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599}
    own = await http.get("/v1.0/users/app@example.test", headers=bearing(token))
    assert own.json()["id"] == "app@example.test"
    refused(await http.get("/v1.0/me", headers=bearing(token)), 400, "BadRequest")
    keys = KeySet.import_key_set((await http.get("/x/discovery/v2.0/keys")).json())
    claims = jwt.decode(token, keys, algorithms=["ES256"]).claims
    tenant = {TOKEN: "contoso", "/common/oauth2/v2.0/token": "common"}.get(path, "A b")
    assert claims["aud"] == audience
    assert claims["tid"] == tenant
    assert claims["iss"] == f"{BASE}/{tenant.replace(' ', '%20')}/v2.0"


@pytest.mark.parametrize("scheme", ["Basic", "bASIC "])
@pytest.mark.parametrize("also", [{}, {"client_id": "Client-1"}])
async def test_credentials_in_http_basic_are_form_encoded(http, scheme, also):
    text = f"Client-1:{quote_plus(FORM['client_secret'])}"
    headers = {"authorization": f"{scheme} {base64.b64encode(text.encode()).decode()}"}
    form = {"grant_type": "client_credentials", **also}
    answer = await http.post(TOKEN, data=form, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("change", "status", "error", "number"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
        ({"client_id": "unknown"}, 401, "invalid_client", 7000215),
        ({"client_id": ""}, 400, "invalid_request", 900144),
        ({"client_secret": ""}, 401, "invalid_client", 7000218),
        ({"client_secret": "", "client_assertion": "x"}, 401, "invalid_client", 7000218),
        ({"grant_type": ""}, 400, "invalid_request", 900144),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
        ({"grant_type": "refresh_token"}, 400, "unsupported_grant_type", 70003),
        ({"grant_type": ["client_credentials", "x"]}, 400, "invalid_request", 900144),
        ({"scope": "Mail.Send"}, 400, "invalid_scope", 1002012),
        ({"scope": "x" * 1100 + "/.default"}, 400, "invalid_scope", 70011),
        ({"client_secret": "x" * BODY_BYTES_MAX}, 413, "invalid_request", 0),
    ],
)
async def test_a_faulty_request_is_an_oauth_error(http, change, status, error, number):
    text = failed(await http.post(TOKEN, data=FORM | change), status, error, number)
    assert "s3cret" not in text


@each_row(
    "content, kind",
    [
        (b'{"grant_type": "client_credentials"}', "application/json"),
        (b"grant_type=client_credentials", ""),
        (b"grant_type=%ff", "application/x-www-form-urlencoded"),
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (
            b"&".join(b"a%d=1" % number for number in range(100)),
            "application/x-www-form-urlencoded; charset=utf-8",
        ),
    ],
)
async def test_a_body_that_is_no_form_is_an_oauth_error(http, content, kind):
    answer = await http.post(TOKEN, content=content, headers={"content-type": kind})
    failed(answer, 400, "invalid_request", 900144)


@pytest.mark.parametrize(
    ("field", "form", "status", "number"),
    [
        ("Basic " + base64.b64encode(b"Client-1:wrong").decode(), {}, 401, 7000215),
        ("Basic " + base64.b64encode(b"Client-1").decode(), {}, 401, 7000215),
        ("Basic ***", {}, 401, 7000218),
        ("Basic " + base64.b64encode(b"\xff").decode(), {}, 401, 7000218),
        ("Bearer x", {}, 401, 7000218),
        ("Basic " + base64.b64encode(b"a:b").decode(), FORM, 400, 900144),
        ("Basic " + base64.b64encode(b"a:b").decode(), {"client_id": "c"}, 400, 900144),
    ],
)
async def test_faulty_basic_credentials(http, field, form, status, number):
    form = {"grant_type": "client_credentials", **form}
    answer = await http.post(TOKEN, data=form, headers={"authorization": field})
    failed(answer, status, "invalid_client" if status == 401 else "invalid_request", number)
    assert ("www-authenticate" in answer.headers) == (status == 401)


NAMES = st.sampled_from([*FORM, "client_assertion", "resource", "", "é"])
VALUES = st.one_of(st.text(max_size=30), st.sampled_from(list(FORM.values())))
BODIES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(NAMES, VALUES), max_size=6).map(
        lambda pairs: urlencode(pairs, errors="surrogatepass").encode()
    ),
)
TENANTS = st.text(st.characters(exclude_characters="/."), min_size=1, max_size=10)
FIELDS = st.one_of(
    st.none(),
    st.binary(max_size=40).map(lambda octets: b"Basic " + base64.b64encode(octets)),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40).map(str.encode),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(body=BODIES, field=FIELDS, tenant=TENANTS)
async def test_nothing_else_gets_a_token(http, body, field, tenant):
    headers = {"content-type": "application/x-www-form-urlencoded"}
    if field is not None:
        headers["authorization"] = field
    path = f"/{quote(tenant, safe='', errors='replace')}{TOKEN[8:]}"
    answer = await http.post(path, content=body, headers=headers)
    assert answer.status_code in (400, 401, 429), answer.text
    assert set(answer.json()) >= {"error", "error_description", "error_codes"}


async def test_an_unknown_client_and_a_wrong_secret_have_the_same_description(http):
    def text(answer: httpx.Response) -> str:
        return failed(answer, 401, "invalid_client", 7000215).partition(" Error: ")[0]

    wrong = text(await http.post(TOKEN, data=FORM | {"client_secret": "wrong"}))
    unknown = text(await http.post(TOKEN, data=FORM | {"client_id": "Client-2"}))
    assert wrong.replace("Client-1", "Client-2") == unknown


async def test_guesses_are_delayed(http):
    for number in range(FREE_FAILURES):
        await http.post(TOKEN, data=FORM | {"client_secret": f"wrong{number}"})
    answer = await http.post(TOKEN, data=FORM)
    failed(answer, 429, "temporarily_unavailable", 90055)
    assert answer.headers["retry-after"] == "1"


async def test_guesses_of_one_client_of_a_proxy_delay_no_other_one(sign_in):
    """Each client of a proxy counts alone; those that the proxy does not name share nothing."""
    limits = ConnectionLimits(proxy_networks=("127.0.0.1/32",))
    server = HttpServer(sign_in.app, [ANY_PORT], clock=sign_in.clock, limits=limits)
    await server.start()
    try:
        base = f"http://{server.bound[0]}"
        async with httpx.AsyncClient(base_url=base, trust_env=False) as http:

            async def status(forwarded: str, **form: str) -> int:
                fields = {"x-forwarded-for": forwarded} if forwarded else {}
                return (await http.post(TOKEN, data=FORM | form, headers=fields)).status_code

            for number in range(FREE_FAILURES_OF_CLIENT):
                assert await status("192.0.2.1", client_id=f"guess{number}") == 401
                assert await status("", client_id=f"guess{number}") == 401
            for number in range(FREE_FAILURES):
                assert await status(f"{OTHER}, 192.0.2.2", client_secret=f"wrong{number}") == 401
            attackers = [await status(one) for one in ("192.0.2.1", "192.0.2.2")]
            assert attackers == [429, 429]
            assert [await status(one) for one in (OTHER, "2001:db8::1", "")] == [200, 200, 200]
    finally:
        await server.stop(0.5)


async def test_slow_strangers_keep_nobody_from_signing_in(http, sign_in, monkeypatch):
    """As many requests as the server takes, each with a body that stops before its last octet."""
    monkeypatch.setattr(http_request, "ANONYMOUS_TIMEOUT_S", 120)
    stop, waiting = asyncio.Event(), []

    async def stalled(number: int) -> None:
        rest = [b"x" * (BODY_BYTES_MAX - 1)]

        async def receive() -> dict[str, Any]:
            if rest:
                return {"type": "http.request", "body": rest.pop(), "more_body": True}
            waiting.append(None)
            await stop.wait()
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            raise AssertionError("a request without its whole body was answered")

        headers = [(b"content-type", b"application/x-www-form-urlencoded")]
        scope = {"type": "http", "method": "POST", "path": TOKEN, "raw_path": TOKEN.encode()}
        scope |= {"client": (f"10.0.{number // 250}.{number % 250}", 9)}
        await sign_in.app(
            {**scope, "scheme": "https", "query_string": b"", "headers": headers}, receive, send
        )

    async with asyncio.TaskGroup() as tasks:
        for number in range(REQUESTS_MAX - 1):
            tasks.create_task(stalled(number))
        await until(lambda: len(waiting) >= REQUESTS_MAX - 1)
        assert await token_of(http)
        stop.set()


OF_USERS = UserGrants(None, None, clock=ManualClock(), default_user="", needs_token=False)


@pytest.mark.parametrize("grant", OF_USERS.grants)
async def test_a_service_has_none_of_the_grants_of_users(http, grant):
    form = FORM | {
        "grant_type": grant,
        "username": "bob@example.test",
        "password": "x",
        "code": "x",
        "refresh_token": "x",
        "assertion": "x",
        "requested_token_use": "on_behalf_of",
    }
    failed(await http.post(TOKEN, data=form), 400, "unsupported_grant_type", 70003)


@each_row("path", OF_USERS.paths)
def test_a_service_has_none_of_the_paths_of_users(path):
    assert path not in SIGN_IN_PATHS


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/x/oauth2/v2.0/authorize", "unsupported_response_type"),
        ("/x/oauth2/v2.0/devicecode", "unsupported_grant_type"),
    ],
)
async def test_users_cannot_sign_in(http, path, error):
    assert "client_credentials" in failed(await http.get(path), 400, error, 70003)


async def test_the_longest_texts_give_a_token_that_works(http):
    """Outside of ASCII they are longest in the token."""
    path = f"/{quote(chr(0x1F600) * 256)}{TOKEN[8:]}"
    scope = f"{chr(0x1F600) * 253}/.default"
    answer = await http.post(path, data=FORM | {"scope": scope})
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    own = await http.get("/v1.0/users/app@example.test", headers=bearing(token))
    assert own.status_code == 200
    failed(
        await http.post(TOKEN, data=FORM | {"scope": f"four{scope}"}), 400, "invalid_scope", 70011
    )
    longer = f"/{quote(chr(0x1F600) * 256)}x{TOKEN[8:]}"
    failed(await http.post(longer, data=FORM), 400, "invalid_request", 90002)


@pytest.mark.parametrize(
    ("path", "issuer"),
    [
        ("/contoso/v2.0/.well-known/openid-configuration", "/contoso/v2.0"),
        ("/contoso/.well-known/openid-configuration", "/contoso"),
        ("/A%20b/v2.0/.well-known/openid-configuration", "/A%20b/v2.0"),
    ],
)
async def test_discovery(http, path, issuer):
    document = (await http.get(path)).json()
    assert document["issuer"] == BASE + issuer
    tenant = issuer.removesuffix("/v2.0")
    assert document["token_endpoint"] == f"{BASE}{tenant}/oauth2/v2.0/token"
    for name in ("authorization_endpoint", "device_authorization_endpoint"):
        assert document[name].startswith(f"{BASE}{tenant}/oauth2/v2.0/")
    assert (await http.get(document["jwks_uri"])).json()["keys"]


@pytest.mark.parametrize(
    ("host", "graph"),
    [
        ("relay.test:8443", "relay.test:8443"),
        ("[::1]:8443", "[::1]:8443"),
        ("Login.MicrosoftOnline.com", "graph.microsoft.com"),
        ("login.microsoft.com:8443", "graph.microsoft.com:8443"),
        ("login.microsoftonline.us", "graph.microsoft.us"),
    ],
)
async def test_the_host_of_graph_in_the_discovery_document(http, host, graph):
    path = "/contoso/v2.0/.well-known/openid-configuration"
    document = (await http.get(path, headers={"host": host})).json()
    assert document["msgraph_host"] == graph


async def test_discovery_of_an_instance_that_is_no_url(http):
    asked = {"authorization_endpoint": "https://[x/contoso/oauth2/authorize"}
    answer = await http.get("/common/discovery/instance", params=asked)
    assert "authorization_endpoint" in failed(answer, 400, "invalid_instance", 50049)


async def test_a_token_ends_after_an_hour(http, sign_in):
    token = await token_of(http)
    sign_in.clock.advance(LIFETIME_S)
    answer = await http.get("/v1.0/me", headers=bearing(token))
    assert "expired" in refused(answer, 401, "InvalidAuthenticationToken")
    assert answer.headers["www-authenticate"] == f'Bearer realm="{HOSTNAME}"'


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ("", "", 200),
        ("Client-1", "client-1", 200),
        ("Client-1", "client-2", 401),
        (HASHED, "plain:s3cret+/ %", 401),
        ("acts_for", 'scopes = ["Mail.Send"]\nacts_for', 403),
        ("bob@example.test", "carol@example.test", 403),
    ],
    ids=["same", "same in another case", "removed", "new secret", "scopes", "acts_for"],
)
async def test_a_reload_applies_to_issued_tokens(http, sign_in, before, after, status):
    token = await token_of(http)
    assert (
        await http.get("/v1.0/users/bob@example.test", headers=bearing(token))
    ).status_code == 200
    sign_in.load(ACCOUNTS.replace(before, after, 1) if before else ACCOUNTS)
    answer = await http.get("/v1.0/users/bob@example.test", headers=bearing(token))
    assert answer.status_code == status, answer.text
