"""The sign-in of users to a development relay, with its Graph API, for tests."""

import base64
import hashlib
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet

from relay.development.accounts import DevelopmentAccounts
from relay.development.user_grants import UserGrants
from relay.front_door.http.path_router import PathRouter
from relay.front_door.sign_in.access_tokens import AccessTokens
from relay.front_door.sign_in.authentication import HttpAuthentication
from relay.front_door.sign_in.token_endpoint import SIGN_IN_PATHS, create_sign_in_app
from tests.support.accounts import HOSTNAME
from tests.support.graph_fakes import graph_app
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


class Development:
    """The sign-in of a development relay, and its Graph API."""

    def __init__(self, token: str = "", store: Any = None) -> None:
        self.clock = ManualClock()
        self.accounts = DevelopmentAccounts(token=token, clock=self.clock)
        self.tokens = AccessTokens(lambda: ECKey.generate_key("P-256"), self.clock)
        self.users = UserGrants(
            self.accounts,
            self.tokens,
            clock=self.clock,
            default_user="alice@example.test",
            needs_token=bool(token),
        )
        sign_in = create_sign_in_app(
            self.accounts, self.tokens, clock=self.clock, hostname=HOSTNAME, users=self.users
        )
        authentication = HttpAuthentication(self.accounts, self.tokens, realm=HOSTNAME)
        graph = graph_app(store, self.clock, authentication=authentication)
        app = PathRouter(
            {"v1.0": graph, **dict.fromkeys(self.users.prefixes, sign_in)},
            by_rest=dict.fromkeys((*SIGN_IN_PATHS, *self.users.paths), sign_in),
            otherwise=graph,
        )
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
        self,
        headers: dict[str, str] | None = None,
        method: str = "GET",
        form: dict[str, str] | None = None,
        **changed: str,
    ) -> httpx.Response:
        sent = {
            "client_id": "app",
            "response_type": "code",
            "redirect_uri": REDIRECT,
            "scope": SCOPE,
            "state": "a state",
            "nonce": "a nonce",
            "code_challenge": CHALLENGE,
            "code_challenge_method": "S256",
            **changed,
        }
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

    async def mailbox(self, found: dict[str, Any], at: str = "me") -> str:
        """The mailbox that an access token opens."""
        headers = {"authorization": f"Bearer {found['access_token']}"}
        answer = await self.http.get(f"/v1.0/{at}", headers=headers)
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
