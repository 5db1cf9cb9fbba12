"""The profile "strict" refuses what Graph refuses and Relay otherwise accepts, with Graph's codes
and texts.

It applies to all requests with `[http] profile`, or to one with `Prefer: relay.strict`.
docs/graph.md (The profile strict) has the source of each refusal: Graph's documentation, or a
report of its answer. Those of a batch are in `batch`, that of a subscription's lifetime is in
`subscriptions`; what is answered otherwise is with its handlers, the names of originators in
`graph_request`.
"""

import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

from relay.front_door.graph import errors
from relay.front_door.graph.json_values import FILE_PROPERTIES, PROPERTIES_OF_TYPES
from relay.front_door.graph.odata import expression as expressions
from relay.front_door.graph.query_options import preferences
from relay.front_door.http.errors import quoted
from relay.front_door.http.http_request import HttpRequest

PREFERENCE = "relay.strict"
CONCURRENT_MAX = 4  # requests of an account in a mailbox
_REQUEST_BYTES_MAX = 4 * 1024 * 1024
# "3 MB" in its smaller meaning, so that no valid file is refused
_UPLOAD_BYTES_MIN = 3_000_000
_HEADERS_MAX = 5
_READ_ONLY = frozenset(("parentfolderid", "isdraft", "hasattachments", "receiveddatetime"))
# What Graph does not filter by while it sorts by another property.
_SLOW_WITH_ORDER = frozenset(
    (
        *("from", "torecipients", "conversationid", "categories", "flag", "importance"),
        *("inferenceclassification", "contains subject"),
    )
)
_ATTACHMENT_LISTS = re.compile(r"attachments\(([^()]*+)\)")
_BETWEEN_NAMES = re.compile(r"[\s,;=$]++")
# words of letters alone, and phrases in quotes (OData, searchExpr)
_SEARCH = re.compile(r'(?>[\s()]++|[^\W\d_]++|(?<![^\s()])"(?>[^"\\]|\\.)*+")*+', re.DOTALL)

Profile = Literal["relaxed", "strict"]


def in_force(request: HttpRequest, profile: Profile) -> bool:
    """Return whether the request is strict. If it is, limit its body. Raises ApiError 400, 413."""
    if not (is_preferred(request) or profile == "strict"):
        return False
    request.limit_body(_REQUEST_BYTES_MAX, errors.BODY_TOO_LARGE)
    return True


def is_preferred(request: HttpRequest) -> bool:
    """Return whether the request asks for the profile. Raises ApiError 400 for a value."""
    lines = request.headers.getlist("prefer")
    value = preferences(lines).get(PREFERENCE) if lines else None
    if value is None:
        return False
    if value:
        text = f"{PREFERENCE} has no value; without it, the profile of [http] applies."
        raise errors.INVALID_REQUEST(f"Prefer: {text}")
    return True


def is_in_mailbox(segments: tuple[str, ...]) -> bool:
    """Return whether a path is inside a mailbox; paths of users and of subscriptions are not."""
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
    search = options.get("search", "")
    match = _SEARCH.match(search)
    if match and (at := match.end()) < len(search):
        position = quoted(search[at]), str(at), quoted(search)
        raise errors.SEARCH_CHARACTER('$search: expected "words" in quotes.', *position)
    if "search" in options and "filter" in options:
        raise errors.SEARCH_WITH_FILTER("Expected $search or $filter.")
    if "search" in options and "orderby" in options:
        raise errors.SEARCH_WITH_ORDER("Expected $search or $orderby.")
    if "filter" not in options or "orderby" not in options:
        return
    ordered = [part.split()[0].lower() for part in options["orderby"].split(",") if part.strip()]
    filtered = list(dict.fromkeys(_properties(expressions.parse_expression(options["filter"]))))
    slow = [
        path
        for path in filtered
        if path in _SLOW_WITH_ORDER or path.split()[-1].partition("/")[0] in _SLOW_WITH_ORDER
    ]
    if slow and [path.split()[-1] for path in filtered[: len(ordered)]] != ordered:
        expected = "expected the properties of $orderby first in $filter, in the same order"
        raise errors.TOO_COMPLEX(f"$filter: found {slow[0]}, {expected}.")


