"""What a visitor does with messages of the list: mark as read or unread, or delete.

With marked messages, or with all that match. Only a development relay deletes. The deletion of one
can be undone for a while. That of more, and what is done with all, is confirmed on a page that says
how many. The form on it names them: mail that arrives meanwhile is not among them.
"""

import asyncio
from collections.abc import Sequence

from starlette.responses import Response

from relay.api.dependencies import Principal
from relay.api.handlers import Handlers
from relay.api.request_parameters import require_method
from relay.http.errors import ApiError, quoted
from relay.pages.message_list import DELETE, READ, ROWS, UNDO, ListView, actions, view_of
from relay.pages.site import PageRequest

NAMES_MAX = 10_000
_LISTED_MAX = 20
_AT_ONCE = 8  # deletions, so that they share commits
_SEPARATOR = "_"  # is in no name, and is not percent-encoded in a form
_VIEW_FIELDS = ("q", "mailbox", "state", "before", "newer")


async def marked_messages(request: PageRequest) -> Response:
    """POST /messages with `id`s or `names`, an `action`, and the fields of the list to go back to.

    GET /messages?action=&q=&mailbox=&state= asks about all that match.
    """
    require_method(request.http, "GET", "POST")
    if request.http.method == "GET":
        return await _all_that_match(request)
    form = request.form
    names = form.every("id")[:ROWS] + form.text("names").split(_SEPARATOR)
    names = list(dict.fromkeys(filter(None, names)))[:NAMES_MAX]
    view = view_of([(name, form.text(name)) for name in _VIEW_FIELDS])
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
    """Have one message deleted unless that is undone; return its name, "" if it is to be asked
    about. Raises ApiError 404.
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
        raise ApiError(400, "BadRequest", f"There is no action {quoted(action)}.")
    return action


async def _all_that_match(request: PageRequest) -> Response:
    action = _checked(dict(request.http.query).get("action", ""), request)
    view = view_of(request.http.query)
    if view.fault:
        raise ApiError(400, "BadRequest", view.fault)
    names, is_more = await request.site.dependencies.journeys.names(
        request.site.handlers.with_reader(view.wanted, request.principal),
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
    """Return the page that asks before an action."""
    rows = await request.site.dependencies.journeys.rows(
        names[:_LISTED_MAX], account=request.principal.account
    )
    return request.page(
        "marked.html",
        action=action, names=_SEPARATOR.join(names), count=len(names), is_more=is_more,
        rows=rows, back=view.here(),
    )  # fmt: skip


async def _apply(action: str, names: Sequence[str], request: PageRequest) -> int:
    """Apply an action to messages; return how many were changed."""
    if action != DELETE:
        return await request.site.handlers.mark_messages(
            names, request.principal, is_read=action == READ
        )
    done, handlers = 0, request.site.handlers
    for at in range(0, len(names), _AT_ONCE):
        removals = (
            _remove(name, handlers, request.principal) for name in names[at : at + _AT_ONCE]
        )
        results = await asyncio.gather(*removals, return_exceptions=True)
        failures = [one for one in results if isinstance(one, BaseException)]
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
