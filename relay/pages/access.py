"""Who looks at the pages: the account of a login, or everyone in an open development relay."""

from msgspec import Struct

from relay.api.dependencies import Principal, principal_of
from relay.http.http_request import HttpRequest
from relay.pages.logins import Logins
from relay.pages.sessions import new_secret


class Visitor(Struct, frozen=True):
    """Who looks at a page. `csrf` is the token that each change of this visitor contains."""

    principal: Principal
    csrf: str
    may_log_out: bool = False


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
