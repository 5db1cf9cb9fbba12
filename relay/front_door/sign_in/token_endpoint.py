"""Sign-in of applications: the OAuth 2.0 client credentials grant, at the paths of Entra.

The first segment of a path is a tenant, which may be any text. URLs in the responses have the host
that the client asked, or http.public_url. A client has a secret. Errors are as in RFC 6749 5.2,
with Entra's numbers. A UserSignIn, which only a development relay has, adds other grants.
"""

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, quote, unquote, unquote_plus, urlsplit

from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import AccountDirectory, LoginDelayedError, RegisteredClient
from relay.base.clock import Clock, Ids, rfc3339
from relay.base.observe.logs import get_logger
from relay.front_door.http.connection_limits import REQUESTS_MAX
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.http.responses import json_response
from relay.front_door.sign_in.access_tokens import LIFETIME_S, AccessTokens, TokenKeyError

_TOKEN = "oauth2/v2.0/token"  # noqa: S105 - a path
AUTHORIZE = "oauth2/v2.0/authorize"
DEVICE_CODE = "oauth2/v2.0/devicecode"
_KEYS = "discovery/v2.0/keys"
_CONFIGURATION = ".well-known/openid-configuration"
_CONFIGURATION_V2 = f"v2.0/{_CONFIGURATION}"
_INSTANCE = "discovery/instance"
SIGN_IN_PATHS = (  # after the tenant
    _TOKEN,
    AUTHORIZE,
    DEVICE_CODE,
    _KEYS,
    _CONFIGURATION,
    _CONFIGURATION_V2,
    _INSTANCE,
)

BODY_BYTES_MAX = 16 * 1024
# enough for all requests: slow clients cannot use it up
_HELD_BYTES_MAX = REQUESTS_MAX * BODY_BYTES_MAX
_FIELDS_MAX = 64
TEXT_MAX = 1024  # octets of tenant and of scope: the token, which has a limit too, repeats them
_LOGGED_MAX = 128  # characters of a client id
_FORM = "application/x-www-form-urlencoded"
# The hosts of Graph in Microsoft's clouds, by their sign-in hosts.
_GRAPH_HOSTS = {
    "login.microsoftonline.com": "graph.microsoft.com",
    "login.windows.net": "graph.microsoft.com",
    "login.microsoft.com": "graph.microsoft.com",
    "sts.windows.net": "graph.microsoft.com",
    "login.microsoftonline.us": "graph.microsoft.us",
    "login.partner.microsoftonline.cn": "microsoftgraph.chinacloudapi.cn",
    "login.chinacloudapi.cn": "microsoftgraph.chinacloudapi.cn",
}
_GRANT = "client_credentials"
METHODS = ("client_secret_post", "client_secret_basic")
_ALL_OF_CLIENT = ".default"
_BASIC = {"www-authenticate": 'Basic realm="token"'}
NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}  # RFC 6749 5.1

_log = get_logger("sign_in")


@dataclass(eq=False)
class SignInError(Exception):
    """An error response of the token endpoint; `number` is Entra's error number, 0 for none."""

    error: str
    text: str
    _: KW_ONLY
    number: int = 0
    status: int = 400
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


class SignInRequest(Struct, frozen=True):
    """A request for one of the paths: its tenant, the rest of its path in lower case, and the URL
    before the tenant.
    """

    http: HttpRequest
    tenant: str
    path: str
    base_url: str

    @property
    def authority(self) -> str:
        """The URL with the tenant."""
        return f"{self.base_url}/{quote(self.tenant, safe='')}"

    @property
    def issuer(self) -> str:
        """The claim `iss` of tokens."""
        return f"{self.authority}/v2.0"


class UserSignIn(Protocol):
    """Grants by which users sign in. With them, any client_assertion counts as the client's
    secret.
    """

    paths: ClassVar[Sequence[str]]  # after the tenant, in addition to SIGN_IN_PATHS
    # tenants whose paths all belong to it, except the others here
    prefixes: ClassVar[Sequence[str]]
    pages: ClassVar[Sequence[str]]  # paths that a person opens in a browser, also from another site
    grants: Sequence[str]  # grant types
    discovery: Mapping[str, Any]  # their entries in the discovery document

    async def respond(self, asked: SignInRequest) -> Response | None:
        """Return the response for one of its paths, None for any other path. Raises as grant()."""

    async def grant(
        self, asked: SignInRequest, form: Mapping[str, str], client: RegisteredClient | None
    ) -> Response:
        """Return the response of the token endpoint; `client` has authenticated with a secret; None
        without a secret. Raises SignInError, ApiError.
        """


