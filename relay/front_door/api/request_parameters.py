"""Query parameters and JSON bodies of /relay/v1: numbers, selectors, queue commands.

An unknown name is an error, and so is a command without a condition, so that a misspelt condition
never selects the whole queue. Errors are ApiError 400 with the field, what was found and what was
expected.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from msgspec.structs import fields, replace

from relay.base.clock import Clock, rfc3339
from relay.base.message.envelope import domain_of
from relay.base.message.lifecycle import LIVE, RecipientState, SubmissionState
from relay.base.phrases import ahead_text, counted, words_in
from relay.base.settings.values import seconds_ahead
from relay.front_door.http.errors import ApiError, bad_request, method_not_allowed, quoted
from relay.front_door.http.http_request import HttpRequest
from relay.store.journeys import message_list
from relay.store.journeys.event_feed import parse_event_cursor
from relay.store.spool.queue_commands import Operation, QueueCommand, RouteLookup
from relay.store.spool.types import QUERY_NAMES, WAITING, Selector
from relay.transport.refusals.refusal import PAGE_MAX, RefusalSearch, is_cursor

Body = TypeVar("Body")

_LIMIT = 100
_LIMIT_MAX = 10_000
_TEXT_CHARACTERS_MAX = 1000
TEXT_CONDITIONS = tuple(field.name for field in fields(Selector) if field.type is str)
LIST_PARAMETERS = words_in("q to sender subject mailbox kind state before after wait limit")
LOG_PARAMETERS = words_in("q to sender subject mailbox state before limit pages")
REFUSED_PARAMETERS = ("address", "after", "before", "limit")
_QUEUE_CONDITIONS = {QUERY_NAMES.get(name, name): name for name in Selector.__struct_fields__}
QUEUE_PARAMETERS = (*(name for name in _QUEUE_CONDITIONS if name != "all"), "limit")


def read_body(octets: bytes, kind: type[Body]) -> Body:
    """Decode a JSON body as `kind`; an empty body is {}. Raises ApiError 400."""
    try:
        return msgspec.json.decode(octets or b"{}", type=kind)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "UnableToDeserializePostBody", f"The body: {error}.") from None


def single_values(query: Collection[tuple[str, str]], allowed: Collection[str]) -> dict[str, str]:
    """Return a query as a mapping. Raises ApiError 400 for an unknown or repeated name."""
    values: dict[str, str] = {}
    for name, value in query:
        if name not in allowed:
            message = f"The parameter {quoted(name)} is unknown; expected: "
            raise bad_request(message + (", ".join(allowed) or "none") + ".")
        if name in values:
            raise bad_request(f"The parameter {quoted(name)} is given twice.")
        values[name] = value
    return values


def require_method(request: HttpRequest, *methods: str) -> None:
    """Raise ApiError 405 for another method."""
    if request.method not in methods:
        raise method_not_allowed(methods)


def limit_of(query: Mapping[str, str]) -> int:
    """Return the parameter `limit`."""
    return int(number_of(query, "limit", default=_LIMIT, limits=(1, _LIMIT_MAX)))


def number_of(
    query: Mapping[str, str], name: str, *, default: float, limits: tuple[float, float]
) -> float:
    """Return a number within `limits`, inclusive. Raises ApiError 400."""
    text = query.get(name)
    if text is None:
        return default
    low, high = limits
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        expected = f"expected a number from {low:g} to {high:g}"
        raise bad_request(f"{name}: found {quoted(text)}, {expected}.")
    return number


def message_search_of(query: Mapping[str, str]) -> message_list.MessageSearch:
    """Return the conditions of GET /messages. Raises ApiError 400."""
    texts = {name: _text_of(query, name) for name in ("to", "sender", "subject", "mailbox")}
    state, kind = query.get("state", ""), query.get("kind", "")
    if state not in ("", *MESSAGE_STATES):
        raise bad_state(state, MESSAGE_STATES)
    if kind not in ("", message_list.MAIL, message_list.REPORT):
        raise bad_request(
            f"kind: found {quoted(kind)}, expected {message_list.MAIL} or {message_list.REPORT}."
        )
    after = None
    if (text := query.get("after")) is not None:
        try:
            after = parse_event_cursor(text)
        except ValueError:
            expected = 'the "cursor" of an earlier answer'
            raise bad_request(f"after: found {quoted(text)}, expected {expected}.") from None
    return replace(message_list.MessageSearch(kind=kind, state=state, after=after), **texts)


def list_position_of(query: Mapping[str, str]) -> message_list.ListPosition | None:
    """Return the place after which GET /messages continues. Raises ApiError 400."""
    text = query.get("before")
    if text is None:
        return None
    for name in ("after", "wait"):
        if name in query:
            raise bad_request(f"before: found it together with {name}, expected one of them.")
    try:
        return message_list.parse_position(text)
    except ValueError:
        expected = 'the "older" of an earlier answer'
        raise bad_request(f"before: found {quoted(text)}, expected {expected}.") from None


def refusal_search_of(query: Mapping[str, str], account: str | None) -> RefusalSearch:
    """Return the conditions of GET /refused. Raises ApiError 400."""
    address = _text_of(query, "address")
    places = {name: query.get(name, "") for name in ("after", "before")}
    for name, place in places.items():
        if name in query and not is_cursor(place):
            expected = f'the "{"cursor" if name == "after" else "older"}" of an earlier answer'
            raise bad_request(f"{name}: found {quoted(place)}, expected {expected}.")
    if all(places.values()):
        raise bad_request("before: found it together with after, expected one of them.")
    limit = int(number_of(query, "limit", default=_LIMIT, limits=(1, PAGE_MAX)))
    return RefusalSearch(address, account, **places, limit=limit)


MESSAGE_STATES = (message_list.FINAL_STATE, *SubmissionState, *RecipientState)


def bad_state(state: str, choices: Collection[str]) -> ApiError:
    """Return the error for an unknown state."""
    return bad_request(f"state: found {quoted(state)}, expected one of {', '.join(choices)}.")


def _text_of(texts: Mapping[str, str | None], name: str) -> str:
    """Return a text, "" if it is not given. Raises ApiError 400 for one that is empty or long."""
    text = texts.get(name)
    if text is not None and not 0 < len(text) <= _TEXT_CHARACTERS_MAX:
        expected = f"expected 1 to {_TEXT_CHARACTERS_MAX}"
        raise bad_request(f"{name}: found {len(text)} letters, {expected}.")
    return text or ""


def selector_of_query(query: Mapping[str, str]) -> Selector:
    """Return the selector of GET /queue; without a condition it selects all entries.

    Commas separate IDs; a comma within an ID is percent-encoded, as in UNKNOWN_HEADER.
    """
    conditions: dict[str, Any] = {_QUEUE_CONDITIONS.get(name, name): query[name] for name in query}
    if "ids" in conditions:
        conditions["ids"] = [unquote(text) for text in query["id"].split(",") if text]
    try:
        selector = _checked(msgspec.convert(conditions, Selector, strict=False), conditions)
    except msgspec.ValidationError as error:
        raise bad_request(f"The query: {error}.") from None
    return selector if selector.conditions else Selector(all=True)


def _checked(selector: Selector, body: Mapping[str, Any]) -> Selector:
    """Return a selector, or that of a command; `body` has the fields that were given.

    Raises ApiError 400, also for an empty text, which would select everything.
    """
    for name in TEXT_CONDITIONS:
        _text_of(body, name)
    states = (*LIVE, WAITING, SubmissionState.SCHEDULED)
    if selector.state and selector.state not in states:
        raise bad_state(selector.state, states)
    if len(selector.ids) > _IDS_MAX:
        raise bad_request(f"ids: found {len(selector.ids)}, expected at most {_IDS_MAX}.")
    if selector.older_than_s is not None and not 0 <= selector.older_than_s <= 1e9:
        actual = f"{selector.older_than_s:g}"
        raise bad_request(f"older_than_s: found {actual}, expected seconds from 0 to 1e9.")
    conditions = {name: getattr(selector, name) for name in Selector.__struct_fields__}
    return Selector(**conditions | {"domain": selector.domain.removesuffix(".") or selector.domain})


_IDS_MAX = 10_000


class _CommandBody(Selector, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The conditions of a selector, and the fields of every command."""

    dry_run: bool = False
    reason: str = ""


