"""The first page: the list of messages, newest first, with search, filters and actions.

The actions mark messages as read or unread, or delete them.

An action applies to marked messages, or to all that match. Only a development relay deletes. The
deletion of one message can be undone for a while. To delete more, or to act on all, a visitor
confirms on a page that says how many. Its form names the messages, so mail that arrives meanwhile
is not affected.

/refused has what SMTP sessions refused, newest first; the list has a tab that leads there.
"""

import asyncio
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import Response

from relay.base.clock import rfc3339
from relay.base.message.address import lower_case, own_mailbox
from relay.base.message.lifecycle import RecipientState, SubmissionState
from relay.front_door.api.dependencies import Principal
from relay.front_door.api.handlers import Handlers
from relay.front_door.api.message_source import RowFacts
from relay.front_door.api.request_parameters import MESSAGE_STATES
from relay.front_door.api.search_text import SearchTextError, parse_search
from relay.front_door.api.tags import tags_of
from relay.front_door.http.errors import ApiError, bad_request, quoted
from relay.front_door.pages.content import one_line
from relay.front_door.pages.help import first_minute
from relay.front_door.pages.site import PageRequest, PageSite
from relay.front_door.pages.undo import UNDO_S
from relay.store.journeys.message_list import (
    REPORT,
    ListPosition,
    MessageSearch,
    MessageSummary,
    parse_position,
)
from relay.store.journeys.sentences import REPORT_WAITS
from relay.transport.refusals.refusal import PAGE_MAX, is_cursor

ROWS = 50
READ, UNREAD, DELETE = "read", "unread", "delete"  # actions for marked messages
UNDO = "undo"  # for the deletion of one message
_COUNTED_MAX = 1000
_ADDRESS_CHARACTERS_MAX = 320
_TRAIL_MAX = 20
_TRAIL_SEPARATOR = "~"
_LIST_CHARACTERS_MAX = 20_000
_LIST_FIELDS_MAX = 10
_NO_MESSAGES = 'id="no-messages"'
_UNREAD_ROW = ' class="unread"'
_EVERYTHING = MessageSearch()
# The last reply is shown only while a message has not reached its destination.
_REMOVED = "removed by a mail program; the queue's copy stays"
_FAILED = (RecipientState.FAILED, RecipientState.EXPIRED)
_WITHOUT_REPLY = (RecipientState.DELIVERED, RecipientState.RELAYED, RecipientState.CAPTURED)
# States with a tab; others can be searched: state:expired.
_TABS: Sequence[str] = (
    RecipientState.FAILED,
    RecipientState.DEFERRED,
    RecipientState.HELD,
    RecipientState.QUEUED,
    SubmissionState.SCHEDULED,
    SubmissionState.CONVERTING,
    RecipientState.DELIVERED,
    RecipientState.RELAYED,
    RecipientState.CAPTURED,
)
NAMES_MAX = 10_000
_LISTED_MAX = 20
_AT_ONCE = 8  # deletions at once, so that they share commits
_SEPARATOR = "_"  # occurs in no name, and is not percent-encoded in a form
_VIEW_FIELDS = ("q", "mailbox", "state", "before", "newer")


