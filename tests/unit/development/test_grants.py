"""How users sign in to a development relay: each grant, its pages, and what is refused."""

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from relay.accounts.access_tokens import LIFETIME_S, AccessTokens, InvalidTokenError
from relay.development import grants
from relay.development.accounts import DevelopmentAccounts
from relay.development.authorization import require_own_redirect
from relay.development.grants import CODE_LIFETIME_S, DEVICE_LIFETIME_S, UserGrants
from relay.http.authentication import HttpAuthentication
from relay.http.gateway import PathRouter
from relay.http.sign_in import SIGN_IN_PATHS, SignInError, create_sign_in_app
from tests.support.accounts import HOSTNAME
from tests.support.graph_fakes import MemoryStore, graph_app
from tests.support.manual_clock import ManualClock

BASE = "https://relay.test:8443"
TOKEN = "/contoso/oauth2/v2.0/token"
AUTHORIZE = "/contoso/oauth2/v2.0/authorize"
DEVICE = "/contoso/oauth2/v2.0/devicecode"
PAGE = "/contoso/oauth2/deviceauth"
GRAPH = "https://graph.microsoft.com"
SCOPE = f"openid profile offline_access {GRAPH}/Mail.Send"
REDIRECT = "http://localhost:4711/"
VERIFIER = "v" * 43
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode()[:43]
THE_TOKEN = "a-token-of-a-good-length"
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
ON_BEHALF = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class Development:
    """The sign-in of a development relay, and its Graph API."""

    def __init__(self, token: str = "") -> None:
        self.clock = ManualClock()
        self.accounts = DevelopmentAccounts(token=token, clock=self.clock)
        self.tokens = AccessTokens(ECKey.generate_key("P-256"), self.clock)
        self.users = UserGrants(
            self.accounts, self.tokens, clock=self.clock, default_user="alice@example.test",
            needs_token=bool(token),
        )  # fmt: skip
        sign_in = create_sign_in_app(
            self.accounts, self.tokens, clock=self.clock, hostname=HOSTNAME, users=self.users
        )
        authentication = HttpAuthentication(self.accounts, self.tokens, realm=HOSTNAME)
        graph = graph_app(MemoryStore(self.clock), self.clock, authentication=authentication)
        app = PathRouter(
            {"v1.0": graph, **dict.fromkeys(self.users.prefixes, sign_in)},
            by_rest=dict.fromkeys((*SIGN_IN_PATHS, *self.users.paths), sign_in), otherwise=graph,
        )  # fmt: skip
        transport = httpx.ASGITransport(app, client=("192.0.2.1", 1))
        self.http = httpx.AsyncClient(transport=transport, base_url=BASE)

    async def ask(self, grant_type: str, path: str = TOKEN, **form: str) -> httpx.Response:
        sent = {"client_id": "app", "grant_type": grant_type, "scope": SCOPE, **form}
        return await self.http.post(path, data={k: v for k, v in sent.items() if v})

    async def tokens_by(self, grant_type: str, path: str = TOKEN, **form: str) -> dict[str, Any]:
        answer = await self.ask(grant_type, path, **form)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def authorize(
        self, headers: dict[str, str] | None = None, method: str = "GET",
        form: dict[str, str] | None = None, **changed: str,
    ) -> httpx.Response:  # fmt: skip
        sent = {
            "client_id": "app", "response_type": "code", "redirect_uri": REDIRECT, "scope": SCOPE,
            "state": "a state", "nonce": "a nonce", "code_challenge": CHALLENGE,
            "code_challenge_method": "S256", **changed,
        }  # fmt: skip
        query = {k: v for k, v in sent.items() if v}
        return await self.http.request(method, AUTHORIZE, params=query, headers=headers, data=form)

    async def code(self, **changed: str) -> str:
        return returned(await self.authorize(**changed))["code"]

    async def redeem(self, code: str, **changed: str) -> httpx.Response:
        form = {"redirect_uri": REDIRECT, "code_verifier": VERIFIER, "code": code, "scope": ""}
        return await self.ask("authorization_code", **(form | changed))

    async def device(self, **form: str) -> dict[str, Any]:
        sent = {"client_id": "app", "scope": SCOPE, **form}
        answer = await self.http.post(DEVICE, data=sent)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def mailbox(self, found: dict[str, Any]) -> str:
        """The mailbox that an access token opens."""
        headers = {"authorization": f"Bearer {found['access_token']}"}
        answer = await self.http.get("/v1.0/me", headers=headers)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["mail"])

    def claims(self, token: str) -> dict[str, Any]:
        keys = KeySet.import_key_set(self.tokens.public_keys())
        return jwt.decode(token, keys, algorithms=["ES256"]).claims