class _Credentials(Struct, frozen=True):
    """Client id and secret of a request."""

    client_id: str
    secret: str
    is_basic: bool = False  # they are in its Authorization field


def create_sign_in_app(
    accounts: AccountDirectory,
    tokens: AccessTokens,
    *,
    clock: Clock,
    hostname: str,
    public_url: str = "",
    users: UserSignIn | None = None,
) -> Gateway:
    """Return the application for SIGN_IN_PATHS, and for the paths of `users`."""
    base = (public_url, hostname)
    endpoints = _Endpoints(accounts, tokens, clock=clock, base=base, users=users)

    async def handle(request: HttpRequest) -> Response:
        try:
            return await endpoints.respond(request)
        except (SignInError, LoginDelayedError, ApiError) as error:
            return _error_response(_oauth_error(error), request, time_us=clock.time_us())

    limits = RequestLimits(
        body_bytes=BODY_BYTES_MAX, held_bytes=_HELD_BYTES_MAX, bound="sign-in bodies"
    )
    return Gateway(handle, clock=clock, limits=limits)


@dataclass(eq=False, repr=False)
class _Endpoints:
    """The responses for each of SIGN_IN_PATHS."""

    accounts: AccountDirectory
    tokens: AccessTokens
    clock: Clock
    base: tuple[str, str]  # the public URL, and the host name without one
    users: UserSignIn | None

    def __post_init__(self) -> None:
        self._ids = Ids(self.clock)
        self._documents: Mapping[str, Callable[[SignInRequest], dict[str, Any]]] = {
            _CONFIGURATION: self._configuration,
            _CONFIGURATION_V2: self._configuration,
            _INSTANCE: self._instance,
            _KEYS: lambda _asked: self.tokens.public_keys(),
        }

    async def respond(self, request: HttpRequest) -> Response:
        """Return the response for a path. Raises what _oauth_error() takes."""
        tenant, path = request.segments[0], "/".join(request.segments[1:]).lower()
        if len(tenant.encode()) > TEXT_MAX:
            raise SignInError("invalid_request", "The tenant's name is too long.", number=90002)
        asked = SignInRequest(request, tenant, path, request.base_url(*self.base))
        if (document := self._documents.get(path)) is not None:
            require_method(request, "GET")
            return json_response(document(asked))
        if self.users is not None and (response := await self.users.respond(asked)) is not None:
            return response
        if path not in SIGN_IN_PATHS:
            raise SignInError("invalid_request", "There is no endpoint of this path.", status=404)
        if path != _TOKEN:
            text = f"Users cannot sign in here; the only grant is {_GRANT}, at {_TOKEN}."
            kind = "unsupported_grant_type" if path == DEVICE_CODE else "unsupported_response_type"
            raise SignInError(kind, text, number=70003)
        require_method(request, "POST")
        return await self._token(asked)

    def _configuration(self, asked: SignInRequest) -> dict[str, Any]:
        """Return OpenID Connect's discovery document. The issuer is the URL before /.well-known,
        which clients compare with their authority.
        """
        authority, host = asked.authority, host_of(asked.base_url)
        return {
            "issuer": asked.issuer if asked.path == _CONFIGURATION_V2 else authority,
            "authorization_endpoint": f"{authority}/{AUTHORIZE}",
            "token_endpoint": f"{authority}/{_TOKEN}",
            "device_authorization_endpoint": f"{authority}/{DEVICE_CODE}",
            "jwks_uri": f"{authority}/{_KEYS}",
            "token_endpoint_auth_methods_supported": list(METHODS),
            "grant_types_supported": [_GRANT],
            "response_types_supported": ["token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "scopes_supported": [_ALL_OF_CLIENT],
            "cloud_instance_name": host,
            "msgraph_host": _graph_host(host),
            **(self.users.discovery if self.users is not None else {}),
        }

    def _instance(self, asked: SignInRequest) -> dict[str, Any]:
        """Return the document that MSAL reads before it uses a host as an authority."""
        base, host = asked.base_url, host_of(asked.base_url)
        try:
            url = urlsplit(dict(asked.http.query).get("authorization_endpoint", ""))
        except ValueError:
            text = "The parameter authorization_endpoint is not a valid URL."
            raise SignInError("invalid_instance", text, number=50049) from None
        tenant = unquote(url.path.strip("/").partition("/")[0]) or "common"
        return {
            "tenant_discovery_endpoint": f"{base}/{quote(tenant, safe='')}/{_CONFIGURATION_V2}",
            "api-version": "1.1",
            "metadata": [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}],
        }

    async def _token(self, asked: SignInRequest) -> Response:
        request = asked.http
        form = await read_form(request)
        grant = required(form, "grant_type")
        if self.users is not None:
            form = _with_secret(form)
            if grant in self.users.grants:
                has_secret = "client_secret" in form or "authorization" in request.headers
                sent = _credentials(request, form) if has_secret else None
                client = await self._signed_in(request, sent) if sent else None
                return await self.users.grant(asked, form, client)
        if grant != _GRANT:
            text = f"The app requested an unsupported grant type {quoted(grant)}; use "
            text += ", ".join((_GRANT, *(self.users.grants if self.users is not None else ())))
            raise SignInError("unsupported_grant_type", f"{text}.", number=70003)
        credentials = _credentials(request, form)
        audience = _audience(form.get("scope", ""))
        client = await self._signed_in(request, credentials)
        token = self.tokens.issue(
            client,
            issuer=asked.issuer,
            tenant=asked.tenant,
            audience=audience or asked.base_url,
            token_id=self._ids.new(),
        )
        return token_response({"access_token": token})

    async def _signed_in(self, request: HttpRequest, credentials: _Credentials) -> RegisteredClient:
        """Return the client. An unknown client and a wrong secret get the same response.

        Raises SignInError, LoginDelayedError.
        """
        address = request.counted_address
        client_id = credentials.client_id
        try:
            client = await self.accounts.by_client_secret(
                client_id, credentials.secret, client=address
            )
        except LoginDelayedError as error:
            if error.__cause__ is not None:
                peer = address or request.client_address
                _log.repeated("error", "secret not checked", client=peer, error=error.__cause__)
            raise
        if client is None:
            peer = address or request.client_address
            _log.info("sign-in rejected", client=peer, client_id=client_id[:_LOGGED_MAX])
            text = "Invalid client secret provided for the app "
            text += f"{quoted(client_id)}, or the app is not known here."
            headers = _BASIC if credentials.is_basic else {}
            raise SignInError("invalid_client", text, number=7000215, status=401, headers=headers)
        return client


