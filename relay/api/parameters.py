"""Parameters of /relay/v1, and its bodies: numbers, limits, the selector of queue entries.

On the path: the handlers read queries and bodies with these.
Holds: an unknown parameter is refused, so that a misspelt condition never means everything.
Fails: ApiError 400 that names the parameter, what was found and what was expected.
Standards: none; names from docs/names.md (Commands).
"""

from collections.abc import Collection, Mapping
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from relay.http.errors import ApiError, shown
from relay.spool.operating import LIVE
from relay.spool.types import Selector

Body = TypeVar("Body", bound=msgspec.Struct)

_LIMIT = 100
_LIMIT_MAX = 10_000
_TEXT_CHARACTERS_MAX = 1000
TEXTS = ("sender", "recipient", "domain", "next_hop", "state")
QUEUE_PARAMETERS = ("id", *TEXTS, "older_than", "limit")


def read_body(octets: bytes, kind: type[Body]) -> Body:
    """Return a JSON body as a `kind`; an empty one says nothing. Raises ApiError 400."""
    try:
        return msgspec.json.decode(octets or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "UnableToDeserializePostBody", f"The body: {error}.") from None


def single_values(query: Collection[tuple[str, str]], allowed: Collection[str]) -> dict[str, str]:
    """Return a query as a mapping; a name that is not allowed, or comes twice, is refused."""
    values: dict[str, str] = {}
    for name, value in query:
        if name not in allowed:
            message = f"The parameter {shown(name)} is not known here; there are: "
            raise _bad(message + (", ".join(allowed) or "none") + ".")
        if name in values:
            raise _bad(f"The parameter {shown(name)} is given twice.")
        values[name] = value
    return values


def limit_of(query: Mapping[str, str]) -> int:
    """Return how many items are wanted."""
    return int(number_of(query, "limit", default=_LIMIT, limits=(1, _LIMIT_MAX)))


def number_of(
    query: Mapping[str, str], name: str, *, default: float, limits: tuple[float, float]
) -> float:
    """Return a number within `limits`, both included."""
    text = query.get(name)
    if text is None:
        return default
    low, high = limits
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise _bad(f"{name}: found {shown(text)}, expected a number from {low:g} to {high:g}.")
    return number


def selector_of_query(query: Mapping[str, str]) -> Selector:
    """Return the selector of GET /queue; without a condition it means all.

    Between IDs are commas; what is part of one is percent-encoded in it, as in UNKNOWN_HEADER.
    """
    older_than_s = None
    if "older_than" in query:
        older_than_s = number_of(query, "older_than", default=0, limits=(0, 10**9))
    ids = tuple(unquote(one) for one in query.get("id", "").split(",") if one)
    texts = conditions_of({name: query.get(name) for name in TEXTS})
    given = bool(ids) or older_than_s is not None or any(texts.values())
    return Selector(ids=ids, older_than_s=older_than_s, all=not given, **texts)


def conditions_of(texts: Mapping[str, str | None]) -> dict[str, str]:
    """Return conditions on text, "" for those that are not given.

    An empty one is refused: it would mean everything.
    """
    for name, text in texts.items():
        if text is not None and not 0 < len(text) <= _TEXT_CHARACTERS_MAX:
            expected = f"1 to {_TEXT_CHARACTERS_MAX}"
            raise _bad(f"{name}: found {len(text)} letters, expected {expected}.")
    state = texts.get("state")
    if state is not None and state not in LIVE:
        raise _bad(f"state: found {shown(state)}, expected one of {', '.join(LIVE)}.")
    return {name: text or "" for name, text in texts.items()}


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)