def returned(answer: httpx.Response) -> dict[str, str]:
    """The parameters with which a response redirects."""
    assert answer.status_code == 302, answer.text
    is_never_framed(answer)
    location = urlsplit(answer.headers["location"])
    return dict(parse_qsl(location.query or location.fragment))


def is_never_framed(answer: httpx.Response) -> None:
    assert answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def failed(answer: httpx.Response, error: str, number: int, *, status: int = 400) -> str:
    body = answer.json()
    assert (answer.status_code, body["error"]) == (status, error), answer.text
    assert body["error_codes"] == [number]
    assert body["error_description"].startswith(f"AADSTS{number}: ")
    return str(body["error_description"])


@pytest.fixture
async def dev() -> AsyncIterator[Development]:
    made = Development()
    async with made.http:
        yield made


@pytest.fixture
async def guarded() -> AsyncIterator[Development]:
    """A relay with --token."""
    made = Development(THE_TOKEN)
    async with made.http:
        yield made


async def test_a_password(dev):
    found = await dev.tokens_by("password", username="alice@example.test", password="alice")
    assert found["token_type"] == "Bearer"
    assert found["expires_in"] == LIFETIME_S - 1
    assert found["scope"] == f"openid profile {GRAPH}/Mail.Send"
    claims = dev.claims(found["access_token"])
    assert claims["aud"] == GRAPH
    assert (claims["idtyp"], claims["upn"]) == ("user", "alice@example.test")
    assert (claims["appid"], claims["tid"]) == ("app", "contoso")
    assert claims["app_displayname"] == "app"
    assert "Mail.Send" in claims["scp"].split()
    identity = dev.claims(found["id_token"])
    assert (identity["aud"], identity["iss"]) == ("app", f"{BASE}/contoso/v2.0")
    assert identity["preferred_username"] == "alice@example.test"
    assert identity["oid"] == claims["oid"]
    assert "client_info" not in found
    assert await dev.mailbox(found) == "alice@example.test"


async def test_a_user_of_any_name_signs_in_and_opens_its_own_mailbox_only(dev):
    found = await dev.tokens_by("password", username="carol", password="any")
    assert await dev.mailbox(found) == "carol@example.test"
    headers = {"authorization": f"Bearer {found['access_token']}"}
    answer = await dev.http.get("/v1.0/users/bob@example.test", headers=headers)
    assert answer.status_code == 403


async def test_without_the_scopes_of_openid_there_is_an_access_token_alone(dev):
    found = await dev.tokens_by("password", username="bob", password="bob", scope="Mail.Send")
    assert set(found) == {"token_type", "expires_in", "ext_expires_in", "access_token", "scope"}
    assert dev.claims(found["access_token"])["aud"] == BASE


async def test_client_info_is_what_msal_asks_for(dev):
    found = await dev.tokens_by("password", username="bob", password="bob", client_info="1")
    info = base64.urlsafe_b64decode(found["client_info"] + "==")
    assert info.decode().endswith('"utid":"contoso"}')
    assert dev.claims(found["id_token"])["oid"] in info.decode()


async def test_a_wrong_password(dev):
    answer = await dev.ask("password", username="alice@example.test", password="wrong")
    failed(answer, "invalid_grant", 50126)


@pytest.mark.parametrize("missing", ["client_id", "username", "password"])
async def test_what_is_missing_is_named(dev, missing):
    answer = await dev.ask("password", **({"username": "a", "password": "a"} | {missing: ""}))
    assert f"'{missing}'" in failed(answer, "invalid_request", 900144)


