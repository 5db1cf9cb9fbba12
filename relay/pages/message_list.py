"""The first page: the list of messages, newest first, with its search and filters."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.api.message_previews import RowFacts
from relay.api.request_parameters import MESSAGE_STATES
from relay.api.search_text import SearchTextError, parse_search
from relay.base.clock import rfc3339
from relay.journeys.message_list import (
    REPORT,
    ListPosition,
    MessageSearch,
    MessageSummary,
    parse_position,
)
from relay.message.address import own_mailbox
from relay.message.lifecycle import RecipientState, SubmissionState
from relay.pages.content import one_line
from relay.pages.help import first_minute
from relay.pages.refused import refused_tab
from relay.pages.site import PageRequest, PageSite
from relay.pages.undo import UNDO_S

ROWS = 50
READ, UNREAD, DELETE = "read", "unread", "delete"  # what can be done with marked messages
UNDO = "undo"  # of the deletion of one
_COUNTED_MAX = 1000
_MAILBOXES_MAX = 50
_MAILBOX_CHARACTERS_MAX = 320
_TRAIL_MAX = 20
_TRAIL_SEPARATOR = "~"
_LIST_CHARACTERS_MAX = 20_000
_LIST_FIELDS_MAX = 10
_NO_MESSAGES = 'id="no-messages"'
_UNREAD_ROW = ' class="unread"'
_EVERYTHING = MessageSearch()
# What happened last is of interest only while a message is not where it should be.
_WITHOUT_REPLY = (RecipientState.DELIVERED, RecipientState.RELAYED, RecipientState.CAPTURED)
# The tabs; the others are in the search: state:expired.
_TABS: Sequence[str] = (
    RecipientState.DELIVERED,
    RecipientState.RELAYED,
    RecipientState.CAPTURED,
    SubmissionState.SCHEDULED,
    SubmissionState.CONVERTING,
    RecipientState.QUEUED,
    RecipientState.DEFERRED,
    RecipientState.HELD,
    RecipientState.FAILED,
)


class ListView(Struct, frozen=True):
    """What the visitor asks for; "" for all."""

    text: str = ""  # of the search
    mailbox: str = ""  # an address
    kind: str = ""  # REPORT
    state: str = ""  # of a recipient
    before: ListPosition | None = None  # where the page begins; None: with the newest message
    trail: tuple[str, ...] = ()  # the places of the newer pages, the first page is ""
    fault: str = ""  # a sentence if the search is none
    wanted: MessageSearch = _EVERYTHING  # all of it

    def query(self, **changes: Any) -> dict[str, Any]:
        """Return the fields of a link to this view, on its first page."""
        fields = {
            "q": self.text, "mailbox": self.mailbox, "kind": self.kind, "state": self.state,
        }  # fmt: skip
        return {name: value for name, value in (fields | changes).items() if value}

    def here(self) -> dict[str, Any]:
        """Return the fields of a link to this page of the view."""
        before = str(self.before) if self.before else None
        return self.query(before=before, newer=_TRAIL_SEPARATOR.join(self.trail))

    @property
    def begin(self) -> ListPosition | None:
        """Where the page before this one begins; None: with the newest message."""
        return _place(self.trail[-1]) if self.trail else None

    def came(self) -> dict[str, Any]:
        """Return the fields of a link to a message that leads back to this page of the view."""
        return {"list": text} if (text := urlencode(self.here())) else {}

    def older(self, place: ListPosition | None) -> dict[str, Any] | None:
        """Return the fields of a link to the next page."""
        if place is None:
            return None
        trail = (*self.trail, str(self.before) if self.before else "")[-_TRAIL_MAX:]
        return self.query(before=str(place), newer=_TRAIL_SEPARATOR.join(trail))

    def newer(self) -> dict[str, Any] | None:
        """Return the fields of a link to the page before, None on the first one."""
        if self.before is None:
            return None
        if not self.trail:
            return self.query()
        trail = _TRAIL_SEPARATOR.join(self.trail[:-1])
        return self.query(before=self.trail[-1], newer=trail)

    def filters(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the name of each filter, and the fields of a link without it."""
        names = {"q": "search", "mailbox": "mailbox", "kind": "kind", "state": "state"}
        given = self.query()
        return [
            (f"the {names[field]} {value}", self.query(**{field: ""}))
            for field, value in given.items()
        ]


