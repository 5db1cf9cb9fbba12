"""Error responses: ApiError, and Graph's error envelope around it.

A handler raises ApiError; the gateway turns it into the response. The message is meant for the
client: it names the field, what was found and what was expected. If programs compare the message
with Graph's (relay/front_door/graph/errors.py), `detail` names them instead.
"""

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from msgspec import Struct

from relay.base.phrases import without_login

_QUOTED_MAX = 100
_NO_PLACE_RETRY_S = 2


@dataclass(eq=False)
class ApiError(Exception):
    """An error response with an HTTP status, Graph's error code, and extra header fields."""

    status: int
    code: str
    message: str
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict)
    detail: str = ""

    def __str__(self) -> str:
        return self.message


class UnansweredError(Exception):
    """The outcome of the request is unknown: the connection is closed without a response.

    Any status would claim either success or failure. The text is for the log.
    """


class RequestIds(Struct, frozen=True):
    """The values of request-id and client-request-id; both are Relay's if the client sends none."""

    request_id: str
    client_request_id: str


def error_body(error: ApiError, *, ids: RequestIds, date: str) -> dict[str, Any]:
    """Return Graph's JSON of an error; `date` is UTC to the second, without a zone."""
    inner = {
        "date": date,
        "request-id": ids.request_id,
        "client-request-id": ids.client_request_id,
    }
    if error.detail:
        inner["detail"] = error.detail
    return {"error": {"code": error.code, "message": error.message, "innerError": inner}}


def service_unavailable(message: str, *, retry_after_s: int) -> ApiError:
    """Return a 503 with Retry-After (RFC 9110 10.2.3): clients repeat the request by themselves."""
    headers = {"retry-after": str(retry_after_s)}
    return ApiError(503, "ResourceUnhealthy", message, headers=headers)


def no_place(bound: object) -> ApiError:
    """Return the 503 for a bound that has nothing left: its name, or a NoPlaceError."""
    message = f"Too much is in progress at once ({bound}); try again."
    return service_unavailable(message, retry_after_s=_NO_PLACE_RETRY_S)


def bad_request(message: str) -> ApiError:
    """Return a 400."""
    return ApiError(400, "BadRequest", message)


def method_not_allowed(allowed: Iterable[str]) -> ApiError:
    """Return a 405 with Allow (RFC 9110 15.5.6)."""
    message = "Specified HTTP method is not allowed for the request target."
    return ApiError(405, "Request_BadRequest", message, headers={"allow": ", ".join(allowed)})


def unsupported_media_type(actual: str, expected: str) -> ApiError:
    """Return the 415 for a Content-Type."""
    message = f"Content-Type: found {quoted(actual)}, expected {expected}."
    return ApiError(415, "UnsupportedMediaType", message)


def quoted(value: object) -> str:
    """Return a client's value for an error message.

    Strings are quoted, cut to 100 characters, and control characters escaped. Other values are
    named as in JSON; the contents of objects and arrays are not shown.
    """
    match value:
        case str():
            value = without_login(value) if "://" in value else value
            text = repr(value[: _QUOTED_MAX + 1])
            return text if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX] + "…"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            return str(value)
