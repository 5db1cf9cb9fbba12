"""Handlers that only a development relay has: /relay/v1/dev/… and DELETE /relay/v1/messages.

In a service they are 404, as any unknown path. Every account may use them: a development relay has
no secrets, and with --token only the operator has an account. Requests of pages of other sites
are refused, also with a token.
"""

from starlette.responses import Response

from relay.api.dependencies import DevelopmentControls, Principal
from relay.http.http_request import HttpRequest


async def development_response(
    _request: HttpRequest, _controls: DevelopmentControls, _principal: Principal
) -> Response | None:
    """Return the response of a development relay, None for a path that it does not add."""
    return None