class ListView(Struct, frozen=True):
    """The search, filters and page that a visitor requests; "" for all."""

    text: str = ""  # of the search
    mailbox: str = ""  # an address
    kind: str = ""  # REPORT
    state: str = ""  # of a recipient
    before: ListPosition | None = None  # where the page begins; None: with the newest message
    trail: tuple[str, ...] = ()  # the places of the newer pages, the first page is ""
    fault: str = ""  # a sentence if the search is invalid
    search: MessageSearch = _EVERYTHING  # all conditions

    def query(self, **changes: Any) -> dict[str, Any]:
        """Return the fields of a link to this view, on its first page."""
        fields = {
            "q": self.text,
            "mailbox": self.mailbox,
            "kind": self.kind,
            "state": self.state,
        }
        return {name: value for name, value in (fields | changes).items() if value}

    def here(self) -> dict[str, Any]:
        """Return the fields of a link to this page of the view."""
        before = str(self.before) if self.before else None
        return self.query(before=before, newer=_TRAIL_SEPARATOR.join(self.trail))

    @property
    def begin(self) -> ListPosition | None:
        """The place at which the previous page begins; None: with the newest message."""
        return _place(self.trail[-1]) if self.trail else None

    def came(self) -> dict[str, Any]:
        """Return the fields of a link to a message with which the message links back to
        this page.
        """
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
        trail = self.trail or ("",)
        return self.query(before=trail[-1], newer=_TRAIL_SEPARATOR.join(trail[:-1]))

    def filters(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the name of each filter, and the fields of a link without it."""
        return [
            (f"the {'search' if field == 'q' else field} {value}", self.query(**{field: ""}))
            for field, value in self.query().items()
        ]


def view_of(query: Collection[tuple[str, str]], now_us: int) -> ListView:
    """Return the view of a query; fields that are not known are ignored."""
    fields = dict(query)
    text = fields.get("q", "").strip()
    mailbox = fields.get("mailbox", "").strip()[:_ADDRESS_CHARACTERS_MAX]
    kind = REPORT if fields.get("kind") == REPORT else ""
    state = fields.get("state", "")
    state = state if state in MESSAGE_STATES else ""
    fault, search = "", _EVERYTHING
    try:
        search = parse_search(text, now_us)
    except SearchTextError as error:
        fault = str(error)
    if state and search.state not in ("", state):
        fault = f"The search has state:{search.state}, and the filter has {state}. Remove one."
    search = replace(search, mailbox=mailbox, kind=kind, state=state or search.state)
    trail = tuple(fields.get("newer", "").split(_TRAIL_SEPARATOR))[:_TRAIL_MAX]
    return ListView(
        text=text,
        mailbox=mailbox,
        kind=kind,
        state=state,
        before=_place(fields.get("before", "")),
        trail=trail if fields.get("before") else (),
        fault=fault,
        search=search,
    )


def list_of(request: PageRequest) -> ListView:
    """Return the view that a link to a message came from, see ListView.came()."""
    text = dict(request.http.query).get("list", "")[:_LIST_CHARACTERS_MAX]
    try:
        return view_of(parse_qsl(text, max_num_fields=_LIST_FIELDS_MAX), request.now_us)
    except ValueError:
        return ListView()


def _place(text: str) -> ListPosition | None:
    try:
        return parse_position(text)
    except ValueError:
        return None


async def message_list(request: PageRequest) -> Response:
    """GET /?q=&mailbox=&kind=&state=&before=&newer=; with part=mailboxes the list of these.

    For the beginning of an address, redirect to the first address that begins so.
    """
    view = view_of(request.http.query, request.now_us)
    journeys, account = request.site.dependencies.journeys, request.principal.account
    if ("part", "mailboxes") in request.http.query:
        addresses = await journeys.addresses(account=account)
        return request.page("_mailboxes.html", addresses=addresses)
    if view.mailbox and not view.mailbox.partition("@")[2]:
        begin = lower_case(view.mailbox)
        addresses = await journeys.addresses(account=account)
        if matching := [address for address in addresses if own_mailbox(address).startswith(begin)]:
            return request.redirect("", **view.query(mailbox=matching[0]))
    render = partial(_fragment, request, view)
    if (stream := request.live_stream(render)) is not None:
        return stream
    fields = dict(request.http.query)
    undo = fields.get("undo", "")
    live = await request.live_part(render)
    return request.page(
        "list.html",
        first=first_minute(request) if _NO_MESSAGES in live.html else None,
        status=400 if view.fault else 200,
        view=view,
        live=live,
        states=MESSAGE_STATES,
        hidden=view.here(),
        result=result_sentence(fields),
        undo=undo if undo in request.site.deletions.names else "",
        undo_s=UNDO_S,
        unread=live.html.count(_UNREAD_ROW),
    )


async def list_pane(request: PageRequest) -> Response:
    """GET /messages/{id}?part=list&list=: the list next to a message, see ListView.came()."""
    view = list_of(request)
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
        page = await site.handlers.page(view.search, principal, limit=ROWS, before=view.before)
        rows = [row for row in page.rows if row.name not in site.deletions.names]
        older = page.older
    facts = await site.handlers.row_facts(rows, principal)
    tags = await tags_of(site.dependencies, [row.name for row in rows])
    total, counts = await site.dependencies.journeys.counts(
        account=principal.account, limit=_COUNTED_MAX
    )
    return request.shared_part(
        "_list.html",
        view=view,
        rows=[_row(row, facts[row.name], tags.get(row.name, ())) for row in rows],
        came=urlencode(view.came()),
        actions=actions(site),
        matching=_matching(view, len(rows), is_all=older is None, total=total, counts=counts),
        tabs=_tabs(view, total, counts),
        refused=await refused_tab(request),
        is_empty=not (rows or view.filters() or view.before),
        searched=_searched(site, view),
        sees_all=principal.account is None,
        older=view.older(older),
        newer=view.newer(),
    )


def actions(site: PageSite) -> list[tuple[str, str]]:
    """Return the actions, each with the words of its button."""
    reading = [(READ, "Read"), (UNREAD, "Unread")]
    return [*reading, (DELETE, "Delete")] if site.handlers.is_development else reading


def _searched(site: PageSite, view: ListView) -> str:
    """Return the number of messages whose texts a search for words reads; "" without words."""
    index = site.dependencies.journeys.places.index
    return f"{index.count:,}" if index is not None and index.count > 1 and view.search.words else ""


def _matching(
    view: ListView, rows: int, *, is_all: bool, total: int, counts: Mapping[str, int]
) -> str:
    """Return how many messages match, "" if that needs their texts."""
    if is_all and view.before is None:
        return f"{rows:,}"
    number = counts.get(view.state, 0) if view.state else total
    if view.text or view.mailbox or view.kind or not number:
        return ""
    return f"{number:,}{'+' if total >= _COUNTED_MAX else ''}"


def _row(row: MessageSummary, facts: RowFacts, tags: Sequence[str]) -> SimpleNamespace:
    """Return what a row shows."""
    next_us, preview = row.next_attempt_us, facts.preview
    name = one_line(preview.sender_name)
    listed = [recipient.address for recipient in row.recipients]
    to, is_sent_to = preview.to_address or next(iter(listed), ""), True
    if listed and row.recipient_count <= len(listed):
        is_sent_to = own_mailbox(to) in map(own_mailbox, listed)
    return SimpleNamespace(
        key=row.name,
        is_unread=facts.is_unread,
        state=row.state,
        at=rfc3339(row.position.at_us),
        sender=row.sender or "<>",
        name="" if own_mailbox(name) == own_mailbox(row.sender) else name,
        text=one_line(preview.text) if facts.shows_text else "",
        has_attachments=preview.has_attachments,
        size_bytes=row.size_bytes,
        to=one_line(to),
        to_name=one_line(preview.to_name),
        more=max(0, row.recipient_count - is_sent_to),
        subject=one_line(row.subject),
        failed=_failed(row),
        note=_REMOVED if facts.is_removed else _note(row),
        next=None if next_us is None else rfc3339(next_us),
        tags=tags,
    )


def _failed(row: MessageSummary) -> str:
    """Return how many recipients failed, "" if none did or the state of the message says so."""
    number = sum(to.state in _FAILED for to in row.recipients)
    if not number or row.state in _FAILED:
        return ""
    return f"{'' if row.recipient_count == len(row.recipients) else 'at least '}{number} failed"


def _note(row: MessageSummary) -> str:
    """Return the last reply while it matters, and why Relay's own report is captured."""
    if row.state != RecipientState.CAPTURED or row.sender or row.client or row.submission_id:
        return "" if row.state in _WITHOUT_REPLY else row.reply
    return f"{row.state}: {REPORT_WAITS}"


def _tabs(view: ListView, total: int, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return a tab for each state that occurs, with the number of messages; "+": or more."""
    more = "+" if total >= _COUNTED_MAX else ""
    states = [str(state) for state in _TABS if counts.get(state) or view.state == state]
    tabs = [("All", "", "", f"{total:,}{more}")]
    if counts.get(REPORT) or view.kind:
        tabs.append(("Reports", "", REPORT, f"{counts.get(REPORT, 0):,}{more}"))
    tabs += [(state.capitalize(), state, "", f"{counts.get(state, 0):,}{more}") for state in states]
    if view.state not in ("", *_TABS):
        tabs.append((view.state.capitalize(), view.state, "", ""))
    return [
        {
            "label": label,
            "number": number,
            "query": view.query(state=state, kind=kind),
            "is_chosen": (kind or state) == (view.kind or view.state),
        }
        for label, state, kind, number in tabs
    ]


_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)
_DONE = {READ: "marked as read", UNREAD: "marked as unread", DELETE: "deleted", UNDO: "kept"}
_WHY_NOT = {
    READ: "The others have no copy in your mailbox.",
    UNREAD: "The others have no copy in your mailbox.",
    DELETE: "The others are being delivered, or were gone already.",
    UNDO: "It was deleted already.",
}


def result_sentence(query: Mapping[str, str]) -> str:
    """Return a sentence on what an action did, by the fields of its redirect; "" without one."""
    done, count, of = query.get("done", ""), query.get("count", ""), query.get("of", "")
    if done not in _DONE or not (_NUMBER.fullmatch(count) and _NUMBER.fullmatch(of)):
        return ""
    if of == "0":
        return "No message was marked."
    number = "1 message" if count == "1" else f"{int(count):,} messages"
    return f"{number} {_DONE[done]}." + (f" {_WHY_NOT[done]}" if count != of else "")


async def refused_page(request: PageRequest) -> Response:
    """GET /refused?address=&before=; fields that are not known are ignored."""
    fields = dict(request.http.query)
    address = fields.get("address", "").strip()[:_ADDRESS_CHARACTERS_MAX]
    before = fields.get("before", "") if is_cursor(fields.get("before", "")) else ""

    async def render() -> str:
        parameters = {"address": address, "before": before, "limit": str(ROWS)}
        query = {name: value for name, value in parameters.items() if value}
        page = await request.site.handlers.refused(query, request.principal)
        conditions = {"address": address or None}
        return request.shared_part(
            "_refused.html",
            rows=page.refused,
            tab=await refused_tab(request),
            address=address,
            sees_all=request.site.handlers.is_development or request.principal.account is None,
            newest=conditions if before else None,
            older=conditions | {"before": page.older} if page.older else None,
        )

    if (stream := request.live_stream(render)) is not None:
        return stream
    return request.page("refused.html", address=address, live=await request.live_part(render))


async def refused_tab(request: PageRequest) -> dict[str, Any]:
    """Return the label of the tab, and its number: "" if there are none, "+" for more."""
    limit = {"limit": str(PAGE_MAX)}
    page = await request.site.handlers.refused(limit, request.principal)
    times = sum(refusal.times for refusal in page.refused)
    more = "+" if page.older else ""
    return {"label": "Refused", "number": f"{times:,}{more}" if times else ""}


async def marked_messages(request: PageRequest) -> Response:
    """POST /messages with `id`s or `names`, an `action`, and the fields of the list to go back to.

    GET /messages?action=&q=&mailbox=&state= asks about all that match.
    """
    if request.http.method == "GET":
        action = dict(request.http.query).get("action")
        return request.redirect() if action is None else await _all_that_match(request, action)
    form = request.form
    names = form.every("id")[:ROWS] + form.text("names").split(_SEPARATOR)
    names = list(dict.fromkeys(filter(None, names)))[:NAMES_MAX]
    view = view_of([(name, form.text(name)) for name in _VIEW_FIELDS], request.now_us)
    if form.text("action") == UNDO:
        return await _undo(request, names, view=view)
    action = _checked(form.text("action"), request)
    if action == DELETE and names and not form.text("confirmed"):
        if len(names) == 1 and (name := await _delete_later(request, names[0])):
            return request.redirect("", **view.here(), undo=name)
        return await _question(request, action, names, view=view)
    done = await _apply(action, names, request)
    request.site.dependencies.changes.notify()
    if request.http.headers.get("hx-request") == "true":
        return Response(status_code=204)
    return request.redirect("", **view.here(), done=action, count=done, of=len(names))


async def _delete_later(request: PageRequest, name: str) -> str:
    """Delete one message later unless that is undone; return its name, "" if a question is needed.
    Raises ApiError 404.
    """
    journey = await request.site.handlers.message(name, request.principal)
    site, principal = request.site, request.principal

    async def remove() -> None:
        await _remove(journey.key, request.site.handlers, principal)
        site.dependencies.changes.notify()

    if not site.deletions.add(journey.key, remove):
        return ""
    site.dependencies.changes.notify()
    return journey.key


async def _undo(request: PageRequest, names: Sequence[str], *, view: ListView) -> Response:
    """Keep messages whose deletion can be undone."""
    count = sum(map(request.site.deletions.take_back, names))
    request.site.dependencies.changes.notify()
    return request.redirect("", **view.here(), done=UNDO, count=count, of=len(names))


def _checked(action: str, request: PageRequest) -> str:
    """Return the action. Raises ApiError 400."""
    if action not in dict(actions(request.site)):
        raise bad_request(f"There is no action {quoted(action)}.")
    return action


async def _all_that_match(request: PageRequest, action: str) -> Response:
    action = _checked(action, request)
    view = view_of(request.http.query, request.now_us)
    if view.fault:
        raise bad_request(view.fault)
    names, is_more = await request.site.dependencies.journeys.names(
        request.site.handlers.with_reader(view.search, request.principal),
        account=request.principal.account,
        limit=NAMES_MAX,
    )
    return await _question(request, action, names, view=view, is_more=is_more)


async def _question(
    request: PageRequest,
    action: str,
    names: Sequence[str],
    *,
    view: ListView,
    is_more: bool = False,
) -> Response:
    """Return the page that asks for confirmation."""
    rows = await request.site.dependencies.journeys.rows(
        names[:_LISTED_MAX], account=request.principal.account
    )
    return request.page(
        "marked.html",
        action=action,
        names=_SEPARATOR.join(names),
        count=len(names),
        is_more=is_more,
        rows=rows,
        back=view.here(),
    )


async def _apply(action: str, names: Sequence[str], request: PageRequest) -> int:
    """Apply an action to messages; return how many were changed."""
    if action != DELETE:
        return await request.site.handlers.mark_messages(
            names, request.principal, is_read=action == READ
        )
    done = 0
    remove = partial(_remove, handlers=request.site.handlers, principal=request.principal)
    for at in range(0, len(names), _AT_ONCE):
        removals = map(remove, names[at : at + _AT_ONCE])
        results = await asyncio.gather(*removals, return_exceptions=True)
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise failures[0]
        done += results.count(True)
    return done


async def _remove(name: str, handlers: Handlers, principal: Principal) -> bool:
    """Remove a message; return False if it is gone, or being delivered."""
    try:
        await handlers.remove_message(name, principal)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return False
    return True