async def test_a_refresh_token_is_good_until_it_ends(dev):
    first = await dev.tokens_by("password", username="carol", password="any")
    for _ in range(2):
        dev.clock.advance(LIFETIME_S)
        token = first["refresh_token"]
        found = await dev.tokens_by("refresh_token", refresh_token=token, scope="")
        assert await dev.mailbox(found) == "carol@example.test"
        assert found["scope"] == first["scope"]
    dev.clock.advance(grants.REFRESH_LIFETIME_S)
    answer = await dev.ask("refresh_token", refresh_token=first["refresh_token"])
    failed(answer, "invalid_grant", 70008)
    with pytest.raises(InvalidTokenError):
        dev.tokens.account_of(found["access_token"], dev.accounts, client="")


async def test_a_refresh_token_of_another_client_of_another_relay_and_no_refresh_token(dev):
    found = await dev.tokens_by("password", username="alice", password="alice")
    token = found["refresh_token"]
    answer = await dev.ask("refresh_token", refresh_token=token, client_id="other")
    assert "another client than 'other'" in failed(answer, "invalid_grant", 70000)
    stranger = Development()
    async with stranger.http:
        answer = await stranger.ask("refresh_token", refresh_token=token)
        failed(answer, "invalid_grant", 70000)
    header, body, signature = token.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"refresh_token"}').decode().rstrip("=")
    wrong = (found["access_token"], found["id_token"], f"{header}.{body}.A{signature[1:]}",
             f"{none}.{body}.", "x", "é.ü.ö", "x" * 12_000)  # fmt: skip
    for one in wrong:
        failed(await dev.ask("refresh_token", refresh_token=one), "invalid_grant", 70000)


async def test_a_code(dev):
    answer = await dev.authorize(login_hint="carol@example.test")
    assert answer.headers["location"].startswith(f"{REDIRECT}?code=")
    back = returned(answer)
    assert back["state"] == "a state"
    found = (await dev.redeem(back["code"])).json()
    assert dev.claims(found["id_token"])["nonce"] == "a nonce"
    assert await dev.mailbox(found) == "carol@example.test"
    assert found["refresh_token"]


async def test_without_a_hint_it_is_the_first_account(dev):
    found = (await dev.redeem(await dev.code())).json()
    assert await dev.mailbox(found) == "alice@example.test"


async def test_a_code_is_good_once(dev):
    code = await dev.code()
    assert (await dev.redeem(code)).status_code == 200
    failed(await dev.redeem(code), "invalid_grant", 54005)


async def test_a_code_is_good_for_a_minute(dev):
    codes = [await dev.code(), await dev.code()]
    dev.clock.advance(CODE_LIFETIME_S - 1)
    assert (await dev.redeem(codes[0])).status_code == 200
    dev.clock.advance(1)
    failed(await dev.redeem(codes[1]), "invalid_grant", 70008)


async def test_a_code_of_an_earlier_start_is_not_good(dev):
    code = await dev.code()
    dev.users._start = "another"
    failed(await dev.redeem(code), "invalid_grant", 70008)


@pytest.mark.parametrize(
    ("changed", "number"),
    [
        ({"code_verifier": "w" * 43}, 501481),
        ({"code_verifier": ""}, 501481),
        ({"code_verifier": "é" * 43}, 501481),
        ({"redirect_uri": "http://localhost:4712/"}, 500112),
        ({"client_id": "other"}, 70000),
    ],
)
async def test_a_code_of_another_program(dev, changed, number):
    code = await dev.code()
    failed(await dev.redeem(code, **changed), "invalid_grant", number)
    assert (await dev.redeem(code)).status_code == 200  # by its own program


async def test_proof_keys(dev):
    plain = await dev.code(code_challenge=VERIFIER, code_challenge_method="plain")
    assert (await dev.redeem(plain)).status_code == 200
    without = await dev.code(code_challenge="", code_challenge_method="")
    failed(await dev.redeem(without), "invalid_grant", 501481)
    assert (await dev.redeem(without, code_verifier="")).status_code == 200


async def test_the_table_of_used_codes_is_bounded(dev, monkeypatch):
    monkeypatch.setattr(grants, "CODES_MAX", 3)
    for _ in range(3):
        assert (await dev.redeem(await dev.code())).status_code == 200
    code = await dev.code()
    answer = await dev.redeem(code)
    failed(answer, "temporarily_unavailable", 90055, status=429)
    assert answer.headers["retry-after"] == str(CODE_LIFETIME_S)
    dev.clock.advance(CODE_LIFETIME_S)
    assert (await dev.redeem(await dev.code())).status_code == 200
    assert len(dev.users._used._used) == 1


