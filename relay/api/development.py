"""Handlers that only a development relay has: /relay/v1/dev/… and DELETE /relay/v1/messages.

In a service they are 404, as any unknown path. Every account may use them, DELETE of one message
for its own ones: a development relay has no secrets, and with --token only the operator has an
account. The scenario of the simulated internet is TOML or JSON, and only for clients on loopback; a
faulty one changes nothing.
"""

from typing import Any

import msgspec
from starlette.responses import Response

from relay.api.dependencies import DevelopmentControls, Principal
from relay.api.handlers import Handlers
from relay.api.request_parameters import (
    read_body,
    read_table,
    require_method,
    single_values,
)
from relay.base.advanceable_clock import AdvanceError
from relay.base.clock import rfc3339
from relay.http.errors import ApiError, quoted, unsupported_media_type
from relay.http.gateway import json_response
from relay.http.http_request import HttpRequest, body_too_large
from relay.settings.document import SettingsError

_BYTES_MAX = 256 * 1024
_FAULTS_MAX = 20
_TOML = "application/toml"
_JSON = "application/json"
_USED = "# used: "  # begins a comment that a later PUT may bring back


class _AdvanceBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    advance_s: float


async def development_response(
    request: HttpRequest, controls: DevelopmentControls, principal: Principal, *, handlers: Handlers
) -> Response | None:
    """Return the response of a development relay, None for a path that it does not add."""
    match tuple(map(str.lower, request.segments[2:])):
        case ("dev", "clock"):
            return json_response(await _clock(request, controls))
        case ("dev", "internet"):
            return await scenario_response(request, controls)
        case ("messages",) if request.method == "DELETE":
            single_values(request.query, ())
            return json_response({"messages": await controls.reset()})
        case ("messages", _) if request.method == "DELETE":
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


# -- the scenario


async def scenario_response(request: HttpRequest, controls: DevelopmentControls) -> Response:
    """GET and PUT /dev/internet: return the scenario in force, after a PUT the new one. Raises
    ApiError.
    """
    require_method(request, "GET", "PUT")
    if request.client_address and not request.is_local:
        message = f"Found the client {request.client_address}, expected one on loopback."
        raise ApiError(403, "ErrorAccessDenied", message)
    if request.method == "PUT":
        await _replace(request, controls)
    accept = request.headers.get("accept", "").lower()
    if _JSON in accept and _TOML not in accept:
        return json_response({"toml": controls.scenario_toml, "used": controls.used_replies()})
    return Response(_with_uses(controls), media_type=f"{_TOML}; charset=utf-8")


async def _replace(request: HttpRequest, controls: DevelopmentControls) -> None:
    if request.media_type not in (_TOML, _JSON):
        raise unsupported_media_type(request.media_type, f"{_TOML} or {_JSON}")
    if (request.declared_bytes or 0) > _BYTES_MAX:
        raise body_too_large(_BYTES_MAX)
    body = await request.body()
    if len(body) > _BYTES_MAX:
        raise body_too_large(_BYTES_MAX)
    try:
        await controls.use_scenario(_content(body, is_json=request.media_type == _JSON))
    except SettingsError as error:
        faults = [f"{fault}." for fault in error.faults[:_FAULTS_MAX]]
        if len(error.faults) > _FAULTS_MAX:
            faults.append(f"And {len(error.faults) - _FAULTS_MAX} more.")
        raise ApiError(400, "BadRequest", " ".join(faults)) from None


def _content(body: bytes, *, is_json: bool) -> str | dict[str, Any]:
    if is_json:
        return read_table(body)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{body[error.start]:02x} in line {line}"
        raise ApiError(400, "BadRequest", f"The body: found {found}, expected UTF-8.") from None


def _with_uses(controls: DevelopmentControls) -> str:
    """Return the TOML with the number of uses as comments at its end."""
    kept = [one for one in controls.scenario_toml.split("\n") if not one.startswith(_USED)]
    text = "\n".join(kept).rstrip("\n")
    used = [
        f"{_USED}{one['used']}{_left(one['left'])}: {quoted(one['entry'])}"
        for one in controls.used_replies()
    ]
    parts = [part for part in (text, "\n".join(used)) if part]
    return "\n\n".join(parts) + "\n" if parts else ""


def _left(number: int | None) -> str:
    return "" if number is None else f", left: {number}"
