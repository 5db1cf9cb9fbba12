"""Which handler a method and a path mean.

On the path: app asks it with the part of the path behind the mailbox's owner.
Holds: names of resources and actions match in any case; `microsoft.graph.` before one is accepted.
Fails: ApiError 404 for a path that is not here, 405 with Allow for a method that is not.
Standards: RFC 9110 15.5.5, 15.5.6; Graph's URL conventions.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.responses import Response

from relay.graph import listing, messages, sending
from relay.graph.visit import Visit
from relay.http.errors import ApiError, shown

Handler = Callable[[Visit], Awaitable[Response]]
_NAMESPACE = "microsoft.graph."


@dataclass(frozen=True, slots=True)
class Match:
    """The handler, and what the path has in the places that the route leaves open."""

    handler: Handler
    names: Mapping[str, str]


def find_route(method: str, segments: tuple[str, ...]) -> Match:
    """Return what `method` on the path `segments` means."""
    for pattern, by_method in _ROUTES:
        names = _names(pattern, segments)
        if names is None:
            continue
        handler = by_method.get(method)
        if handler is None:
            raise ApiError(
                405,
                "Request_BadRequest",
                "Specified HTTP method is not allowed for the request target.",
                headers={"allow": ", ".join(by_method)},
            )
        return Match(handler, names)
    path = "/".join(segments)
    message = f"Resource not found for the path {shown(path)}."
    raise ApiError(404, "ResourceNotFound", message)


def _names(pattern: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    """Return the names that make `segments` fit `pattern`, None if nothing does."""
    if len(pattern) != len(segments):
        return None
    names: dict[str, str] = {}
    for expected, segment in zip(pattern, segments, strict=True):
        if expected.startswith("{"):
            names[expected[1:-1]] = segment
        elif segment.lower().removeprefix(_NAMESPACE) != expected:
            return None
    return names


def _pattern(path: str) -> tuple[str, ...]:
    return tuple(path.split("/")) if path else ()


_ONE_MESSAGE: Mapping[str, Handler] = {
    "GET": messages.get_message,
    "PATCH": messages.change_message,
    "DELETE": messages.delete_message,
}
_MESSAGES: Mapping[str, Handler] = {
    "GET": listing.list_messages,
    "POST": messages.create_message,
}
_ROUTES: tuple[tuple[tuple[str, ...], Mapping[str, Handler]], ...] = (
    (_pattern(""), {"GET": messages.get_user}),
    (_pattern("sendmail"), {"POST": sending.send_mail}),
    (_pattern("messages"), _MESSAGES),
    (_pattern("messages/$count"), {"GET": listing.count_messages}),
    (_pattern("messages/{message}"), _ONE_MESSAGE),
    (_pattern("messages/{message}/send"), {"POST": sending.send_draft}),
    (_pattern("messages/{message}/$value"), {"GET": messages.get_mime}),
    (_pattern("mailfolders"), {"GET": messages.list_folders}),
    (_pattern("mailfolders/{folder}"), {"GET": messages.get_folder}),
    (_pattern("mailfolders/{folder}/messages"), _MESSAGES),
    (_pattern("mailfolders/{folder}/messages/$count"), {"GET": listing.count_messages}),
    (_pattern("mailfolders/{folder}/messages/{message}"), _ONE_MESSAGE),
    (_pattern("mailfolders/{folder}/messages/{message}/send"), {"POST": sending.send_draft}),
    (_pattern("mailfolders/{folder}/messages/{message}/$value"), {"GET": messages.get_mime}),
)
