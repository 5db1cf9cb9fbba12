"""Orders for the queue, read from the bodies of POST /queue/{operation}.

On the path: the handlers of /queue, and the command line where no relay runs.
Holds: nothing is meant that was not said: an unknown name, or no condition at all, is refused.
Fails: ApiError 400 that names the field, what was found and what was expected; 403 for `who`.
Standards: none; names from docs/names.md (HTTP, Commands).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import msgspec

from relay.api.parameters import TEXTS, conditions_of, read_body
from relay.clock import Clock
from relay.http.errors import ApiError, shown
from relay.settings.values import WRITTEN_DURATION_EXPECTED, parse_duration
from relay.spool.operating import Operation, Order, Way
from relay.spool.types import Selector

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


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)
