"""Grants by which users sign in to a development relay (a UserSignIn).

/authorize and a device code are approved at once, for the login hint or the first account, with no
page. If there is a token, the user must enter it: as the password, or on the page of /authorize.
Then there are no device codes, and the token is also the secret of each client. Refresh tokens and
codes are signed texts, which only their client can use. A code can be used once, for 60 s. RFC 6749
4.1, 4.3, 6; RFC 7636; RFC 8628; OpenID Connect Core 2. Error numbers are Entra's.
"""

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hmac import compare_digest
from typing import Any, ClassVar

import msgspec
from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import LOGIN_OCTETS_MAX, Account, RegisteredClient
from relay.base.clock import Clock, Ids, rfc3339
from relay.base.phrases import ahead_text
from relay.development.accounts import DevelopmentAccounts
from relay.development.sign_in_pages import (
    MODES,
    NATIVE_CLIENT,
    approval_page,
    blank_page,
    device_page,
    is_of_another_site,
    redirect_response,
    require_own_redirect,
)
from relay.front_door.http.errors import quoted
from relay.front_door.http.http_request import HttpRequest
from relay.front_door.http.responses import json_response
from relay.front_door.sign_in import access_tokens
from relay.front_door.sign_in.token_endpoint import (
    AUTHORIZE,
    DEVICE_CODE,
    METHODS,
    NO_STORE,
    TEXT_MAX,
    SignInError,
    SignInRequest,
    graph_url,
    host_of,
    read_form,
    require_method,
    required,
    token_response,
)

CODE_LIFETIME_S = 60
DEVICE_LIFETIME_S = 900
REFRESH_LIFETIME_S = 90 * 24 * 3600
DEVICE_PAGE = "oauth2/deviceauth"
_POLL_INTERVAL_S = 1
_CLIENT_ID_MAX = 256  # octets
_NONCE_MAX = 512
_SCOPE_MAX = 4096
_STATE_MAX = 4096
_USED_MAX = 50_000  # codes that are remembered: 10 MB
_PKCE = re.compile(r"[A-Za-z0-9._~-]{43,128}")  # RFC 7636 4.1
_SCOPE = re.compile(r"[\x20-\x7e]*")  # RFC 6749 3.3


class _Grant(Struct, frozen=True):
    """What the tokens of a response grant."""

    client: RegisteredClient
    user: Account
    scope: str
    nonce: str = ""
    earlier: str = ""  # scopes that were granted before