@pytest.mark.parametrize(
    "redirect",
    [
        "https://evil.example/", "http://evil.example/", "http://localhost.evil.example/",
        "http://localhost@evil.example/", "http://localhost:80@evil.example/",
        "http://localhost\\@evil.example/", "http://localhost:1/\r\nx: y", "//localhost/",
        "http://127.0.0.1.evil.example/", "http://10.0.0.1/", "http://localhost:1/#x",
        "javascript:alert(1)", "msal:x", "msalx://a#b", "msalx://a?b=1", "msalx://a\r\nx: y", "file:///etc/passwd", "https://localhost:1/",
        "urn:ietf:wg:oauth:2.0:oob:auto", "http://localhost:1/?x#y", "http://127.0.0.1\n",
    ],
)  # fmt: skip
async def test_a_redirect_to_elsewhere(dev, redirect):
    answer = await dev.authorize(redirect_uri=redirect)
    failed(answer, "invalid_request", 50011)
    assert "location" not in answer.headers


@pytest.mark.parametrize(
    "redirect",
    [
        "http://localhost", "http://LOCALHOST:1/a%20b?x=1", "http://127.0.0.1:65535/", "http://[::1]:1/",
        "msal04b07795-8ddb://auth", "msauth://x".replace("msauth", "msalx"),
    ],
)  # fmt: skip
async def test_a_redirect_to_this_machine(dev, redirect):
    answer = await dev.authorize(redirect_uri=redirect)
    assert answer.headers["location"].startswith(redirect)
    answer = await dev.redeem(returned(answer)["code"], redirect_uri=redirect)
    assert answer.status_code == 200


@given(st.text(st.sampled_from("htp:/locals127.0[]@\\#?% \n.evil-exampmsal"), max_size=60))
def test_no_redirect_leaves_the_machine(tail):
    for uri in (tail, f"http://localhost{tail}", f"http://127.0.0.1{tail}", f"msal{tail}"):
        try:
            require_own_redirect(uri)
        except SignInError:
            continue
        host = urlsplit(uri).hostname
        assert uri.startswith("msal") or host in ("localhost", "::1") or host.startswith("127.")


async def test_other_ways_back(dev):
    answer = await dev.authorize(response_mode="fragment")
    assert answer.headers["location"].startswith(f"{REDIRECT}#code=")
    page = await dev.authorize(response_mode="form_post", state='"><script>')
    assert page.status_code == 200
    is_never_framed(page)
    assert f'action="{REDIRECT}"' in page.text
    assert '"><script>' not in page.text
    code = re.search(r'name="code" value="([^"]+)"', page.text)[1]
    assert (await dev.redeem(code)).status_code == 200
    oob = "urn:ietf:wg:oauth:2.0:oob"
    page = await dev.authorize(redirect_uri=oob)
    code = re.search(r"<code>([^<]+)</code>", page.text)[1]
    assert (await dev.redeem(code, redirect_uri=oob)).status_code == 200


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": ""}, "invalid_request"),
        ({"response_mode": "web_message"}, "invalid_request"),
        ({"code_challenge": "short"}, "invalid_request"),
        ({"code_challenge": ""}, "invalid_request"),
        ({"code_challenge_method": "S512"}, "invalid_request"),
        ({"scope": f"{GRAPH}/Mail.Send https://other.test/x"}, "invalid_scope"),
        ({"scope": "é"}, "invalid_scope"),
        ({"scope": "x" * 5000}, "invalid_request"),
        ({"scope": f"https://{'x' * 2000}/.default"}, "invalid_request"),
        ({"nonce": "x" * 1000}, "invalid_request"),
        ({"login_hint": "x" * 1000}, "invalid_request"),
    ],
)
async def test_the_program_is_told_of_an_error(dev, changed, error):
    back = returned(await dev.authorize(**changed))
    assert (back["error"], back["state"]) == (error, "a state")
    assert back["error_description"].startswith("AADSTS")