def view_of(query: Collection[tuple[str, str]]) -> ListView:
    """Return the view of a query; fields that are not known are ignored."""
    fields = dict(query)
    text = fields.get("q", "").strip()
    mailbox = fields.get("mailbox", "").strip()[:_MAILBOX_CHARACTERS_MAX]
    state, kind = fields.get("state", ""), fields.get("kind", "")
    if kind != REPORT:
        kind = ""
    fault, wanted = "", _EVERYTHING
    try:
        wanted = parse_search(text)
    except SearchTextError as error:
        fault = str(error)
    if state and state not in MESSAGE_STATES:
        state = ""
    if state and wanted.state not in ("", state):
        fault = f"The search has state:{wanted.state}, and the filter has {state}. Remove one."
    wanted = replace(wanted, mailbox=mailbox, kind=kind, state=state or wanted.state)
    trail = tuple(fields.get("newer", "").split(_TRAIL_SEPARATOR))[:_TRAIL_MAX]
    return ListView(
        text=text,
        mailbox=mailbox,
        kind=kind,
        state=state,
        before=_place(fields.get("before", "")),
        trail=trail if fields.get("before") else (),
        fault=fault,
        wanted=wanted,
    )


def list_of(query: Collection[tuple[str, str]]) -> ListView:
    """Return the view that a link to a message came from, see ListView.came()."""
    text = dict(query).get("list", "")[:_LIST_CHARACTERS_MAX]
    try:
        return view_of(parse_qsl(text, max_num_fields=_LIST_FIELDS_MAX))
    except ValueError:
        return ListView()


def _place(text: str) -> ListPosition | None:
    try:
        return parse_position(text)
    except ValueError:
        return None


async def message_list(request: PageRequest) -> Response:
    """GET /?q=&mailbox=&kind=&state=&before=&newer=."""
    view = view_of(request.http.query)
    render = partial(_fragment, request, view)
    if (stream := request.live_stream(render)) is not None:
        return stream
    fields = dict(request.http.query)
    undo = fields.get("undo", "")
    journeys = request.site.dependencies.journeys
    mailboxes = await journeys.addresses(account=request.principal.account, limit=_COUNTED_MAX)
    live = await request.live_part(render)
    return request.page(
        "list.html",
        first=first_minute(request) if _NO_MESSAGES in live.html else None,
        status=400 if view.fault else 200,
        view=view,
        live=live,
        mailboxes=_mailboxes(mailboxes, view.mailbox),
        states=MESSAGE_STATES,
        hidden=view.here(),
        result=result_sentence(fields),
        undo=undo if undo in request.site.deletions.names else "",
        undo_s=UNDO_S,
        unread=live.html.count(_UNREAD_ROW),
    )


async def list_pane(request: PageRequest) -> Response:
    """GET /messages/{id}?part=list&list=: the list next to a message, see ListView.came()."""
    view = list_of(request.http.query)
    render = partial(_fragment, request, view)
    if (stream := request.live_stream(render)) is not None:
        return stream
    live = await request.live_part(render)
    return request.page("_pane.html", view=view, live=live, hidden=view.here())


async def _fragment(request: PageRequest, view: ListView) -> str:
    """Render the part of the page that changes by itself."""
    site, principal = request.site, request.principal
    rows: Sequence[MessageSummary] = ()
    older = None
    if not view.fault:
        page = await site.handlers.page(view.wanted, principal, limit=ROWS, before=view.before)
        rows = [one for one in page.rows if one.name not in site.deletions.names]
        older = page.older
    facts = await site.handlers.row_facts(rows, principal)
    total, counts = await site.dependencies.journeys.counts(
        account=principal.account, limit=_COUNTED_MAX
    )
    return request.shared_part(
        "_list.html",
        view=view,
        rows=[_row(one, facts[one.name]) for one in rows],
        came=view.came(),
        actions=actions(site),
        matching=_matching(view, len(rows), is_all=older is None, total=total, counts=counts),
        tabs=_tabs(view, total, counts),
        refused=await refused_tab(request),
        is_empty=not (rows or view.filters() or view.before),
        searched=_searched(site, view),
        older=view.older(older),
        newer=view.newer(),
    )


def actions(site: PageSite) -> list[tuple[str, str]]:
    """Return what can be done with messages, and the words of its button."""
    reading = [(READ, "Read"), (UNREAD, "Unread")]
    return [*reading, (DELETE, "Delete")] if site.handlers.is_development else reading


