"""The visitor of a page: the account of a login, or everyone in an open development relay.

Browsers log in with the address and the password or token of an account, and then have a cookie.

The cookie of a login is HttpOnly, SameSite=Strict and without a Domain. It belongs to one host, so
a page whose other name resolves to this address (DNS rebinding) does not get it. Over HTTPS it is
Secure and has the prefix __Host- (RFC 6265bis 4.1.3). Its path is "/", because a proxy may serve
the relay under a path that the relay does not know.

Sessions are in memory, bounded, and ended by time or by a changed account. A session is found by
the SHA-256 of its identifier, so that no identifier is stored. All end with the process (OWASP
Session Management Cheat Sheet; RFC 6265 8.4).

Any site can make a browser send a form to any address. The CSRF token in a form shows that it comes
from a page of this relay (OWASP Cross-Site Request Forgery Prevention Cheat Sheet).
"""

import asyncio
import hashlib
import re
import secrets
from dataclasses import dataclass
from functools import partial
from hmac import compare_digest
from urllib.parse import parse_qsl

from msgspec import Struct
from starlette.responses import Response

from relay.base.accounts.account import Account, AccountDirectory, LoginDelayedError
from relay.base.bounded_dict import BoundedDict
from relay.base.clock import Clock
from relay.base.message.address import lower_case
from relay.base.observe.logs import get_logger
from relay.front_door.api.dependencies import Principal, principal_of
from relay.front_door.http.errors import ApiError, bad_request, unsupported_media_type
from relay.front_door.http.http_request import HttpRequest

IDLE_S = 30 * 60.0
LIFETIME_S = 12 * 3600.0
SESSIONS_MAX = 2000
SESSIONS_OF_ACCOUNT_MAX = 20
_SECRET_BYTES = 32
_IDENTIFIER_LENGTH_MAX = 64
_URLENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
# Browsers write a quote in a name as %22.
_PART_FIELD = re.compile(r'\b(name|filename|Content-Type)(?:="|: )([^"\r\n]*+)')
_FIELDS_MAX = 2000
FILES_MAX = 20
_PARTS_MAX = FILES_MAX + 10  # with the other fields
_CSRF_FIELD = "csrf"
_CSRF_HEADER = "x-csrf-token"
STALE_FORM = (
    "This form is from an earlier login, or from another site. Nothing was changed. Go back, load "
    "the page again, and repeat it."
)
_SECURE_PREFIX = "__Host-"
_FORM = "-login"  # ends the name of the cookie of the login form
_COOKIES_LENGTH_MAX = 16 * 1024
_USER_LENGTH_MAX = 320
_LOGGED_MAX = 128
_log = get_logger("pages")


class PageForm(Struct, frozen=True):
    """The fields of a form. A field may occur several times, such as the boxes of a list.

    `files` have name, media type and content, as their browser says.
    """

    fields: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str, bytes], ...] = ()

    def text(self, name: str) -> str:
        """Return the value of a field, "" if it is absent."""
        return next((value for field_name, value in self.fields if field_name == name), "")

    def every(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for field_name, value in self.fields if field_name == name]


async def read_form(request: HttpRequest, csrf: str, *, has_files: bool = False) -> PageForm:
    """Read the form of a POST. `csrf` is the expected CSRF token, "" for a visitor without one.

    The token is in the field `csrf` or in X-CSRF-Token. Raises ApiError 403 for a wrong or missing
    token, 415 for another media type, 400, and what HttpRequest.body() raises.
    """
    if has_files and request.media_type == _MULTIPART:
        body = await request.body()
        form = await asyncio.to_thread(_multipart, request.headers["content-type"], body)
    else:
        form = _urlencoded(request, await request.body())
    token = request.headers.get(_CSRF_HEADER) or form.text(_CSRF_FIELD)
    if not is_csrf_token(token, csrf):
        raise ApiError(403, "ErrorAccessDenied", STALE_FORM)
    return form


def _urlencoded(request: HttpRequest, body: bytes) -> PageForm:
    if body and request.media_type != _URLENCODED:
        raise unsupported_media_type(request.media_type, _URLENCODED)
    try:
        fields = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            max_num_fields=_FIELDS_MAX,
            errors="strict",
        )
    except ValueError:
        message = f"The form is not percent-encoded UTF-8, or has more than {_FIELDS_MAX} fields."
        raise bad_request(message) from None
    return PageForm(tuple(fields))