def _oauth_error(error: SignInError | LoginDelayedError | ApiError) -> SignInError:
    """Return the error of OAuth that a client gets for an error."""
    later = "temporarily_unavailable"
    if isinstance(error, SignInError):
        return error
    if isinstance(error, ApiError):  # of the body
        kind = "invalid_request" if error.status < 500 else later
        return SignInError(kind, error.message, status=error.status, headers=error.headers)
    headers = {"retry-after": str(max(1, round(error.retry_after_s)))}
    number, status = (90033, 503) if isinstance(error, TokenKeyError) else (90055, 429)
    text = f"{error}. Try again later."
    return SignInError(later, text, number=number, status=status, headers=headers)


def token_response(fields: Mapping[str, Any]) -> Response:
    """Return the response with tokens (RFC 6749 5.1)."""
    expires_in = LIFETIME_S - 1  # a client that counts from its receipt is never late
    times = {"expires_in": expires_in, "ext_expires_in": expires_in}
    return json_response({"token_type": "Bearer", **times, **fields}, headers=dict(NO_STORE))


def _with_secret(form: Mapping[str, str]) -> Mapping[str, str]:
    """Return the form with a client_assertion as the secret, where any secret will do."""
    if "client_assertion" not in form or "client_secret" in form:
        return form
    others = {name: value for name, value in form.items() if name != "client_assertion"}
    return {**others, "client_secret": form["client_assertion"]}


def host_of(base_url: str) -> str:
    """Return host and port of a URL from a client; the host may be invalid."""
    return base_url.partition("://")[2].partition("/")[0]


def _graph_host(host: str) -> str:
    """Return the host that serves Graph for a client that signs in at `host`.

    It is the same host; for a sign-in host of Microsoft, the host of Graph in the same cloud.
    """
    name, colon, port = host.partition(":")
    return _GRAPH_HOSTS.get(name.lower(), name) + colon + port


def graph_url(base_url: str) -> str:
    """Return the URL of Graph, the resource of scopes that name none, such as Mail.Read."""
    name = host_of(base_url).partition(":")[0].lower()
    return f"https://{_GRAPH_HOSTS.get(name, 'graph.microsoft.com')}"