def _searched(site: PageSite, view: ListView) -> str:
    """Return of how many messages a search for words reads the texts at once, "" elsewhere."""
    index = site.dependencies.journeys.places.index
    return f"{index.count:,}" if index is not None and index.count > 1 and view.wanted.words else ""


def _matching(
    view: ListView, rows: int, *, is_all: bool, total: int, counts: Mapping[str, int]
) -> str:
    """Return how many messages match, "" if it is not known without reading them."""
    if is_all and view.before is None:
        return f"{rows:,}"
    number = counts.get(view.state, 0) if view.state else total
    if view.text or view.mailbox or view.kind or not number:
        return ""
    return f"{number:,}{'+' if total >= _COUNTED_MAX else ''}"


def _row(row: MessageSummary, facts: RowFacts) -> dict[str, Any]:
    """Return what a row shows."""
    next_us, preview = row.next_attempt_us, facts.preview
    name = one_line(preview.sender_name)
    listed = [one.address for one in row.recipients]
    to, is_sent_to = preview.to_address or next(iter(listed), ""), True
    if listed and row.recipient_count <= len(listed):
        is_sent_to = own_mailbox(to) in map(own_mailbox, listed)
    return {
        "key": row.name,
        "is_unread": facts.is_unread,
        "state": row.state,
        "at": rfc3339(row.position.at_us),
        "sender": row.sender or "<>",
        "name": "" if name.casefold() == row.sender.casefold() else name,
        "text": one_line(preview.text) if facts.shows_text else "",
        "has_attachments": preview.has_attachments,
        "size_bytes": row.size_bytes,
        "to": one_line(to),
        "to_name": one_line(preview.to_name),
        "more": max(0, row.recipient_count - is_sent_to),
        "subject": one_line(row.subject),
        "reply": "" if row.state in _WITHOUT_REPLY else row.reply,
        "next": None if next_us is None else rfc3339(next_us),
    }


def _tabs(view: ListView, total: int, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a tab for each state that occurs, with the number of messages; "+": or more."""
    more = "+" if total >= _COUNTED_MAX else ""
    tabs = [("", "All", f"{total:,}{more}")]
    tabs += [
        (str(one), one.capitalize(), f"{counts.get(one, 0):,}{more}")
        for one in _TABS
        if counts.get(one) or view.state == one
    ]
    if view.state and view.state not in _TABS:
        tabs.append((view.state, view.state.capitalize(), ""))
    shown: list[dict[str, Any]] = [
        {
            "label": label,
            "number": number,
            "query": view.query(state=state, kind=""),
            "is_chosen": not view.kind and view.state == state,
        }
        for state, label, number in tabs
    ]
    if counts.get(REPORT) or view.kind:
        number, query = f"{counts.get(REPORT, 0):,}{more}", view.query(kind=REPORT, state="")
        is_chosen = bool(view.kind)
        shown.append({"label": "Reports", "number": number, "query": query, "is_chosen": is_chosen})
    return shown


def _mailboxes(addresses: Sequence[str], chosen: str) -> list[str]:
    """Return the addresses to choose from, in alphabetical order."""
    found = list(addresses[:_MAILBOXES_MAX])
    if chosen and chosen.casefold() not in map(str.casefold, found):
        found.append(chosen)
    return sorted(found, key=str.casefold)


_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)
_DONE = {READ: "marked as read", UNREAD: "marked as unread", DELETE: "deleted", UNDO: "kept"}
_WHY_NOT = {
    READ: "The others have no copy in your mailbox.",
    UNREAD: "The others have no copy in your mailbox.",
    DELETE: "The others are being delivered, or were gone already.",
    UNDO: "It was deleted already.",
}


def result_sentence(query: Mapping[str, str]) -> str:
    """Return what an action did, by the fields of its redirect; "" without one."""
    done, count, of = query.get("done", ""), query.get("count", ""), query.get("of", "")
    if done not in _DONE or not (_NUMBER.fullmatch(count) and _NUMBER.fullmatch(of)):
        return ""
    if of == "0":
        return "No message was marked."
    number = "1 message" if count == "1" else f"{int(count):,} messages"
    return f"{number} {_DONE[done]}." + (f" {_WHY_NOT[done]}" if count != of else "")
