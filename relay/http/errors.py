"""The one way to refuse a request, and Graph's error envelope around it.

On the path: any handler raises ApiError; the gateway turns it into the answer.
Holds: the message is fit for the client: it names the field, what was found and what was expected.
Fails: never.
Standards: Graph's error resource; RFC 9110 10.2.3 (Retry-After), 11.6.1 (WWW-Authenticate).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHOWN_CHARACTERS = 100


class ApiError(Exception):
    """A request is refused: `status` is HTTP's, `code` Graph's, `headers` go with the answer."""

    def __init__(
        self, status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = dict(headers or {})


class UnansweredError(Exception):
    """What was asked may be done or not: the connection is closed without an answer.

    Any status would be taken for one of the two. The text is for the log.
    """


@dataclass(frozen=True, slots=True)
class RequestNames:
    """What an answer calls its request: our id, and the client's (or ours again)."""

    request_id: str
    client_request_id: str


def envelope(error: ApiError, *, names: RequestNames, date: str) -> dict[str, Any]:
    """Return Graph's JSON for a refusal; `date` is UTC to the second, without a zone."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "innerError": {
                "date": date,
                "request-id": names.request_id,
                "client-request-id": names.client_request_id,
            },
        }
    }


def try_later(code: str, message: str, *, after_s: int) -> ApiError:
    """Return the 503 of back-pressure, which clients repeat after `after_s` seconds."""
    return ApiError(503, code, message, headers={"retry-after": str(after_s)})


def shown(value: object) -> str:
    """Return what a client sent: strings quoted and clipped, with control characters escaped.

    Anything else is named as JSON has it; what is in an object or an array is not shown.
    """
    match value:
        case str():
            text = repr(value[: _SHOWN_CHARACTERS + 1])
            return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            return str(value)