def _multipart(content_type: str, body: bytes) -> PageForm:
    """Read a form with files (RFC 7578). Raises ApiError 400."""
    line = b"\r\n--" + content_type.partition("boundary=")[2].strip('"').encode("latin-1")
    pieces = (b"\r\n" + body).split(line, _PARTS_MAX + 1)
    fields, files = [], []
    if pieces[-1][:2] != b"--":
        raise bad_request(f"Found a form without its end, or with more than {FILES_MAX} files.")
    for part in pieces[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        about = dict(_PART_FIELD.findall(head.decode("utf-8", "replace")))
        if (name := about.get("filename")) is None:
            fields.append((about.get("name", ""), content.decode("utf-8", "replace")))
        elif name or content:
            files.append((name.replace("%22", '"'), about.get("Content-Type", ""), content))
    return PageForm(tuple(fields), tuple(files))


def is_csrf_token(token: str, expected: str) -> bool:
    """Return whether a CSRF token is the expected one, in constant time; "" is none."""
    return bool(expected) and compare_digest(
        token.encode("utf-8", "surrogatepass"), expected.encode()
    )


@dataclass(slots=True)
class Session:
    """One login. `account` is the account at that time, `csrf` the token of the session's forms."""

    account: Account
    csrf: str
    begun_s: float
    used_s: float

    def has_ended(self, now: float) -> bool:
        """Return whether the session has expired."""
        return now - self.used_s >= IDLE_S or now - self.begun_s >= LIFETIME_S


class Sessions:
    """The sessions of one process."""

    def __init__(self, accounts: AccountDirectory, clock: Clock) -> None:
        """`clock` is a real clock: an advance by days would end all logins."""
        self._accounts = accounts
        self._clock = clock
        # the most recently used is the last
        self._sessions = BoundedDict[bytes, Session](SESSIONS_MAX)

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, account: Account) -> str:
        """Begin a session and return its identifier.

        At a limit, the least recently used session ends.
        """
        now = self._clock.monotonic()
        self._remove_ended(now)
        own = [
            key
            for key, session in self._sessions.items()
            if session.account.address == account.address
        ]
        for key in own[: max(0, len(own) - SESSIONS_OF_ACCOUNT_MAX + 1)]:
            del self._sessions[key]
        identifier = new_secret()
        session = Session(account, csrf=new_secret(), begun_s=now, used_s=now)
        self._sessions[_key_of(identifier)] = session
        return identifier

    def find(self, identifier: str, *, is_use: bool = True) -> Session | None:
        """Return the session of an identifier, with its account as it is now; None if it has ended.

        A session ends when its account is removed, or its role, password or token changes. `is_use`
        prolongs the session.
        """
        key = _key_of(identifier)
        session = self._sessions.get(key)
        if session is None:
            return None
        now = self._clock.monotonic()
        account = self._accounts.by_address(session.account.address)
        if session.has_ended(now) or account is None or not _is_same(session.account, account):
            del self._sessions[key]
            return None
        session.account = account
        if is_use:
            session.used_s = now
            self._sessions.move_to_end(key)
        return session

    def end(self, identifier: str) -> None:
        """End the session of an identifier, if there is one."""
        self._sessions.pop(_key_of(identifier), None)

    def _remove_ended(self, now: float) -> None:
        ended = [key for key, session in self._sessions.items() if session.has_ended(now)]
        for key in ended:
            del self._sessions[key]