class _HoldBody(_CommandBody, frozen=True, forbid_unknown_fields=True):
    until: str = ""
    new: bool = False


class _ReleaseBody(_CommandBody, frozen=True, forbid_unknown_fields=True):
    as_before: bool = False


class _CancelBody(_CommandBody, frozen=True, forbid_unknown_fields=True):
    bounce: bool = False
    text: str = ""


class _RerouteBody(_CommandBody, frozen=True, forbid_unknown_fields=True):
    to: str = ""


_BODIES: Mapping[Operation, type[_CommandBody]] = {
    Operation.RETRY: _CommandBody,
    Operation.HOLD: _HoldBody,
    Operation.RELEASE: _ReleaseBody,
    Operation.CANCEL: _CancelBody,
    Operation.REROUTE: _RerouteBody,
}


class CommandIssuer(Struct, frozen=True):
    """Who issues a command.

    `way_to` parses the `to` of a reroute or raises ValueError. `release_to` is where a release
    sends captured mail, None if nothing leaves this machine. `target_of` is RouteTable.target_of.
    """

    name: str
    way_to: Callable[[str], RouteLookup]
    target_of: Callable[[str], str]
    clock: Clock
    release_to: RouteLookup | None = None


def read_queue_command(
    operation: Operation, body: bytes, issuer: CommandIssuer
) -> tuple[QueueCommand, dict[str, Any]]:
    """Return the command in the body, and its fields for the log: those that are not the default.
    Of the text of a report, that is its size. Raises ApiError 400.
    """
    command = read_body(body, _BODIES[operation])
    logged = msgspec.to_builtins(command)
    if text := logged.get("text"):
        logged["text"] = counted(len(text), "character")
    try:
        return QueueCommand(
            operation=operation,
            selector=_checked(command, read_body(body, dict[str, Any])),
            who=issuer.name,
            why=command.reason.strip(),
            dry_run=command.dry_run,
            until_us=_until_us(command, issuer.clock),
            new=_holds_new(command, issuer),
            as_before=isinstance(command, _ReleaseBody) and command.as_before,
            to=_next_hops(command, issuer),
            to_text=command.to if isinstance(command, _RerouteBody) else "",
            bounce=isinstance(command, _CancelBody) and command.bounce,
            text=command.text.strip() if isinstance(command, _CancelBody) else "",
        ), logged
    except ValueError as error:
        text = str(error)
        names_a_field = text.partition(" ")[0].endswith(":")
        raise bad_request(f"{text if names_a_field else text[:1].upper() + text[1:]}.") from None