def require_method(request: HttpRequest, method: str) -> None:
    """Raise SignInError 405 for another method."""
    if request.method != method:
        text = f"The endpoint only accepts {method} requests. Received a {request.method} request."
        headers = {"allow": method}
        raise SignInError("invalid_request", text, number=900561, status=405, headers=headers)


async def read_form(request: HttpRequest) -> Mapping[str, str]:
    """Return the parameters in the body; empty ones count as absent (RFC 6749 3.2).

    Raises SignInError, ApiError.
    """
    kind = request.media_type
    if kind != _FORM:
        text = f"Content-Type: found {quoted(kind)}, expected {_FORM}."
        raise SignInError("invalid_request", text, number=900144)
    try:
        pairs = parse_qsl(
            (await request.body()).decode(), max_num_fields=_FIELDS_MAX, errors="strict"
        )
    except ValueError:
        text = f"The body is not UTF-8, or has more than {_FIELDS_MAX} parameters."
        raise SignInError("invalid_request", text, number=900144) from None
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        text = f"The parameter {quoted(repeated[0])} occurs more than once."
        raise SignInError("invalid_request", text, number=900144)
    return dict(pairs)


def required(form: Mapping[str, str], name: str) -> str:
    """Return a parameter. Raises SignInError if it is missing."""
    if name not in form:
        text = f"The request body must contain the following parameter: '{name}'."
        raise SignInError("invalid_request", text, number=900144)
    return form[name]


def _credentials(request: HttpRequest, form: Mapping[str, str]) -> _Credentials:
    """Return the client's credentials from the body, or from HTTP Basic (RFC 6749 2.3.1)."""
    if (authorization := request.headers.get("authorization")) is not None:
        return _basic_credentials(authorization, form)
    client_id = required(form, "client_id")
    secret = form.get("client_secret", "")
    if not secret:
        text = "The request body must contain the parameter 'client_secret'."
        if "client_assertion" in form:
            text = "Assertions of certificates and keys are not taken here: sign in with a"
            text += " client_secret (relay account token ADDRESS --client makes one)."
        raise SignInError("invalid_client", text, number=7000218, status=401)
    return _Credentials(client_id, secret)


def _basic_credentials(field: str, form: Mapping[str, str]) -> _Credentials:
    scheme, _, encoded = field.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError  # noqa: TRY301 - the response is the same
        text = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        message = "Authorization: expected Basic and client id and secret in base64."
        raise SignInError(
            "invalid_client", message, number=7000218, status=401, headers=_BASIC
        ) from None
    client_id, _, secret = map(unquote_plus, text.partition(":"))
    in_body = "client_secret" in form or "client_assertion" in form
    if in_body or form.get("client_id", client_id) != client_id:
        message = "The client's credentials are in the Authorization field and in the body."
        raise SignInError("invalid_request", message, number=900144)
    return _Credentials(client_id, secret, is_basic=True)


def _audience(scope: str) -> str:
    """Return the resource of a scope such as https://graph.microsoft.com/.default, "" for none."""
    if len(scope.encode()) > TEXT_MAX:
        raise SignInError("invalid_scope", "The scope is too long.", number=70011)
    for name in scope.split():
        if name == _ALL_OF_CLIENT or name.endswith(f"/{_ALL_OF_CLIENT}"):
            return name.removesuffix(_ALL_OF_CLIENT).removesuffix("/")
    if scope:
        text = f"The scope {quoted(scope)} is not valid. Client credential flows must have a scope "
        text += "value with /.default suffixed to the resource identifier. The permissions are "
        text += "those of the account."
        raise SignInError("invalid_scope", text, number=1002012)
    return ""


def _error_response(error: SignInError, request: HttpRequest, *, time_us: int) -> Response:
    timestamp = rfc3339(time_us)[:19].replace("T", " ") + "Z"
    ids = request.ids
    prefix = f"AADSTS{error.number}: " if error.number else ""
    body = {
        "error": error.error,
        # azure-identity shows only the description, so it names the error
        "error_description": (
            f"{prefix}{error.text} Error: {error.error}. Trace ID: {ids.request_id} "
            f"Correlation ID: {ids.client_request_id} Timestamp: {timestamp}"
        ),
        "error_codes": [error.number] if error.number else [],
        "timestamp": timestamp,
        "trace_id": ids.request_id,
        "correlation_id": ids.client_request_id,
    }
    return json_response(body, status=error.status, headers={**NO_STORE, **error.headers})