@dataclass(eq=False, repr=False)
class UserGrants:
    """The grants of users, their pages, and the paths that MSAL requests before."""

    accounts: DevelopmentAccounts  # whose users and clients get tokens
    tokens: access_tokens.AccessTokens  # issues them
    clock: Clock  # also for times in tokens
    default_user: str  # the address of a user who signs in without a login hint
    needs_token: bool  # whether the user must enter the token of the relay

    # see UserSignIn
    paths: ClassVar[Sequence[str]] = (DEVICE_PAGE, NATIVE_CLIENT)
    prefixes: ClassVar[Sequence[str]] = ("common",)  # of the path with a user's name
    # that a person opens in a browser
    pages: ClassVar[Sequence[str]] = (AUTHORIZE, DEVICE_PAGE, NATIVE_CLIENT)

    def __post_init__(self) -> None:
        self._ids = Ids(self.clock)
        self._start = secrets.token_urlsafe(16)  # codes of an earlier start may have been used
        self._used: dict[str, float] = {}  # codes, until when they could be used
        self._by_grant = {
            "authorization_code": self._by_code,
            "refresh_token": self._by_refresh_token,
            "password": self._by_password,
            "urn:ietf:params:oauth:grant-type:device_code": self._by_device_code,
            "device_code": self._by_device_code,  # MSAL for Node says so, and Entra takes it
        }
        self.grants: Sequence[str] = tuple(self._by_grant)
        self.discovery: Mapping[str, Any] = {
            "grant_types_supported": ["client_credentials", *self.grants],
            "response_types_supported": ["code"],
            "response_modes_supported": list(MODES),
            "token_endpoint_auth_methods_supported": [*METHODS, "private_key_jwt"],
            "token_endpoint_auth_signing_alg_values_supported": ["RS256", "PS256", "ES256"],
            "scopes_supported": [*access_tokens.OIDC_SCOPES, ".default"],
            "code_challenge_methods_supported": ["plain", "S256"],
        }

    async def respond(self, asked: SignInRequest) -> Response | None:
        """See UserSignIn."""
        if asked.path == AUTHORIZE:
            return await self._authorize(asked)
        if asked.path == NATIVE_CLIENT:
            return blank_page()
        if asked.path == DEVICE_CODE:
            require_method(asked.http, "POST")
            return self._new_device_code(asked, await read_form(asked.http))
        if asked.path == DEVICE_PAGE:
            require_method(asked.http, "GET")
            return device_page()
        first, _, user = asked.path.partition("/")
        if first == "userrealm" and user and "/" not in user:
            require_method(asked.http, "GET")
            return json_response(
                {
                    "ver": "1.0",
                    "account_type": "Managed",  # the password goes to the token endpoint
                    "domain_name": user.rpartition("@")[2],
                    "cloud_instance_name": host_of(asked.base_url),
                    "cloud_audience_urn": "urn:federation:MicrosoftOnline",
                }
            )
        return None

    async def grant(
        self, asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient | None
    ) -> Response:
        """See UserSignIn."""
        client = client or self._public_client(form)
        granted = await self._by_grant[form["grant_type"]](asked, form, client)
        return self._response(asked, form, granted)

    def _public_client(self, form: Mapping[str, str]) -> RegisteredClient:
        """Return the client of an id, without a proof."""
        client_id = _bounded(required(form, "client_id"), "client_id", _CLIENT_ID_MAX)
        client = self.accounts.client_named(client_id)
        if client is None:
            text = f"Application with identifier {quoted(client_id)} was not found."
            raise SignInError("unauthorized_client", text, number=700016)
        return client

    def _user(self, address: str, client: RegisteredClient) -> Account:
        user = self.accounts.opened(address, client.account)
        if user is None:
            text = f"The user account {quoted(address)} does not exist."
            raise SignInError("invalid_grant", text, number=50034)
        return user

    def _hinted(self, form: Mapping[str, str]) -> str:
        hint = _bounded(form.get("login_hint", ""), "login_hint", LOGIN_OCTETS_MAX)
        return self.accounts.address_named(hint) or self.default_user

    async def _by_password(
        self, asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient
    ) -> _Grant:
        name = _bounded(required(form, "username"), "username", LOGIN_OCTETS_MAX)
        user = await self.accounts.by_password(
            name, required(form, "password"), client=asked.http.counted_address
        )
        if user is None:
            text = "Error validating credentials due to invalid username or password."
            raise SignInError("invalid_grant", text, number=50126)
        return _Grant(client, user, _scope(form))

    async def _by_refresh_token(
        self, _asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient
    ) -> _Grant:
        text = required(form, "refresh_token")
        claims = self._unsealed(text, "refresh_token", client, ended=("invalid_grant", 70008))
        user, earlier = self._user(claims["user"], client), claims["scope"]
        return _Grant(client, user, _scope(form) or earlier, earlier=earlier)

    async def _by_code(
        self, _asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient
    ) -> _Grant:
        claims = self._unsealed(
            required(form, "code"), "code", client, ended=("invalid_grant", 70008)
        )
        if _digest(required(form, "redirect_uri")) != claims["redirect"]:
            text = f"The reply address {quoted(form['redirect_uri'])} does not match the reply "
            text += "address provided when requesting the authorization code."
            raise SignInError("invalid_grant", text, number=500112)
        _check_verifier(form.get("code_verifier", ""), claims["challenge"])
        self._use_once(claims["id"], CODE_LIFETIME_S)
        user = self._user(claims["user"], client)
        return _Grant(client, user, _scope(form) or claims["scope"], claims["nonce"])

    async def _by_device_code(
        self, _asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient
    ) -> _Grant:
        code = required(form, "device_code")
        claims = self._unsealed(code, "device_code", client, ended=("expired_token", 70020))
        self._use_once(claims["id"], DEVICE_LIFETIME_S)
        return _Grant(client, self._user(claims["user"], client), claims["scope"])

    def _response(self, asked: SignInRequest, form: Mapping[str, str], grant: _Grant) -> Response:
        """Return the tokens. The scope may add those of OpenID Connect and for a refresh."""
        user, client = grant.user, grant.client
        scopes = grant.scope.split()
        audience = _audience(scopes) or graph_url(asked.base_url)
        names = (scope.rpartition("/")[2] for scope in (*scopes, *grant.earlier.split()))
        access_token = self.tokens.issue(
            client,
            issuer=asked.issuer,
            tenant=asked.tenant,
            audience=audience,
            token_id=self._ids.new(),
            user=user,
            granted=access_tokens.granted_scopes(names, user),
        )
        fields = {"access_token": access_token}
        if granted := " ".join(scope for scope in scopes if scope != "offline_access"):
            fields["scope"] = granted
        if "openid" in scopes:
            fields["id_token"] = self.tokens.sign(self._id_claims(asked, grant))
        if "offline_access" in scopes:
            kept = {"user": user.address, "scope": grant.scope}
            fields["refresh_token"] = self.tokens.seal(
                client, kept, kind="refresh_token", lifetime_s=REFRESH_LIFETIME_S
            )
        if form.get("client_info") == "1":  # MSAL's names of the account
            info = {"uid": access_tokens.object_id(user.address), "utid": asked.tenant}
            fields["client_info"] = _base64url(msgspec.json.encode(info))
        return token_response(fields)

    def _id_claims(self, asked: SignInRequest, grant: _Grant) -> Mapping[str, Any]:
        now_s, address = self._now_s(), grant.user.address
        oid = access_tokens.object_id(address)
        nonce = {"nonce": grant.nonce} if grant.nonce else {}
        return {
            "aud": grant.client.client_id,
            "iss": asked.issuer,
            "tid": asked.tenant,
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + access_tokens.LIFETIME_S,
            "oid": oid,
            "sub": oid,
            "name": address.rpartition("@")[0],
            "preferred_username": address,
            "email": address,
            "ver": "2.0",
            **nonce,
        }

    async def _authorize(self, asked: SignInRequest) -> Response:
        request = asked.http
        query = _parameters(request.query)
        client = self._public_client(query)
        redirect_uri = required(query, "redirect_uri")
        require_own_redirect(redirect_uri, asked.base_url)
        state = {"state": query["state"]} if "state" in query else {}
        mode = query.get("response_mode", "query")
        answer = partial(redirect_response, redirect_uri, mode if mode in MODES else "query")
        asks = self.needs_token or is_of_another_site(request)
        try:
            _check_authorization(query, is_approved=not asks or request.method == "POST")
            user = self._hinted(query)
        except SignInError as error:
            number = f"AADSTS{error.number}: "
            return answer({**state, "error": error.error, "error_description": number + error.text})
        page = partial(
            approval_page, client.client_id, redirect_uri, user=user, needs_token=self.needs_token
        )
        if request.method != "POST":
            require_method(request, "GET")
            if asks:
                return page()
        elif fault := await self._fault_of_approval(request, await read_form(request)):
            return page(fault=fault)
        code = self.tokens.seal(
            client,
            {
                "id": self._ids.new(),
                "start": self._start,
                "user": user,
                "scope": query.get("scope", ""),
                "redirect": _digest(redirect_uri),
                "nonce": query.get("nonce", ""),
                "challenge": _challenge(query),
            },
            kind="code",
            lifetime_s=CODE_LIFETIME_S,
        )
        return answer({"code": code, **state})

    async def _fault_of_approval(self, request: HttpRequest, form: Mapping[str, str]) -> str:
        """Return why the form of a page does not approve, "" if it does."""
        if "approve" not in form or is_of_another_site(request):
            return "Approve the sign-in on this page."
        if not self.needs_token:
            return ""
        account = await self.accounts.by_password(
            self.default_user, form.get("token", ""), client=request.counted_address
        )
        return "" if account is not None else "This is not the token of this relay."

    def _new_device_code(self, asked: SignInRequest, form: Mapping[str, str]) -> Response:
        client = self._public_client(form)
        if self.needs_token:
            text = "A relay that has a token signs in no device: use the grant password, or "
            text += f"/{AUTHORIZE}, with the token."
            raise SignInError("invalid_client", text, number=7000218, status=401)
        claims = {
            "id": self._ids.new(),
            "start": self._start,
            "user": self._hinted(form),
            "scope": _scope(form),
        }
        code = self.tokens.seal(client, claims, kind="device_code", lifetime_s=DEVICE_LIFETIME_S)
        uri = f"{asked.authority}/{DEVICE_PAGE}"
        return json_response(
            {
                "device_code": code,
                "user_code": secrets.token_hex(4).upper(),
                "verification_uri": uri,
                "expires_in": DEVICE_LIFETIME_S,
                "interval": _POLL_INTERVAL_S,
                "message": f"{claims['user']} is signed in now; there is nothing to do.",
            },
            headers=dict(NO_STORE),
        )

    def _unsealed(
        self, text: str, name: str, client: RegisteredClient, *, ended: tuple[str, int]
    ) -> Mapping[str, Any]:
        """Return the claims of a refresh token or a code of this client. Raises SignInError."""
        try:
            claims = self.tokens.unseal(client, text, kind=name)
        except access_tokens.InvalidTokenError:
            claims, is_ended = None, True
        else:
            is_ended = claims is not None and claims.get("start", self._start) != self._start
        if is_ended:
            error, number = ended
            ahead = ahead_text(rfc3339(self.clock.time_us()), self.clock.advanced_s)
            raise SignInError(error, f"The provided {name} has expired{ahead}.", number=number)
        if claims is None:
            message = f"The provided value for the input parameter '{name}' is not valid, or was "
            message += f"issued to another client than {quoted(client.client_id)}."
            raise SignInError("invalid_grant", message, number=70000)
        return claims

    def _use_once(self, identifier: str, lifetime_s: int) -> None:
        """Record that a code is used. Raises SignInError for the second use, and at the limit."""
        now_s = self.clock.queue_us() / 1_000_000
        if identifier in self._used:
            text = "The code was already redeemed; expected a new one."
            raise SignInError("invalid_grant", text, number=54005)
        if len(self._used) >= _USED_MAX:
            self._used = {used: end_s for used, end_s in self._used.items() if end_s > now_s}
        if len(self._used) >= _USED_MAX:
            text = "Too many sign-ins of this kind in a short time. Try again later."
            headers = {"retry-after": str(round(min(self._used.values()) - now_s))}
            raise SignInError(
                "temporarily_unavailable", text, number=90033, status=503, headers=headers
            )
        self._used[identifier] = now_s + lifetime_s

    def _now_s(self) -> int:
        return self.clock.time_us() // 1_000_000


