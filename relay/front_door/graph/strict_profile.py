"""The profile "strict": what Graph refuses and Relay takes otherwise, with Graph's codes and texts.

It is in force for all requests with `[http] profile`, and for one with `Prefer: relay.strict`.
docs/graph-strict.md has the source of each refusal. What is only believed of Graph is not here.
"""

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from relay.front_door.graph.json_values import (
    FILE_PROPERTIES,
    PROPERTIES_OF_TYPES,
    REFERENCE_PROPERTIES,
)
from relay.front_door.graph.odata.expression import (
    And,
    Comparison,
    Expression,
    FunctionCall,
    Lambda,
    Not,
    Or,
    Path,
    parse_expression,
)
from relay.front_door.graph.query_options import preferences
from relay.front_door.http.errors import ApiError, quoted
from relay.front_door.http.http_request import HttpRequest

PREFERENCE = "relay.strict"
CONCURRENT_MAX = 4  # requests of an account in a mailbox
OVER_CONCURRENT = "Application is over its MailboxConcurrency limit."
_REQUEST_BYTES_MAX = 4 * 1024 * 1024
_UPLOAD_BYTES_MIN = 3_000_000  # "3 MB": no file is refused that is so in one sense only
_HEADERS_MAX = 5
_ATTACHMENT_LISTS = re.compile(r"attachments\(([^()]*+)\)")
_BETWEEN_NAMES = re.compile(r"[\s,;=$]++")

Profile = Literal["relaxed", "strict"]


def in_force(request: HttpRequest, profile: Profile) -> bool:
    """Return whether the request is strict; then, limit its body. Raises ApiError 400, 413."""
    if not (is_preferred(request) or profile == "strict"):
        return False
    request.limit_body(_REQUEST_BYTES_MAX, _too_large)
    return True


def is_preferred(request: HttpRequest) -> bool:
    """Return whether the request asks for the profile. Raises ApiError 400 for a value."""
    lines = request.headers.getlist("prefer")
    if not lines or (value := preferences(lines).get(PREFERENCE)) is None:
        return False
    if value:
        message = f"Prefer: {PREFERENCE} has no value; without it, the profile of [http] applies."
        raise ApiError(400, "ErrorInvalidRequest", message)
    return True


def _too_large() -> ApiError:
    return ApiError(413, "BadRequest", "The maximum request length supported is 4MB.")


def is_in_mailbox(segments: tuple[str, ...]) -> bool:
    """Return whether a path is of what is in a mailbox: not of users, and not of subscriptions."""
    return len(segments) > {"me": 2, "users": 3}.get(segments[1].lower(), sys.maxsize)


# -- query options


def check_query(segments: tuple[str, ...], query: Iterable[tuple[str, str]]) -> None:
    """Check the options of a GET of messages and attachments. Raises ApiError 400."""
    options = {name.removeprefix("$").lower(): value for name, value in query}
    path = tuple(map(str.lower, segments))
    if path[-1:] == ("messages",) or path[-2:] == ("messages", "$count"):
        _check_message_list(options)
    if "attachments" in path[-2:]:
        _check_attachment_select(options.get("select", "").split(","))
    for names in _ATTACHMENT_LISTS.findall(options.get("expand", "")):
        _check_attachment_select(_BETWEEN_NAMES.split(names))


def _check_message_list(options: Mapping[str, str]) -> None:
    for name, written in (("filter", "$filter"), ("orderby", "$orderBy")):
        if "search" in options and name in options:
            message = f"The query parameter '{written}' is not supported with '$search'."
            raise ApiError(400, f"SearchWith{written[1].upper()}{written[2:]}", message)
    if "filter" not in options or "orderby" not in options:
        return
    ordered = [part.split()[0].lower() for part in options["orderby"].split(",") if part.strip()]
    filtered = list(dict.fromkeys(_properties(parse_expression(options["filter"]))))
    if filtered[: len(ordered)] != ordered:
        message = "The restriction or sort order is too complex for this operation."
        raise ApiError(400, "InefficientFilter", message)