def _properties(expression: expressions.Expression) -> Iterable[str]:
    """Yield the paths of the properties in an expression, in lower case, in their order.

    The path of a property in contains() has the function's name in front.
    """
    match expression:
        case expressions.Path(token):
            yield token.text.lower()
        case expressions.Lambda(_, path):
            yield path.lower()
        case expressions.Comparison(_, left, right):
            yield from _properties(left)
            yield from _properties(right)
        case expressions.Not(part):
            yield from _properties(part)
        case expressions.FunctionCall(_, "contains", parts):
            for part in parts:
                yield from (f"contains {path}" for path in _properties(part))
        case expressions.And(parts) | expressions.Or(parts) | expressions.FunctionCall(_, _, parts):
            for part in parts:
                yield from _properties(part)


def _check_attachment_select(names: Iterable[str]) -> None:
    for name in (text.strip() for text in names):
        if name.lower() in _OF_ONE_KIND:
            raise errors.SELECT_UNKNOWN("Not all kinds have it.", quoted(name), "attachment")


# -- bodies


def check_body(value: object, kind: str) -> None:
    """Check the properties in the JSON of a resource of this type, and of resources in it, not
    values.

    The type "parameters" means the parameters of an action. Raises ApiError 400, 422.
    """
    if kind == "attachment" and isinstance(value, dict) and not value.get("@odata.type"):
        raise errors.ABSTRACT_TYPE("", kind)
    waiting = [(value, kind)]
    while waiting:  # no recursion: a client may nest resources deeply
        inner, kind = waiting.pop()
        for child in inner if isinstance(inner, list) else (inner,):
            if isinstance(child, dict):
                waiting += _check_object(child, kind)


def check_changes(names: Collection[str]) -> None:
    """Check the properties that a PATCH of a message gives. Raises ApiError 400."""
    if refused := _READ_ONLY.intersection(map(str.lower, names)):
        raise errors.READ_ONLY(f"Found {', '.join(sorted(refused))}.")


def _check_object(value: Mapping[str, Any], kind: str) -> Iterator[tuple[object, str]]:
    """Check the properties of an object; yield the resources in it, each with its type."""
    if kind in ("attachment", "mailFolder") and (declared := value.get("@odata.type")):
        kind = str(declared).removeprefix("#").removeprefix(_NAMESPACE)
    if (known := _TYPES.get(kind)) is None:
        return  # a derived type that Relay does not have: the handler rejects it
    for name, child in value.items():
        if "@" in name:
            continue
        folded = name.lower()
        if folded not in known and kind != "parameters":  # the handler rejects it
            raise errors.TYPE_WITHOUT_PROPERTY("", quoted(name), kind)
        is_fields = folded == "internetmessageheaders" and isinstance(child, list)
        if is_fields and not 1 <= len(child) <= _HEADERS_MAX:
            raise errors.TOO_MANY_HEADERS(f"Found {len(child)}.", str(_HEADERS_MAX))
        if folded == "attachmenttype" and str(child).lower() in ("item", "reference"):
            raise errors.UPLOAD_OF_ITEM(headers={"allow": "POST"})
        is_size = kind == "attachmentItem" and folded == "size" and isinstance(child, int)
        if is_size and child < _UPLOAD_BYTES_MIN:
            raise errors.UPLOAD_TOO_SMALL(f"size: found {child}, expected {_UPLOAD_BYTES_MIN}.")
        if inner := known.get(folded):
            yield child, inner


_NAMESPACE = "microsoft.graph."
_OF_ONE_KIND = frozenset(f"{FILE_PROPERTIES} item".lower().split())


def _type_of(names: str) -> Mapping[str, str]:
    pairs = (text.partition(":") for text in names.split())
    return {name.lower(): kind for name, _, kind in pairs}


_TYPES = {kind: _type_of(names) for kind, names in PROPERTIES_OF_TYPES.items()}
