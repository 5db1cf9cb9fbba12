"""The page of the queue: entries by conditions, like `relay queue list`, and operations on them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace
from starlette.responses import Response

from relay.base.accounts.account import Role
from relay.base.clock import id_time_us
from relay.base.message.lifecycle import FINAL, LIVE, RecipientState, hold_text
from relay.front_door.api.request_parameters import selector_of_query
from relay.front_door.http.errors import ApiError, bad_request
from relay.front_door.pages.queue_change import (
    EFFECTS,
    LABELS,
    QueueSelection,
    result_sentence,
    selection_of,
)
from relay.front_door.pages.site import PageRequest, PageSite
from relay.store.journeys.wording import hop_words
from relay.store.spool.types import FIRST_KEY, WAITING, Key

_ROWS = 50
_ALL = "all"  # in place of a state: captured mail too
_REASONS_MAX = 10
_OPERATIONS = tuple((str(operation), LABELS[operation], EFFECTS[operation]) for operation in LABELS)
FIELDS = (
    ("sender", "Sender", "*@example.org"),
    ("recipient", "Recipient", "bob@*"),
    ("domain", "Domain", "example.org"),
    ("next_hop", "Goes to", "mx:example.org"),
    ("older_than", "Older than", "2h"),
)


async def queue_page(request: PageRequest) -> Response:
    """GET /queue?CONDITION=&after=ENTRY; with `live`, the stream of its entries."""
    site, query, principal = request.site, request.http.query, request.principal
    principal.check_may_read()
    selection, after = _without_captured(selection_of(query), site), _entry_name(query)
    fault = ""
    try:
        selector_of_query(selection.query())
    except ApiError as error:
        fault = error.message

    async def render() -> str:
        entries = [] if fault else await _entries(request, selection, after)
        stats = await site.handlers.queue_stats(principal)
        now_us = site.dependencies.clock.time_us()
        return request.shared_part(
            "_queue.html",
            fault=fault,
            selection=selection,
            rows=[_row(entry, now_us) for entry in entries],
            reasons=_reasons(entries),
            tabs=_tabs(stats, selection, site),
            stats=stats,
            more=_name_of(entries[-1]) if len(entries) == _ROWS else "",
            is_first=after == FIRST_KEY,
            before_queue=await site.dependencies.journeys.count_before_queue(),
            operations=_OPERATIONS if principal.role is Role.OPERATE else (),
        )

    if (stream := request.live_stream(render)) is not None:
        return stream
    return request.page(
        "queue.html",
        status=400 if fault else 200,
        fault=fault,
        selection=selection,
        fields=FIELDS,
        states=tuple(map(str, (WAITING, *LIVE) if site.handlers.is_development else LIVE)),
        result=result_sentence(query),
        live=await request.live_part(render),
    )


def _without_captured(selection: QueueSelection, site: PageSite) -> QueueSelection:
    """Return the selection.

    A development relay leaves out captured mail, unless its state or "all" is selected.
    """
    conditions = dict(selection.conditions)
    if conditions.get("state") == _ALL:
        del conditions["state"]
    elif site.handlers.is_development and not selection.ids:
        conditions.setdefault("state", WAITING)
    return replace(selection, conditions=conditions)


async def _entries(
    request: PageRequest, selection: QueueSelection, after: Key
) -> Sequence[Mapping[str, Any]]:
    """Return the entries of a page. Raises ApiError 400."""
    query = selection.query() | {"limit": str(_ROWS)}
    return await request.site.handlers.queue_entries(query, request.principal, after=after)


def _name_of(entry: Mapping[str, Any]) -> str:
    return f"{entry['id']}-{entry['entry']}"


def _entry_name(query: Collection[tuple[str, str]]) -> Key:
    """Return the key of the entry after which the list begins. Raises ApiError 400."""
    text = next((value for name, value in query if name == "after" and value), "")
    if not text:
        return FIRST_KEY
    name, _, number = text.partition("-")
    if not (name.isalnum() and number.isascii() and number.isdecimal() and len(number) < 10):
        raise bad_request("after: expected the name of an entry, ID-NUMBER.")
    return name, int(number)


def _row(entry: Mapping[str, Any], now_us: int) -> dict[str, Any]:
    """Return the values of a row."""
    accepted_us = id_time_us(entry["id"])
    waiting = [recipient for recipient in entry["recipients"] if recipient["state"] not in FINAL]
    return {
        **entry,
        "recipients": waiting,
        "name": _name_of(entry),
        "age": _age((now_us - accepted_us) / 1e6) if accepted_us else "",
        "hop": hop_words(entry["next_hop"]),
        "reply": _reply(entry),
    }


def _age(seconds: float) -> str:
    """Return an age in its largest unit, so that the text changes seldom."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "under 1 min"


def _reply(entry: Mapping[str, Any]) -> str:
    """Return the last reply of the first recipient that waits, or why the entry is held."""
    replies = [
        recipient["reply"] for recipient in entry["recipients"] if recipient["state"] not in FINAL
    ]
    held = hold_text(str(entry.get("reason", "")), str(entry.get("rule", "")))
    return next(filter(None, replies), "") or held


def _reasons(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return why the listed entries wait: next hop and last reply, the most frequent first.

    Captured mail waits for nothing.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for entry in entries:
        if entry["state"] == RecipientState.CAPTURED:
            continue
        counts[entry["next_hop"], str(entry["state"]), _reply(entry)] += 1
    return [
        {"next_hop": hop, "hop": hop_words(hop), "state": state, "reply": reply, "entries": number}
        for (hop, state, reply), number in counts.most_common(_REASONS_MAX)
    ]


def _tabs(
    stats: Mapping[str, Any], selection: QueueSelection, site: PageSite
) -> list[dict[str, Any]]:
    """Return a tab for each state, with the number of entries in it."""
    counts = stats.get("entries", {})
    chosen = selection.conditions.get("state", "")
    first, number = "", sum(counts.values())
    if site.handlers.is_development:
        first, number = WAITING, number - counts.get(RecipientState.CAPTURED, 0)
    states = {first: (first.capitalize() or "All", number)} | {
        str(state): (state.capitalize(), counts.get(str(state), 0)) for state in LIVE
    }
    return [
        {"state": state, "label": label, "entries": number, "is_chosen": chosen == state}
        for state, (label, number) in states.items()
    ]