def _properties(expression: Expression) -> Iterable[str]:
    """Yield the paths of the properties in an expression, in lower case, in their order."""
    match expression:
        case Path(token):
            yield token.text.lower()
        case Lambda(_, path):
            yield path.lower()
        case Comparison(_, left, right):
            yield from _properties(left)
            yield from _properties(right)
        case Not(part):
            yield from _properties(part)
        case And(parts) | Or(parts) | FunctionCall(_, _, parts):
            for part in parts:
                yield from _properties(part)


def _check_attachment_select(names: Iterable[str]) -> None:
    for name in (one.strip() for one in names):
        if name.lower() in _OF_ONE_KIND:
            message = (
                "Parsing OData Select and Expand failed: Could not find a property named "
                f"{quoted(name)} on type '{_NAMESPACE}attachment'."
            )
            raise ApiError(400, "BadRequest", message)


# -- bodies


def check_part_type(identifier: str, *, has_body: bool, headers: Collection[str]) -> None:
    """Check the Content-Type of a request of a batch. Raises ApiError 400 for the whole batch."""
    if has_body and "content-type" not in headers:
        named = f"Write request with id {quoted(identifier)}"
        raise ApiError(400, "BadRequest", f"{named} does not contain a Content-Type header.")


def check_body(value: object, kind: str) -> None:
    """Check the JSON of a resource of this type, and of those in it, without its values.

    "parameters" are those of an action. Raises ApiError 400, 422.
    """
    if kind == "attachment" and isinstance(value, dict) and not value.get("@odata.type"):
        message = f"Cannot process input of abstract type '{_NAMESPACE}attachment'."
        raise ApiError(422, "UnprocessableType", message)
    _check(value, kind)


def _check(value: object, kind: str) -> None:
    for one in value if isinstance(value, list) else (value,):
        if isinstance(one, dict):
            _check_object(one, kind)


def _check_object(value: Mapping[str, Any], kind: str) -> None:
    if kind in ("attachment", "mailFolder") and (given := value.get("@odata.type")):
        kind = str(given).removeprefix("#").removeprefix(_NAMESPACE)
    if (known := _TYPES.get(kind)) is None:
        return  # a derived type that Relay has not: the handler's error
    for name, one in value.items():
        if "@" in name:
            continue
        if name.lower() not in known:
            _refuse_unknown(name, kind)
        elif name.lower() == "internetmessageheaders":
            _check_headers(one)
        elif name.lower() == "size" and kind == "attachmentItem":
            _check_upload_size(one)
        if inner := known.get(name.lower()):
            _check(one, inner)


def _refuse_unknown(name: str, kind: str) -> None:
    if kind == "parameters":
        return  # the handler's error
    message = (
        f"The property {quoted(name)} does not exist on type '{_NAMESPACE}{kind}'. Make sure to "
        "only use property names that are defined by the type or mark the type as open type."
    )
    raise ApiError(400, "RequestBodyRead", message)


def _check_headers(value: object) -> None:
    if isinstance(value, list) and not 1 <= len(value) <= _HEADERS_MAX:
        message = (
            f"Maximum number of headers in one message should be less than or equal to "
            f"{_HEADERS_MAX}."
        )
        raise ApiError(400, "InvalidInternetMessageHeaderCollection", message)


def _check_upload_size(value: object) -> None:
    if isinstance(value, int) and value < _UPLOAD_BYTES_MIN:
        message = "Attachment size must be greater than the minimum size."
        raise ApiError(400, "ErrorAttachmentSizeShouldNotBeLessThanMinimumSize", message)


_NAMESPACE = "microsoft.graph."
_OF_ONE_KIND = frozenset(f"{FILE_PROPERTIES} {REFERENCE_PROPERTIES} item".lower().split())


def _type_of(names: str) -> Mapping[str, str]:
    pairs = (one.partition(":") for one in names.split())
    return {name.lower(): kind for name, _, kind in pairs}


_TYPES = {kind: _type_of(names) for kind, names in PROPERTIES_OF_TYPES.items()}
