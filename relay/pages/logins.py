"""Who looks at the pages: the account of a login, or everyone in an open development relay.

Browsers log in with the address and the password or token of an account, and then have a cookie.

The cookie of a login is HttpOnly, SameSite=Strict and without a Domain, so that it belongs to one
host: a page of another name that resolves to this address (DNS rebinding) has no cookie. Over HTTPS
it is Secure and has the prefix __Host- (RFC 6265bis 4.1.3). Its path is "/", because a proxy may
serve the relay under a path that the relay does not know.
"""

import hashlib

from msgspec import Struct
from starlette.responses import Response

from relay.accounts.account import Account, AccountDirectory, LoginDelayedError
from relay.api.dependencies import Principal, principal_of
from relay.base.clock import Clock
from relay.http.http_request import HttpRequest
from relay.observe.logs import get_logger
from relay.pages.sessions import Session, Sessions, new_secret

_SECURE_PREFIX = "__Host-"
_FORM = "-login"  # ends the name of the cookie of the login form
_COOKIES_LENGTH_MAX = 16 * 1024
_USER_LENGTH_MAX = 320
_LOGGED_MAX = 128
_log = get_logger("pages")


class Visitor(Struct, frozen=True):
    """Who looks at a page. `csrf` is the token that each change of this visitor contains."""

    principal: Principal
    csrf: str
    may_log_out: bool = False


class Logins:
    """Checks logins, and finds the session of a request."""

    def __init__(
        self,
        accounts: AccountDirectory,
        clock: Clock,
        *,
        relay: str,
        public_url: str = "",
    ) -> None:
        """`clock` has the real time.

        `relay` goes into the name of the cookie, so that relays of one host name have one each.
        `public_url` is that of the configuration.
        """
        self._accounts = accounts
        self._sessions = Sessions(accounts, clock)
        self._is_public_secure = public_url.lower().startswith("https:")
        self._name = f"relay-{hashlib.sha256(relay.encode()).hexdigest()[:10]}"

    def session(self, request: HttpRequest, *, is_use: bool = True) -> Session | None:
        """Return the session of a request, None without one. `is_use` prolongs it."""
        identifier = self._cookie(request)
        return self._sessions.find(identifier, is_use=is_use) if identifier else None

    async def account_of(self, request: HttpRequest, user: str, secret: str) -> Account | None:
        """Return the account of an address and its password or token; None if they are wrong.

        The address of an account's token may be left out. An unknown account takes as much time as
        a wrong password. Raises LoginDelayedError.
        """
        user = user.strip()[:_USER_LENGTH_MAX]
        shown, address = _client(request), request.counted_address
        try:
            of_token = self._accounts.by_token(secret, client=address) if secret else None
            if of_token is not None and _is_named(user, of_token):
                return of_token
            account = await self._accounts.by_password(user, secret, client=address)
        except LoginDelayedError as error:
            if error.__cause__ is not None:
                _log.error("password not checked", client=shown, error=error.__cause__)
            raise
        if account is None:
            _log.info("login rejected", client=shown, user=user[:_LOGGED_MAX])
        return account

    def log_in(self, request: HttpRequest, account: Account, response: Response) -> None:
        """Begin a session with a new identifier; an earlier one of this browser ends."""
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
        """Set a cookie, that of the session or `of` the form, until the browser is closed; ""
        deletes it.
        """
        response.set_cookie(
            self._cookie_name(request, of), value, max_age=None if value else 0, path="/",
            secure=self._is_secure(request), httponly=True, samesite="strict",
        )  # fmt: skip

    def _cookie(self, request: HttpRequest, *, of: str = "") -> str:
        """Return the value of a cookie, "" for none."""
        name = self._cookie_name(request, of)
        for field in request.headers.getlist("cookie"):
            for pair in field[:_COOKIES_LENGTH_MAX].split(";"):
                given, _, value = pair.strip().partition("=")
                if given == name:
                    return value.strip()
        return ""


class Access:
    """Finds the visitor of a request."""

    def __init__(self, *, everyone: Principal | None = None, logins: Logins | None = None) -> None:
        """`everyone` is who all visitors are; None if they have to log in, by `logins`."""
        self._open = Visitor(everyone, csrf=new_secret()) if everyone else None
        self.logins = None if everyone else logins

    def visitor(self, request: HttpRequest) -> Visitor | None:
        """Return the visitor, None if they have to log in."""
        is_use = not _is_by_script(request)
        session = self.logins.session(request, is_use=is_use) if self.logins else None
        if session is None:
            return self._open
        return Visitor(principal_of(session.account), csrf=session.csrf, may_log_out=True)

    def is_current(self, request: HttpRequest) -> bool:
        """Return whether a request that still runs may go on: its login has not ended since.

        It is not a use of the login: a page that is left open does not prolong it.
        """
        if self._open is not None:
            return True
        return bool(self.logins and self.logins.session(request, is_use=False))


def _is_by_script(request: HttpRequest) -> bool:
    """Return whether a page that is left open may have made a request by itself."""
    headers = request.headers
    is_update = "hx-request" in headers and "hx-boosted" not in headers
    return is_update or "text/event-stream" in headers.get("accept", "")


def _client(request: HttpRequest) -> str:
    """Return the address of the visitor, or of a proxy that does not name it."""
    return request.counted_address or request.client_address


def _is_named(user: str, account: Account) -> bool:
    """Return whether a login names the account of its token: "", an address or its local part."""
    return not user or user.lower() == account.address.partition("@")[0] or account.owns(user)
