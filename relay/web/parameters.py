"""Parameters of /relay/v1: numbers, limits, and the selector of queue entries.

On the path: the handlers read queries and bodies with these.
Holds: an unknown parameter is refused, so that a misspelt condition never means everything.
Fails: ApiError 400 that names the parameter, what was found and what was expected.
Standards: none; names from docs/names.md (Commands).
"""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from relay.http.errors import ApiError, shown
from relay.message.lifecycle import State
from relay.spool.types import Selector

_LIMIT = 100
_LIMIT_MAX = 10_000
_IDS_MAX = 10_000
_TEXTS = ("sender", "recipient", "domain", "next_hop", "state")


class RetryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /queue/retry: a selector's conditions and `dry_run`."""

    ids: tuple[str, ...] = ()
    sender: str = ""
    recipient: str = ""
    domain: str = ""
    next_hop: str = ""
    state: str = ""
    older_than_s: float | None = None
    all: bool = False
    dry_run: bool = False


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
    """Return the selector of GET /queue; without a condition it means all."""
    older_than_s = None
    if "older_than" in query:
        older_than_s = number_of(query, "older_than", default=0, limits=(0, 10**9))
    ids = tuple(one for one in query.get("id", "").split(",") if one)
    texts = {name: query.get(name, "") for name in _TEXTS}
    _check_state(texts["state"])
    given = bool(ids) or older_than_s is not None or any(texts.values())
    return Selector(ids=ids, older_than_s=older_than_s, all=not given, **texts)


def retry_of_body(body: bytes) -> tuple[Selector, bool]:
    """Return the selector of POST /queue/retry, and whether it is a dry run.

    Raises ApiError 400 when no condition is given: changing everything needs `all`.
    """
    try:
        asked = msgspec.json.decode(body or b"{}", type=RetryBody)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, "UnableToDeserializePostBody", f"The body: {error}.") from None
    _check_state(asked.state)
    if len(asked.ids) > _IDS_MAX:
        raise _bad(f"ids: found {len(asked.ids)}, expected at most {_IDS_MAX}.")
    conditions: dict[str, Any] = msgspec.structs.asdict(asked)
    dry_run = bool(conditions.pop("dry_run"))
    selector = Selector(**conditions)
    if selector == Selector():
        raise _bad("The selector is empty: give a condition, or all = true for every entry.")
    return selector, dry_run


QUEUE_PARAMETERS = ("id", *_TEXTS, "older_than", "limit")


def _check_state(state: str) -> None:
    if state and state not in tuple(State):
        raise _bad(f"state: found {shown(state)}, expected one of {', '.join(State)}.")


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)