def new_secret() -> str:
    """Return 256 random bits as text for a cookie or a form."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def _key_of(identifier: str) -> bytes:
    """Return the digest of an identifier; a longer text is cut to a length that none has."""
    text = identifier[: _IDENTIFIER_LENGTH_MAX + 1]
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _is_same(before: Account, now: Account) -> bool:
    return (before.address, before.role, before.credentials) == (
        now.address,
        now.role,
        now.credentials,
    )


class Visitor(Struct, frozen=True):
    """The visitor of a page. `csrf` is the token that each form of this visitor contains."""

    principal: Principal
    csrf: str
    may_log_out: bool = False


@dataclass(eq=False, repr=False)
class Logins:
    """Checks logins, and finds the session of a request."""

    accounts: AccountDirectory
    clock: Clock  # has the real time
    relay: str  # in the cookie's name: relays with the same host name do not share a cookie
    public_url: str = ""  # the configured one

    def __post_init__(self) -> None:
        self._sessions = Sessions(self.accounts, self.clock)
        self._is_public_secure = self.public_url.lower().startswith("https:")
        self._name = f"relay-{hashlib.sha256(self.relay.encode()).hexdigest()[:10]}"

    def session(self, request: HttpRequest, *, is_use: bool = True) -> Session | None:
        """Return the session of a request, None without one. `is_use` prolongs it."""
        identifier = self._cookie(request)
        return self._sessions.find(identifier, is_use=is_use) if identifier else None

    async def account_of(self, request: HttpRequest, user: str, secret: str) -> Account | None:
        """Return the account of an address and its password or token; None if they are wrong.

        With a token, the address may be empty. An unknown account takes as much time as a wrong
        password. Raises LoginDelayedError.
        """
        user = user.strip()[:_USER_LENGTH_MAX]
        client, address = _client(request), request.counted_address
        try:
            of_token = self.accounts.by_token(secret, client=address) if secret else None
            if of_token is not None and _is_named(user, of_token):
                return of_token
            account = await self.accounts.by_password(user, secret, client=address)
        except LoginDelayedError as error:
            if error.__cause__ is not None:
                cause = error.__cause__
                _log.repeated("error", "password not checked", client=client, error=cause)
            raise
        if account is None:
            _log.info("login rejected", client=client, user=user[:_LOGGED_MAX])
        return account

    def log_in(self, request: HttpRequest, account: Account, response: Response) -> None:
        """Begin a session with a new identifier; an earlier session of this browser ends."""
        self._sessions.end(self._cookie(request))
        self._set_cookie(request, response, self._sessions.begin(account))
        self._set_cookie(request, response, "", of=_FORM)
        _log.info("logged in", client=_client(request), account=account.address)

    def log_out(self, request: HttpRequest, response: Response) -> None:
        """End the session of a request."""
        self._sessions.end(self._cookie(request))
        self._set_cookie(request, response, "")

    def form_token(self, request: HttpRequest) -> str:
        """Return the CSRF token of the login form, from its cookie; "" without one."""
        return self._cookie(request, of=_FORM)

    def keep_form_token(self, request: HttpRequest, response: Response, token: str) -> None:
        """Set the cookie of the login form, so that a form of another site has no valid token."""
        self._set_cookie(request, response, token, of=_FORM)

    def _is_secure(self, request: HttpRequest) -> bool:
        return request.is_secure or self._is_public_secure

    def _cookie_name(self, request: HttpRequest, of: str) -> str:
        return f"{_SECURE_PREFIX if self._is_secure(request) else ''}{self._name}{of}"

    def _set_cookie(
        self, request: HttpRequest, response: Response, value: str, *, of: str = ""
    ) -> None:
        """Set the cookie of the session or `of` the form, until the browser is closed; "" deletes
        it.
        """
        response.set_cookie(
            self._cookie_name(request, of),
            value,
            max_age=None if value else 0,
            path="/",
            secure=self._is_secure(request),
            httponly=True,
            samesite="strict",
        )

    def _cookie(self, request: HttpRequest, *, of: str = "") -> str:
        """Return the value of a cookie, "" for none."""
        name = self._cookie_name(request, of)
        for field in request.headers.getlist("cookie"):
            for pair in field[:_COOKIES_LENGTH_MAX].split(";"):
                key, _, value = pair.strip().partition("=")
                if key == name:
                    return value.strip()
        return ""


class Access:
    """Finds the visitor of a request."""

    def __init__(self, *, everyone: Principal | None = None, logins: Logins | None = None) -> None:
        """`everyone` is the visitor for all requests; None if visitors log in by `logins`."""
        self._open = Visitor(everyone, csrf=new_secret()) if everyone else None
        self.logins = None if everyone else logins

    def visitor(self, request: HttpRequest) -> Visitor | None:
        """Return the visitor, None if a login is needed."""
        is_use = not _is_by_script(request)
        session = self.logins.session(request, is_use=is_use) if self.logins else None
        if session is None:
            return self._open
        request.rights = partial(self._check_rights, principal := principal_of(session.account))
        return Visitor(principal, csrf=session.csrf, may_log_out=True)

    def _check_rights(self, before: Principal, request: HttpRequest) -> None:
        """Raise ApiError 401 if the login has ended, or its account has another role.

        This does not prolong the login, so a page that is left open does not either.
        """
        session = self.logins.session(request, is_use=False) if self.logins else None
        if session is None or principal_of(session.account) != before:
            raise ApiError(401, "", "The login has ended.")


def _is_by_script(request: HttpRequest) -> bool:
    """Return whether a script may have made the request in a page that was left open."""
    headers = request.headers
    is_update = "hx-request" in headers and "hx-boosted" not in headers
    return is_update or "text/event-stream" in headers.get("accept", "")


def _client(request: HttpRequest) -> str:
    """Return the address of the visitor; of the proxy if it forwards none."""
    return request.counted_address or request.client_address


def _is_named(user: str, account: Account) -> bool:
    """Return whether a login's name fits the account of its token: "", an address or the local
    part.
    """
    return not user or lower_case(user) == account.address.partition("@")[0] or account.owns(user)
