"""Handlers that only a development relay has: /relay/v1/dev/… and DELETE /relay/v1/messages.

In a service they are 404, as any unknown path. Every account may use them, DELETE of one message
for its own ones: a development relay has no secrets, and with --token only the operator has an
account. Requests of pages of other sites are refused, also with a token.
"""

from typing import Any

import msgspec
from starlette.responses import Response

from relay.advanceable_clock import AdvanceError
from relay.api.dependencies import DevelopmentControls, Principal
from relay.api.handlers import Handlers
from relay.api.request_parameters import read_body, require_method, single_values
from relay.api.scenario_requests import scenario_response
from relay.clock import rfc3339
from relay.http.browsers import check_origin
from relay.http.errors import ApiError
from relay.http.gateway import json_response
from relay.http.http_request import HttpRequest


class _AdvanceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    advance_s: float


async def development_response(
    request: HttpRequest, controls: DevelopmentControls, principal: Principal, *, handlers: Handlers
) -> Response | None:
    """Return the response of a development relay, None for a path that it does not add."""
    match tuple(map(str.lower, request.segments[2:])):
        case ("dev", "clock"):
            check_origin(request)
            return json_response(await _clock(request, controls))
        case ("dev", "internet"):
            return await scenario_response(request, controls)
        case ("messages",) if request.method == "DELETE":
            check_origin(request)
            single_values(request.query, ())
            return json_response({"messages": await controls.reset()})
        case ("messages", _) if request.method == "DELETE":
            check_origin(request)
            single_values(request.query, ())
            await handlers.remove_message(request.segments[3], principal)
            return Response(status_code=204)
        case _:
            return None


async def _clock(request: HttpRequest, controls: DevelopmentControls) -> dict[str, Any]:
    """GET and POST /dev/clock: the time of the relay, and how far it is ahead."""
    require_method(request, "GET", "POST")
    if request.method == "POST":
        body = read_body(await request.body(), _AdvanceBody)
        try:
            await controls.advance_clock(body.advance_s)
        except ValueError as error:
            raise ApiError(400, "BadRequest", f"advance_s: {error}.") from None
        except AdvanceError as error:
            text = str(error)
            raise ApiError(503, "ResourceUnhealthy", f"{text[:1].upper()}{text[1:]}.") from None
    clock = controls.clock
    return {"now": rfc3339(clock.time_us()), "advanced_s": clock.advanced_s}
