"""Parameters of /relay/v1, and its bodies: numbers, limits, the selector of queue entries.

On the path: the handlers read queries and bodies with these.
Holds: an unknown parameter is refused, so that a misspelt condition never means everything.
Fails: ApiError 400 that names the parameter, what was found and what was expected.
Standards: none; names from docs/names.md (Commands).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from relay.clock import Clock
from relay.http.errors import ApiError, shown
from relay.settings.values import WRITTEN_DURATION_EXPECTED, parse_duration
from relay.spool.operating import LIVE, Operation, Order, Way
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


_IDS_MAX = 10_000
_WHO_CHARACTERS_MAX = 100
_UNTIL_EXPECTED = f'{WRITTEN_DURATION_EXPECTED}, or a time such as "2027-01-31T09:00:00Z"'


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A selector's conditions, and what every operation takes."""

    ids: tuple[str, ...] = ()
    sender: str | None = None
    recipient: str | None = None
    domain: str | None = None
    next_hop: str | None = None
    state: str | None = None
    older_than_s: float | None = None
    all: bool = False
    dry_run: bool = False
    reason: str = ""
    who: str = ""


class _Hold(_Body, frozen=True, forbid_unknown_fields=True):
    until: str = ""


class _Release(_Body, frozen=True, forbid_unknown_fields=True):
    as_before: bool = False


class _Reroute(_Body, frozen=True, forbid_unknown_fields=True):
    to: str = ""


_BODIES: Mapping[Operation, type[_Body]] = {
    Operation.RETRY: _Body,
    Operation.HOLD: _Hold,
    Operation.RELEASE: _Release,
    Operation.CANCEL: _Body,
    Operation.REROUTE: _Reroute,
}


@dataclass(frozen=True, slots=True)
class Asking:
    """Who gives the order. With `may_say_who` the body may name somebody else: the user that runs
    the command. `way_to` reads the `to` of a reroute, or raises ValueError.
    """

    name: str
    may_say_who: bool
    way_to: Callable[[str], Way]
    clock: Clock


def order_of_body(operation: Operation, body: bytes, asking: Asking) -> Order:
    """Return what is to be done. Raises ApiError."""
    asked = read_body(body, _BODIES[operation])
    try:
        return Order(
            operation=operation,
            selector=_selector(asked),
            who=_who(asked, asking),
            why=asked.reason.strip(),
            dry_run=asked.dry_run,
            until_us=_until_us(asked.until, asking.clock) if isinstance(asked, _Hold) else None,
            as_before=isinstance(asked, _Release) and asked.as_before,
            to=_way(asked.to, asking) if isinstance(asked, _Reroute) else None,
            to_text=asked.to if isinstance(asked, _Reroute) else "",
        )
    except ValueError as error:
        text = str(error)
        names_a_field = text.partition(" ")[0].endswith(":")
        raise _bad(f"{text if names_a_field else text[:1].upper() + text[1:]}.") from None


def _selector(asked: _Body) -> Selector:
    if len(asked.ids) > _IDS_MAX:
        raise _bad(f"ids: found {len(asked.ids)}, expected at most {_IDS_MAX}.")
    if asked.older_than_s is not None and not 0 <= asked.older_than_s <= 1e9:
        raise _bad(f"older_than_s: found {asked.older_than_s:g}, expected seconds from 0 to 1e9.")
    texts = conditions_of({name: getattr(asked, name) for name in TEXTS})
    return Selector(ids=asked.ids, older_than_s=asked.older_than_s, all=asked.all, **texts)


def _who(asked: _Body, asking: Asking) -> str:
    if not asked.who:
        return asking.name
    if not asking.may_say_who:
        message = "Access is denied: who does it follows from the token; leave who out."
        raise ApiError(403, "ErrorAccessDenied", message)
    if len(asked.who) > _WHO_CHARACTERS_MAX or not asked.who.isprintable():
        raise _bad(f"who: found {shown(asked.who)}, expected a name.")
    return asked.who


def _until_us(text: str, clock: Clock) -> int | None:
    """The end of a hold in steady time."""
    if not text:
        return None
    try:
        ahead_s = parse_duration(text)
    except ValueError:
        try:
            until = datetime.fromisoformat(text)
            if until.tzinfo is None:
                raise ValueError  # noqa: TRY301 - whose midnight it is, nobody knows
            ahead_s = until.timestamp() - clock.time_us() / 1e6
        except (ValueError, OverflowError):
            raise _bad(f"until: found {shown(text)}, expected {_UNTIL_EXPECTED}.") from None
    if ahead_s <= 0:
        raise _bad(f"until: found {shown(text)}, expected a time that is to come.")
    return clock.steady_us() + int(ahead_s * 1e6)


def _way(text: str, asking: Asking) -> Way:
    try:
        return asking.way_to(text)
    except ValueError as error:
        raise _bad(f"to: {error}.") from None
