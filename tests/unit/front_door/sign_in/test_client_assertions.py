"""Sign-in of applications with a certificate or another key: what is good, and each refusal."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import KeySet

from relay.base.accounts.passwords import FREE_FAILURES
from relay.front_door.sign_in import client_assertions
from relay.front_door.sign_in.client_assertions import ASSERTION_LENGTH_MAX, SKEW_S
from tests.support.client_keys import (
    base64url,
    certificate,
    claims_of,
    private_jwk,
    private_key,
    public_jwk,
    signed,
)
from tests.support.logs import capture_logs
from tests.support.tables import each_row
from tests.unit.front_door.sign_in.test_token_endpoint import BASE, TOKEN, SignIn, bearing, failed

TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ACCOUNT = '[[account]]\naddress = "app@example.test"\nclient_id = "Client-1"\n'
OTHER = (
    '[[account]]\naddress = "bob@example.test"\nclient_id = "Client-2"\nclient_secret = "plain:s"\n'
)
AUDIENCE = f"{BASE}{TOKEN}"
V1 = f"{BASE}/contoso/oauth2/token"
NOW_S = 1_700_000_000
RSA, EC = certificate(), certificate("ec")
NEXT = certificate("ec", 1)
STRANGER = certificate(number=2)


class Client:
    """An application whose account has certificates and keys."""

    def __init__(self, sign_in: SignIn, http: httpx.AsyncClient) -> None:
        self.sign_in = sign_in
        self.http = http
        self._number = 0

    def assertion(
        self, *, key: Any = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """A good one, but for what is given."""
        self._number += 1
        made = claims_of("Client-1", AUDIENCE, self.now_s, **{"jti": f"id {self._number}"} | claims)
        fields = {"alg": "RS256", "typ": "JWT", "x5t": RSA.thumbprint()} | (header or {})
        fields = {name: value for name, value in fields.items() if value is not None}
        return signed(key or RSA.private, made, fields)

    @property
    def now_s(self) -> float:
        return self.sign_in.clock.time_us() / 1e6

    async def post(self, assertion: str, **change: Any) -> httpx.Response:
        form = {
            "grant_type": "client_credentials",
            "client_id": "Client-1",
            "client_assertion_type": TYPE,
            "client_assertion": assertion,
        } | change
        return await self.http.post(TOKEN, data=form)

    async def refused(self, number: int, assertion: str, **change: Any) -> str:
        answer = await self.post(assertion, **change)
        self.sign_in.unlock("app@example.test")
        return failed(answer, 401, "invalid_client", number)


def load(sign_in: SignIn, *lines: str) -> None:
    sign_in.load(ACCOUNT + "\n".join(lines) + "\n" + OTHER)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    made = SignIn(tmp_path)
    (tmp_path / "app.pem").write_text(RSA.pem + NEXT.pem)
    keys = [
        public_jwk("ec", kid="of-ec"),
        public_jwk("ec", kid="of/ec+1="),
        public_jwk("rsa", 3, alg="PS256"),
        public_jwk("ec", 4, use="enc", kid="enc"),
    ]
    (tmp_path / "app.jwks").write_text(json.dumps({"keys": keys}))
    load(made, 'client_certificate = "app.pem"', 'client_keys = "app.jwks"')
    transport = httpx.ASGITransport(made.app, client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as http:
        yield Client(made, http)
    made.close()


def thumbprint_of(kind: str, number: int) -> str:
    """The thumbprint of a JWK (RFC 7638), which names it if it has no key id."""
    return KeySet.import_key_set({"keys": [public_jwk(kind, number)]}).keys[0].thumbprint()


SHA_1, SHA_256 = RSA.thumbprint(), RSA.thumbprint(hashes.SHA256())


@pytest.mark.parametrize(
    ("key", "header"),
    [
        (RSA.private, {}),
        (RSA.private, {"typ": None}),
        (RSA.private, {"alg": "PS256"}),
        (RSA.private, {"x5t": f"{SHA_1}="}),
        (RSA.private, {"x5t": f"{SHA_1}=".replace("-", "+").replace("_", "/")}),
        (EC.private, {"alg": "ES256", "x5t": None, "kid": "of_ec-1"}),
        (RSA.private, {"x5t": None, "x5t#S256": SHA_256, "alg": "PS256"}),
        (RSA.private, {"x5t": None, "kid": RSA.hexadecimal_thumbprint}),
        (RSA.private, {"x5t": None, "kid": SHA_1, "x5c": ["x" * 4000]}),
        (RSA.private, {"kid": "another", "x5t#S256": "another"}),
        (NEXT.private, {"alg": "ES256", "x5t": NEXT.thumbprint()}),
        (EC.private, {"alg": "ES256", "x5t": None, "kid": "of-ec"}),
        (private_key("rsa", 3), {"alg": "PS256", "x5t": None, "kid": thumbprint_of("rsa", 3)}),
    ],
)
async def test_a_good_assertion_gets_a_token(client, key, header):
    answer = await client.post(client.assertion(key=key, header=header))
    assert answer.status_code == 200, answer.text
    token = answer.json()["access_token"]
    me = await client.http.get("/v1.0/users/app@example.test", headers=bearing(token))
    assert me.json()["mail"] == "app@example.test"
    keys = KeySet.import_key_set((await client.http.get("/x/discovery/v2.0/keys")).json())
    claims = jwt.decode(token, keys, algorithms=["ES256"]).claims
    assert (claims["appidacr"], claims["app_displayname"]) == ("2", "app")


@pytest.mark.parametrize(
    "audience",
    [
        AUDIENCE,
        V1,
        [AUDIENCE],
        AUDIENCE.upper().replace("HTTPS", "https"),
        f"{AUDIENCE}/",
        AUDIENCE.replace("contoso", "%63ontoso"),
    ],
)
async def test_audiences(client, audience):
    answer = await client.post(client.assertion(aud=audience))
    assert answer.status_code == 200, answer.text


async def test_behind_a_proxy_the_audience_is_the_public_url(tmp_path):
    sign_in = SignIn(tmp_path, public_url="https://mail.example.test/relay")
    load(sign_in, f'client_certificate = """{RSA.pem}"""')
    transport = httpx.ASGITransport(sign_in.app, client=("192.0.2.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8025") as http:
        client = Client(sign_in, http)
        await client.refused(700023, client.assertion(aud=f"http://127.0.0.1:8025{TOKEN}"))
        answer = await client.post(client.assertion(aud=f"https://mail.example.test/relay{TOKEN}"))
        assert answer.status_code == 200, answer.text
    sign_in.close()


@each_row(
    "claims, number, text",
    [
        ({"aud": BASE}, 700023, "found aud"),
        ({"aud": "https://login.microsoftonline.com/contoso/oauth2/v2.0/token"}, 700023, AUDIENCE),
        ({"aud": AUDIENCE.replace("contoso", "other")}, 700023, "contoso"),
        ({"aud": AUDIENCE.replace("https", "http")}, 700023, "found aud"),
        ({"aud": AUDIENCE.replace(":8443", "")}, 700023, "found aud"),
        ({"aud": f"{AUDIENCE}?x"}, 700023, "found aud"),
        ({"aud": f"{BASE}/contoso/v2.0"}, 700023, "found aud"),
        ({"aud": "https://[x"}, 700023, "found aud"),
        ({"aud": [AUDIENCE, BASE]}, 700023, "found aud"),
        ({"aud": []}, 700023, "found aud"),
        ({"aud": 1}, 50027, "$.aud"),
        ({"aud": [1]}, 50027, "$.aud"),
        ({"aud": None}, 50027, "`aud`"),
        ({"iss": "Client-2"}, 700021, "iss 'Client-2', sub 'Client-1'"),
        ({"sub": "Client-2"}, 700021, "sub 'Client-2'"),
        ({"iss": "Client-2", "sub": "Client-2"}, 700021, "sub 'Client-2'"),
        ({"iss": None}, 50027, "`iss`"),
        ({"sub": None}, 50027, "`sub`"),
        ({"exp": NOW_S}, 700024, "exp is 0 s ago"),
        ({"exp": NOW_S - 1}, 700024, "2023-11-14T22:13:20"),
        ({"exp": NOW_S + 600 + SKEW_S + 1}, 700024, "at most 600 s"),
        ({"exp": 1e300}, 700024, "at most 600 s"),
        ({"exp": -1e300}, 700024, "ago"),
        ({"exp": "1700000100"}, 50027, "$.exp"),
        ({"exp": True}, 50027, "$.exp"),
        ({"exp": None}, 50027, "`exp`"),
        ({"nbf": NOW_S + SKEW_S + 1}, 700024, "nbf is 31 s ahead"),
        ({"nbf": "x"}, 50027, "$.nbf"),
        ({"jti": None}, 50027, "`jti`"),
        ({"jti": ""}, 50027, "empty jti"),
        ({"jti": 1}, 50027, "$.jti"),
    ],
)
async def test_claims_that_are_refused(client, claims, number, text):
    assert text in await client.refused(number, client.assertion(**claims))


@each_row(
    "header, number, text",
    [
        ({"alg": "none"}, 5002738, "'none' is not a supported"),
        ({"alg": "None"}, 5002738, "'None' is not a supported"),
        ({"alg": "RS512"}, 5002738, "'RS256,PS256,ES256'"),
        ({"alg": "x" * 5000}, 5002738, "is not a supported"),
        ({"alg": None}, 50027, "`alg`"),
        ({"alg": ["RS256"]}, 50027, "$.alg"),
        ({"typ": "at+jwt"}, 5002727, "Allowed types: 'JWT'"),
        ({"x5t": None}, 5002723, "No certificate SHA-1 thumbprint"),
        ({"x5t": "", "kid": None}, 5002723, "No certificate SHA-1 thumbprint"),
        ({"x5t": 1}, 50027, "$.x5t"),
        ({"crit": ["b64"], "b64": False}, 50027, "crit"),
        ({"x5t": STRANGER.thumbprint()}, 700027, "Identifier of the key used"),
        ({"x5t": None, "kid": "enc"}, 700027, "the key was not found"),
    ],
)
async def test_headers_that_are_refused(client, header, number, text):
    assert text in await client.refused(number, client.assertion(header=header))


@pytest.mark.parametrize("algorithm", ["RS256", "PS256"])
async def test_the_signature_of_another_key_is_refused(client, algorithm):
    forged = client.assertion(key=STRANGER.private, header={"alg": algorithm})
    assert "the signature is not of this key" in await client.refused(700027, forged)


@each_row(
    "key, header",
    [
        (RSA.private, {"x5t": None, "kid": "of-ec"}),
        (EC.private, {"alg": "ES256"}),
        (private_key("rsa", 3), {"x5t": None, "kid": thumbprint_of("rsa", 3)}),  # is for PS256
    ],
)
async def test_an_algorithm_that_is_not_of_the_key_is_refused(client, key, header):
    await client.refused(700027, client.assertion(key=key, header=header))


@pytest.mark.parametrize("algorithm", ["HS256", "HS512"])
async def test_a_mac_with_the_public_key_is_refused(client, algorithm):
    await client.refused(5002738, client.assertion(header={"alg": algorithm}))


def cut(text: str) -> str:
    return text[:-20]


@each_row(
    "change, number",
    [
        (cut, 700027),
        (lambda text: text.rpartition(".")[0] + ".", 700027),
        (lambda text: text.rpartition(".")[0], 50027),
        (lambda text: f"{text}.x", 50027),
        (lambda text: f" {text}", 50027),
        (lambda text: "x", 50027),
        (lambda text: "..", 50027),
        (lambda text: f"x{text}", 50027),
        (lambda text: base64url(b"\xff") + text[text.index(".") :], 50027),
        (lambda text: base64url(b"[" * 5000) + text[text.index(".") :], 50027),
        (lambda text: text + "x" * ASSERTION_LENGTH_MAX, 50027),
    ],
)
async def test_what_is_no_assertion_is_refused(
    client: Client, change: Callable[[str], str], number: int
) -> None:
    await client.refused(number, change(client.assertion()))


@pytest.mark.parametrize(
    ("change", "status", "error", "number"),
    [
        ({"client_assertion_type": ""}, 400, "invalid_request", 900144),
        ({"client_assertion_type": "saml2-bearer"}, 400, "invalid_request", 90011),
        ({"client_secret": "s"}, 400, "invalid_request", 900144),
        ({"client_id": ""}, 400, "invalid_request", 900144),
        ({"client_id": "Client-2"}, 401, "invalid_client", 700021),
        ({"client_assertion": ""}, 401, "invalid_client", 7000218),
    ],
)
async def test_a_faulty_form(client, change, status, error, number):
    failed(await client.post(client.assertion(), **change), status, error, number)


async def test_an_assertion_with_http_basic_is_refused(client):
    form = {"grant_type": "client_credentials", "client_assertion": client.assertion()}
    answer = await client.http.post(TOKEN, data=form, auth=("Client-1", "x"))
    failed(answer, 400, "invalid_request", 900144)


async def test_a_client_without_keys_and_an_unknown_one_look_alike(client):
    texts = []
    for name in ("Client-2", "Client-3"):
        assertion = client.assertion(iss=name, sub=name)
        text = await client.refused(700027, assertion, client_id=name)
        texts.append(text.partition(" Error: ")[0])
    assert texts[0] == texts[1]


async def test_the_log_says_why_and_not_what(client):
    assertion = client.assertion(aud="https://elsewhere.test")
    with capture_logs() as lines:
        await client.refused(700023, assertion)
    [line] = [one for one in lines if one["event"] == "sign-in rejected"]
    assert (line["client"], line["client_id"]) == ("192.0.2.1", "Client-1")
    assert "elsewhere.test" in line["reason"]
    assert assertion.rpartition(".")[2] not in str(lines)


async def test_an_assertion_is_good_once_also_after_a_reload(client):
    assertion = client.assertion(jti="the one")
    assert (await client.post(assertion)).status_code == 200
    assert "'the one' was used before" in await client.refused(50027, assertion)
    load(client.sign_in, 'client_certificate = "app.pem"', 'scopes = ["Mail.Send"]')
    await client.refused(50027, assertion)
    other = client.assertion(jti="the one", exp=client.now_s + 500)
    await client.refused(50027, other)
    assert (await client.post(client.assertion())).status_code == 200


async def test_an_assertion_stays_refused_if_the_clock_is_set_back(client):
    clock, assertion = client.sign_in.clock, client.assertion(exp=NOW_S + 100)
    assert (await client.post(assertion)).status_code == 200
    clock.jumped_us = 200_000_000
    assert (await client.post(client.assertion())).status_code == 200
    clock.jumped_us = 0
    await client.refused(50027, assertion)
    assert (await client.post(client.assertion())).status_code == 200


async def test_at_the_limit_no_id_is_forgotten(client, monkeypatch):
    monkeypatch.setattr(client_assertions, "USED_MAX", 2)
    first = client.assertion(exp=NOW_S + 100)
    for assertion in (first, client.assertion(exp=NOW_S + 200)):
        assert (await client.post(assertion)).status_code == 200
    for _ in range(FREE_FAILURES + 1):  # it is no failure of the client
        answer = await client.post(client.assertion())
        failed(answer, 503, "temporarily_unavailable", 90033)
    assert answer.headers["retry-after"] == "100"
    await client.refused(50027, first)
    client.sign_in.clock.jumped_us = 100_000_000
    assert (await client.post(client.assertion())).status_code == 200
    assert (await client.post(client.assertion())).status_code == 503


async def test_the_same_assertion_at_once_gets_one_token(client):
    assertion = client.assertion()
    answers = await asyncio.gather(*(client.post(assertion) for _ in range(FREE_FAILURES)))
    assert sorted(one.status_code for one in answers) == [200, 401, 401]


async def test_failures_count_as_wrong_secrets_do(client):
    load(client.sign_in, 'client_certificate = "app.pem"', 'client_secret = "plain:s3cret"')
    for number in range(FREE_FAILURES - 1):
        wrong = {"aud": BASE} if number else {"exp": NOW_S - 1}
        assert (await client.post(client.assertion(**wrong))).status_code == 401
    assert (await client.post("", client_secret="wrong", client_assertion="")).status_code == 401
    answer = await client.post(client.assertion())
    failed(answer, 429, "temporarily_unavailable", 90055)
    assert answer.headers["retry-after"] == "1"
    assert client.sign_in.unlock("app@example.test") == 1
    assert (await client.post(client.assertion())).status_code == 200


async def test_a_client_with_a_certificate_alone_has_no_secret(client):
    answer = await client.post("", client_assertion="", client_secret="x")
    failed(answer, 401, "invalid_client", 7000215)


@pytest.mark.parametrize(
    ("begins_s", "ends_s"), [(NOW_S - 100, NOW_S - 1), (NOW_S + 100, NOW_S + 1000)]
)
async def test_a_certificate_out_of_its_time_is_refused(client, tmp_path, begins_s, ends_s):
    old = certificate(begins_s=begins_s, ends_s=ends_s)
    (tmp_path / "app.pem").write_text(old.pem)
    load(client.sign_in, 'client_certificate = "app.pem"')
    assertion = client.assertion(header={"x5t": old.thumbprint()})
    assert "is expired, or not valid yet" in await client.refused(700027, assertion)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)
HEADERS = st.dictionaries(
    st.sampled_from(["alg", "typ", "kid", "x5t", "x5t#S256", "crit", "jwk", "x5c"]),
    st.sampled_from(["RS256", "none", "HS256", "JWT", SHA_1]) | JSON,
    max_size=5,
)
CLAIMS = st.dictionaries(
    st.sampled_from(["aud", "iss", "sub", "exp", "nbf", "jti"]),
    st.sampled_from([AUDIENCE, "Client-1", NOW_S + 60]) | JSON,
    max_size=6,
)
PARTS = st.binary(max_size=40).map(base64url)
ASSERTIONS = st.one_of(
    st.text(max_size=60),
    st.lists(PARTS, min_size=3, max_size=3).map(".".join),
    st.tuples(HEADERS, CLAIMS).map(lambda both: signed(STRANGER.private, both[1], both[0])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(assertion=ASSERTIONS)
async def test_nothing_else_gets_a_token(client, assertion):
    client.sign_in.clock.advance(61)
    answer = await client.post(assertion)
    assert answer.status_code in (400, 401, 429), answer.text
    assert set(answer.json()) >= {"error", "error_description", "error_codes"}


def test_the_private_key_of_a_set_is_not_kept(client, tmp_path):
    (tmp_path / "app.jwks").write_text(json.dumps({"keys": [private_jwk("ec", kid="k")]}))
    load(client.sign_in, 'client_keys = "app.jwks"')
    [key] = client.sign_in.by_client_id("client-1").keys
    assert not key.public.is_private
