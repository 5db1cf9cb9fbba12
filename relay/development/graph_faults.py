"""Faults of the Graph API that a scenario asks for, in front of the application; for `relay dev`.

All but 504 are answered before the application sees the request. For 504 it handles the request,
and a success is replaced: the client cannot know that the message is sent. A $batch is one request.
RFC 9110 10.2.3 (Retry-After), RFC 6750 3 (WWW-Authenticate).
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay.base.clock import Clock
from relay.base.turns import Turns
from relay.development.internet.scenario import GraphFault
from relay.development.internet.scenario_state import ScenarioState
from relay.front_door.graph import errors
from relay.front_door.http.errors import ApiError, RequestIds
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import SMALL_LIMITS, HttpRequest
from relay.front_door.sign_in.authentication import HttpAuthentication

_AFTER = 504
_WITH_PAUSE = (429, 503, _AFTER)
_NO_BODY = Turns("bodies", 0, waiting_max=0)
_NO_IDS = RequestIds("", "")
_EXPIRED = "Lifetime validation failed, the token is expired."
_CODES: dict[int | str, tuple[str, str]] = {
    403: (errors.SEND_AS_DENIED.code, errors.SEND_AS_DENIED.sentence),
    404: (errors.USER_INVALID.code, "The requested user is invalid."),
    413: ("RequestEntityTooLarge", "The request is larger than the service takes."),
    429: ("ApplicationThrottled", "Too many requests. Try again later."),
    503: ("ResourceUnhealthy", "The service is not available. Try again later."),
    504: ("GatewayTimeout", "The response did not arrive in time; the request may have succeeded."),
}


@dataclass(eq=False, repr=False)
class FaultyFrontDoor:
    """An ASGI application that passes requests on, or responds with their faults."""

    app: ASGIApp
    authentication: HttpAuthentication
    scenario: Callable[[], ScenarioState]
    realm: str
    clock: Clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        fault = self._find(scope, receive)
        if fault is None:
            await self.app(scope, receive, send)
        elif fault.status == _AFTER:
            await self._handle_and_fail(fault, scope, receive, send=send)
        else:
            await self._fail(fault, scope, receive, send=send)

    def _find(self, scope: Scope, receive: Receive) -> GraphFault | None:
        try:
            request = HttpRequest(scope, receive, ids=_NO_IDS, limits=SMALL_LIMITS, bodies=_NO_BODY)
        except ApiError:
            return None  # the application responds with this error
        try:
            account = self.authentication.account(request).address
        except ApiError:
            account = ""
        path = "/" + "/".join(request.segments[1:])
        return self.scenario().graph_fault(method=request.method, path=path, account=account)

    async def _handle_and_fail(
        self, fault: GraphFault, scope: Scope, receive: Receive, *, send: Send
    ) -> None:
        succeeded = False

        async def send_failures(message: Message) -> None:
            nonlocal succeeded
            if message["type"] == "http.response.start":
                succeeded = message["status"] < 300
            if not succeeded:
                await send(message)

        await self.app(scope, receive, send_failures)
        if succeeded:
            await self._fail(fault, scope, _nothing_more, send=send)

    async def _fail(self, fault: GraphFault, scope: Scope, receive: Receive, *, send: Send) -> None:
        async def respond(_request: HttpRequest) -> Response:
            raise self._error(fault)

        await Gateway(respond, clock=self.clock, limits=SMALL_LIMITS)(scope, receive, send)

    def _error(self, fault: GraphFault) -> ApiError:
        if fault.status not in _CODES:
            challenge = (
                f'Bearer realm="{self.realm}", error="invalid_token", '
                f'error_description="{_EXPIRED}"'
            )
            headers = {"www-authenticate": challenge}
            return ApiError(401, "InvalidAuthenticationToken", _EXPIRED, headers=headers)
        code, message = _CODES[fault.status]
        headers = (
            {"retry-after": str(fault.retry_after)}
            if fault.retry_after and fault.status in _WITH_PAUSE
            else {}
        )
        return ApiError(
            int(fault.status), code, f"{message} (A scenario's fault.)", headers=headers
        )


async def _nothing_more() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}