def _holds_new(command: _CommandBody, issuer: CommandIssuer) -> bool:
    """Return whether new mail is held too.

    Raises ApiError 400 for a domain with `alias_of`: its mail is readdressed to the other domain
    before it could be held.
    """
    if not (isinstance(command, _HoldBody) and command.new):
        return False
    address = f"x@{command.domain.removesuffix('.')}"
    if (target := issuer.target_of(address)) != address:
        expected = f"expected {domain_of(target)!r}, of which it is an alias"
        raise bad_request(f"domain: found {command.domain!r}, {expected}.")
    return True


def _until_us(command: _CommandBody, clock: Clock) -> int | None:
    """Return the end of a hold in queue time."""
    ahead_s = seconds_until(command.until, clock) if isinstance(command, _HoldBody) else None
    return None if ahead_s is None else clock.queue_us() + int(ahead_s * 1e6)


def seconds_until(text: str, clock: Clock) -> float | None:
    """Return how far ahead `until` is, a duration or a time; None for "". Raises ApiError 400."""
    if not text:
        return None
    now_us = clock.time_us()
    try:
        return seconds_ahead(text, now_us)
    except ValueError as error:
        ahead = ahead_text(rfc3339(now_us), clock.advanced_s)
        message = f"until: found {quoted(text)}, expected {error}{ahead}."
        raise bad_request(message) from None


def _next_hops(command: _CommandBody, issuer: CommandIssuer) -> RouteLookup | None:
    if isinstance(command, _ReleaseBody):
        return issuer.release_to
    if not isinstance(command, _RerouteBody):
        return None
    try:
        return issuer.way_to(command.to)
    except ValueError as error:
        raise bad_request(f"to: {error}.") from None