def _parameters(query: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Return the parameters of a URL; empty ones count as absent (RFC 6749 3.1)."""
    parameters = {name: value for name, value in query if value}
    for name in parameters:
        if sum(key == name for key, _ in query) > 1:
            text = f"The parameter {quoted(name)} occurs more than once."
            raise SignInError("invalid_request", text, number=900144)
    _bounded(parameters.get("state", ""), "state", _STATE_MAX)
    return parameters


def _check_authorization(query: Mapping[str, str], *, is_approved: bool) -> None:
    """Raise SignInError for invalid parameters of /authorize; the redirect reports it."""
    if not is_approved and query.get("prompt") == "none":
        text = "A person has to approve the sign-in, and prompt=none allows no page."
        raise SignInError("interaction_required", text, number=50058)
    if (kind := required(query, "response_type")) != "code":
        text = f"response_type: found {quoted(kind)}, expected 'code'."
        raise SignInError("unsupported_response_type", text, number=70003)
    if (mode := query.get("response_mode", "query")) not in MODES:
        text = f"response_mode: found {quoted(mode)}, expected one of {', '.join(MODES)}."
        raise SignInError("invalid_request", text, number=900144)
    _audience(_scope(query).split())
    _bounded(query.get("nonce", ""), "nonce", _NONCE_MAX)
    method = query.get("code_challenge_method", "plain")
    if method not in ("plain", "S256"):
        text = f"code_challenge_method: found {quoted(method)}, expected plain or S256."
        raise SignInError("invalid_request", text, number=501491)
    challenge = query.get("code_challenge", "")
    if (challenge or "code_challenge_method" in query) and not _PKCE.fullmatch(challenge):
        text = f"code_challenge: found {quoted(challenge)}, expected 43 to 128 characters of "
        raise SignInError("invalid_request", f"{text}RFC 7636.", number=501491)


def _challenge(query: Mapping[str, str]) -> str:
    """Return the code challenge in the form of S256, "" for none."""
    challenge = query.get("code_challenge", "")
    is_plain = query.get("code_challenge_method", "plain") == "plain"
    return _digest(challenge) if challenge and is_plain else challenge


def _check_verifier(verifier: str, challenge: str) -> None:
    """Raise SignInError if this is not the verifier of a challenge (RFC 7636 4.6)."""
    if not verifier and not challenge:
        return
    if not _PKCE.fullmatch(verifier) or not compare_digest(_digest(verifier), challenge):
        text = "The code_verifier does not match the code_challenge supplied in the authorization "
        raise SignInError("invalid_grant", f"{text}request.", number=501481)


def _scope(form: Mapping[str, str]) -> str:
    """Return the scope, "" for none. Raises SignInError if it is too long or not valid."""
    scope = _bounded(form.get("scope", ""), "scope", _SCOPE_MAX)
    if not _SCOPE.fullmatch(scope):
        text = f"The scope {quoted(scope)} is not valid: expected printable ASCII."
        raise SignInError("invalid_scope", text, number=70011)
    return scope


def _audience(scopes: list[str]) -> str:
    """Return the resource of scopes such as https://graph.microsoft.com/Mail.Send, "" for none."""
    resources = dict.fromkeys(
        scope.rpartition("/")[0].rstrip("/")
        for scope in scopes
        if scope not in access_tokens.OIDC_SCOPES
    )
    named = [resource for resource in resources if resource]
    if len(named) > 1:
        text = "The input parameter scope is not valid because it contains more than one resource: "
        raise SignInError("invalid_scope", text + ", ".join(map(quoted, named)), number=28000)
    return _bounded(named[0], "scope", TEXT_MAX) if named else ""


def _bounded(text: str, name: str, octets_max: int) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > octets_max:
        message = f"The parameter '{name}' has more than {octets_max} octets."
        raise SignInError("invalid_request", message, number=90002)
    return text


def _digest(text: str) -> str:
    return _base64url(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
