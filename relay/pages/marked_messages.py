"""What a visitor does with messages of the list: mark as read or unread, or delete.

With marked messages, or with all that match. Only a development relay deletes. A deletion, and
what is done with all, is confirmed on a page that says how many. The form on it names them: mail
that arrives meanwhile is not among them.
"""

import asyncio
from collections.abc import Sequence

from starlette.responses import Response

from relay.api.request_parameters import require_method
from relay.http.errors import ApiError, quoted
from relay.pages.message_list import DELETE, READ, ROWS, ListView, actions, view_of
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
    action = _checked(form.text("action"), request)
    view = view_of([(name, form.text(name)) for name in _VIEW_FIELDS])
    if action == DELETE and names and not form.text("confirmed"):
        return await _question(request, action, names, view=view)
    done = await _apply(action, names, request)
    request.site.dependencies.changes.notify()
    if request.http.headers.get("hx-request") == "true":
        return Response(status_code=204)
    return request.redirect("", **view.here(), done=action, count=done, of=len(names))


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
    done = 0
    for at in range(0, len(names), _AT_ONCE):
        removals = (_remove(name, request) for name in names[at : at + _AT_ONCE])
        results = await asyncio.gather(*removals, return_exceptions=True)
        failures = [one for one in results if isinstance(one, BaseException)]
        if failures:
            raise failures[0]
        done += results.count(True)
    return done


async def _remove(name: str, request: PageRequest) -> bool:
    """Remove a message; return False if it is gone, or being delivered."""
    try:
        await request.site.handlers.remove_message(name, request.principal)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return False
    return True