@pytest.mark.parametrize("changed", [{"client_id": ""}, {"redirect_uri": ""}, {"state": "x" * 5000},
                                     {"client_id": "x" * 300}])  # fmt: skip
async def test_an_error_before_the_way_back_is_known(dev, changed):
    assert (await dev.authorize(**changed)).status_code == 400


async def test_a_parameter_that_occurs_twice(dev):
    answer = await dev.http.get(f"{AUTHORIZE}?client_id=a&client_id=b")
    assert "more than once" in failed(answer, "invalid_request", 900144)


FOREIGN = [
    {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}, {"sec-fetch-site": "new"},
    {"referer": "https://evil.example/x"}, {"referer": "https://[x"},
]  # fmt: skip
OWN = [{"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}, {"referer": f"{BASE}/x"}, {}]


@pytest.mark.parametrize("headers", FOREIGN)
async def test_another_site_has_a_person_approve_first(dev, headers):
    page = await dev.authorize(headers, client_id="<app>")
    assert page.status_code == 200
    is_never_framed(page)
    assert "code" not in page.headers.get("location", "")
    assert "&lt;app&gt;" in page.text
    assert "<app>" not in page.text
    assert '<form method="post">' in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self' http:;" in policy
    answer = await dev.authorize(headers, "POST", {"approve": "yes"})
    assert answer.status_code == 403  # the form of another site approves nothing
    back = returned(
        await dev.authorize({"sec-fetch-site": "same-origin"}, "POST", {"approve": "yes"})
    )
    assert (await dev.redeem(back["code"])).status_code == 200
    back = returned(await dev.authorize(headers, prompt="none"))
    assert back["error"] == "interaction_required"


@pytest.mark.parametrize("headers", OWN)
async def test_a_program_and_a_person_are_not_asked(dev, headers):
    assert "code" in returned(await dev.authorize(headers))


async def test_a_device_code(dev):
    device = await dev.device()
    assert device["verification_uri"] == BASE + PAGE
    assert device["user_code"] in device["user_code"]
    assert "nothing to do" in device["message"]
    assert "nothing to do" in (await dev.http.get(PAGE)).text
    found = await dev.tokens_by(DEVICE_GRANT, device_code=device["device_code"])
    assert await dev.mailbox(found) == "alice@example.test"
    assert found["refresh_token"]
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"])
    failed(answer, "invalid_grant", 54005)


async def test_a_device_code_by_a_hint_and_by_the_older_names(dev):
    device = await dev.device(login_hint="carol")
    found = await dev.tokens_by("device_code", code=device["device_code"])
    assert await dev.mailbox(found) == "carol@example.test"


async def test_a_device_code_that_ended_or_is_none(dev):
    device = await dev.device()
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"], client_id="other")
    failed(answer, "invalid_grant", 70000)
    failed(await dev.ask(DEVICE_GRANT, device_code=await dev.code()), "invalid_grant", 70000)
    dev.clock.advance(DEVICE_LIFETIME_S)
    answer = await dev.ask(DEVICE_GRANT, device_code=device["device_code"])
    failed(answer, "expired_token", 70020)


async def test_on_behalf_of_a_user(dev):
    user = await dev.tokens_by("password", username="carol", password="any")
    form = {"requested_token_use": "on_behalf_of", "client_id": "service"}
    for secret in ({"client_secret": "any"}, {"client_assertion": "any.j.wt"}):
        found = await dev.tokens_by(ON_BEHALF, assertion=user["access_token"], **form, **secret)
        assert await dev.mailbox(found) == "carol@example.test"
        assert dev.claims(found["access_token"])["appid"] == "service"


async def test_what_no_service_gets_on_behalf_of_a_user(dev):
    form = {"requested_token_use": "on_behalf_of", "client_secret": "any"}
    user = await dev.tokens_by("password", username="carol", password="any")
    answer = await dev.ask(
        ON_BEHALF, assertion=user["access_token"], **form | {"client_secret": ""}
    )
    failed(answer, "invalid_client", 7000218, status=401)
    answer = await dev.ask(ON_BEHALF, **form)
    assert "'assertion'" in failed(answer, "invalid_request", 900144)
    answer = await dev.ask(ON_BEHALF, assertion="x", client_secret="any")
    assert "requested_token_use" in failed(answer, "invalid_request", 900144)
    own = await dev.tokens_by("client_credentials", client_secret="x", scope=f"{GRAPH}/.default")
    answer = await dev.ask(ON_BEHALF, assertion=own["access_token"], **form)
    failed(answer, "invalid_grant", 7000114)
    dev.clock.advance(LIFETIME_S)
    answer = await dev.ask(ON_BEHALF, assertion=user["access_token"], **form)
    failed(answer, "invalid_grant", 500133)


async def test_any_assertion_is_a_secret_of_its_client(dev):
    form = {"client_assertion": "a.b.c", "scope": f"{GRAPH}/.default"}
    form["client_assertion_type"] = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    found = await dev.tokens_by("client_credentials", **form)
    assert await dev.mailbox(found) == "app@example.test"


async def test_the_path_of_version_1(dev):
    path = "/contoso/oauth2/token"
    form = {"resource": f"{GRAPH}/", "scope": ""}
    found = await dev.tokens_by("password", path, username="bob", password="bob", **form)
    assert found["resource"] == dev.claims(found["access_token"])["aud"] == GRAPH
    assert int(found["expires_on"]) > 0
    assert found["refresh_token"]
    assert dev.claims(found["id_token"])["preferred_username"] == "bob@example.test"
    found = await dev.tokens_by("client_credentials", path, client_secret="x", **form)
    assert dev.claims(found["access_token"])["aud"] == GRAPH
    answer = await dev.ask("password", path, username="b", password="b", resource="x" * 2000)
    failed(answer, "invalid_resource", 500011)


async def test_the_realm_of_a_user(dev):
    found = (await dev.http.get("/common/userrealm/Alice@example.test?api-version=1.0")).json()
    assert found["account_type"] == "Managed"
    assert found["domain_name"] == "example.test"
    answer = await dev.http.post("/common/userrealm/alice@example.test")
    failed(answer, "invalid_request", 900561, status=405)
    assert (await dev.http.get("/common/other")).status_code == 404
    assert (await dev.http.get("/common/userrealm/a/b")).status_code == 404


async def test_discovery_names_the_grants(dev):
    found = (await dev.http.get("/contoso/v2.0/.well-known/openid-configuration")).json()
    assert found["grant_types_supported"] == ["client_credentials", *dev.users.grants]
    assert found["response_types_supported"] == ["code"]
    answer = await dev.ask("urn:ietf:params:oauth:grant-type:saml2-bearer")
    assert "authorization_code" in failed(answer, "unsupported_grant_type", 70003)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("path", [AUTHORIZE, DEVICE, PAGE])
async def test_another_method(dev, method, path):
    query = {"client_id": "app", "redirect_uri": REDIRECT, "response_type": "code"}
    answer = await dev.http.request(method, path, params=query)
    failed(answer, "invalid_request", 900561, status=405)


async def test_with_a_token_a_password_is_that_token(guarded):
    answer = await guarded.ask("password", username="carol", password="any")
    failed(answer, "invalid_grant", 50126)
    found = await guarded.tokens_by("password", username="carol", password=THE_TOKEN)
    assert await guarded.mailbox(found) == "carol@example.test"
    found = await guarded.tokens_by("refresh_token", refresh_token=found["refresh_token"])
    assert await guarded.mailbox(found) == "carol@example.test"


async def test_with_a_token_a_code_needs_it(guarded):
    own = {"sec-fetch-site": "same-origin"}
    page = await guarded.authorize(own)
    assert page.status_code == 200
    assert 'name="token"' in page.text
    for wrong in ({"approve": "yes"}, {"approve": "yes", "token": "wrong"}, {"token": THE_TOKEN}):
        page = await guarded.authorize(own, "POST", wrong)
        assert page.status_code == 403
        assert 'role="alert"' in page.text
    assert returned(await guarded.authorize(prompt="none"))["error"] == "interaction_required"
    form = {"approve": "yes", "token": THE_TOKEN}
    back = returned(await guarded.authorize(own, "POST", form, login_hint="carol"))
    found = (await guarded.redeem(back["code"])).json()
    assert await guarded.mailbox(found) == "carol@example.test"


async def test_with_a_token_a_device_code_needs_it(guarded):
    device = await guarded.device()
    assert device["user_code"] in device["message"]
    ask = {"device_code": device["device_code"]}
    failed(await guarded.ask(DEVICE_GRANT, **ask), "authorization_pending", 70016)
    form = {"approve": "yes", "user_code": device["user_code"].lower(), "token": THE_TOKEN}
    for wrong in ({"token": "wrong"}, {"user_code": "ABCDEFGHI"}, {"user_code": "é"}, {"user_code": ""},
                  {"approve": ""}):  # fmt: skip
        page = await guarded.http.post(PAGE, data=form | wrong)
        assert page.status_code == 403
        is_never_framed(page)
        failed(await guarded.ask(DEVICE_GRANT, **ask), "authorization_pending", 70016)
    other = await guarded.device()
    assert "signed in" in (await guarded.http.post(PAGE, data=form)).text
    found = await guarded.tokens_by(DEVICE_GRANT, **ask)
    assert await guarded.mailbox(found) == "alice@example.test"
    answer = await guarded.ask(DEVICE_GRANT, device_code=other["device_code"])
    failed(answer, "authorization_pending", 70016)


async def test_the_table_of_approved_device_codes_is_bounded(guarded, monkeypatch):
    monkeypatch.setattr(grants, "CODES_MAX", 2)
    devices = [await guarded.device() for _ in range(3)]
    for one in devices:
        form = {"approve": "yes", "user_code": one["user_code"], "token": THE_TOKEN}
        assert (await guarded.http.post(PAGE, data=form)).status_code == 200
    answers = [await guarded.ask(DEVICE_GRANT, device_code=one["device_code"]) for one in devices]
    assert [one.status_code for one in answers] == [400, 200, 200]


async def test_with_a_token_no_secret_and_no_assertion_of_another_text_is_good(guarded):
    for wrong in ({"client_secret": "any"}, {"client_assertion": "a.b.c"}):
        answer = await guarded.ask("client_credentials", scope=f"{GRAPH}/.default", **wrong)
        failed(answer, "invalid_client", 7000215, status=401)
        answer = await guarded.ask("password", username="carol", password=THE_TOKEN, **wrong)
        failed(answer, "invalid_client", 7000215, status=401)
    form = {"client_assertion": THE_TOKEN, "scope": f"{GRAPH}/.default"}
    assert await guarded.mailbox(await guarded.tokens_by("client_credentials", **form))


async def test_with_a_token_on_behalf_of_needs_a_token_of_this_relay(guarded):
    form = {"requested_token_use": "on_behalf_of", "client_secret": THE_TOKEN}
    claims = base64.urlsafe_b64encode(b'{"upn":"alice@example.test"}').decode().rstrip("=")
    answer = await guarded.ask(ON_BEHALF, assertion=f"eyJhbGciOiJub25lIn0.{claims}.", **form)
    failed(answer, "invalid_grant", 50013)
    answer = await guarded.ask(ON_BEHALF, assertion=THE_TOKEN, **form)
    failed(answer, "invalid_grant", 7000114)
    user = await guarded.tokens_by("password", username="carol", password=THE_TOKEN)
    found = await guarded.tokens_by(ON_BEHALF, assertion=user["access_token"], **form)
    assert await guarded.mailbox(found) == "carol@example.test"


GUESSES: list[Callable[[Development, str], Any]] = [
    lambda dev, text: dev.ask("password", username="alice", password=text),
    lambda dev, text: dev.authorize({}, "POST", {"approve": "yes", "token": text}),
    lambda dev, text: dev.http.post(PAGE, data={"approve": "yes", "token": text, "user_code": "x"}),
]


@pytest.mark.parametrize("guess", GUESSES)
async def test_who_guesses_the_token_is_delayed(guarded, guess):
    statuses = [(await guess(guarded, f"guess {one}")).status_code for one in range(12)]
    assert statuses[0] in (400, 403)
    assert statuses[-1] == 429
    answer = await guess(guarded, THE_TOKEN)  # it could be a guess as well
    failed(answer, "temporarily_unavailable", 90055, status=429)
    assert int(answer.headers["retry-after"]) >= 1
