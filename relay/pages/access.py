"""Who looks at the pages: the visitor of a request."""

import secrets
from dataclasses import dataclass

from relay.api.dependencies import Principal
from relay.http.http_request import HttpRequest


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a page. `csrf` is the token that each change of this visitor contains."""

    principal: Principal
    csrf: str
    may_log_out: bool = False


class Access:
    """Finds the visitor of a request."""

    def __init__(self, *, everyone: Principal | None = None) -> None:
        """`everyone` is who all visitors are; None if they have to log in."""
        self._open = Visitor(everyone, csrf=secrets.token_urlsafe(32)) if everyone else None

    def visitor(self, _request: HttpRequest) -> Visitor | None:
        """Return the visitor, None if they have to log in."""
        return self._open
