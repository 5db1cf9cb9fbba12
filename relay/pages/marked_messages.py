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
from relay.http.http_request import HttpRequest
from relay.pages.access import Visitor
from relay.pages.forms import read_form
from relay.pages.message_list import DELETE, READ, ROWS, UNREAD, ListView, view_of
from relay.pages.site import PageSite

NAMES_MAX = 10_000
_LISTED_MAX = 20
_AT_ONCE = 8  # deletions, so that they share commits
_SEPARATOR = "_"  # is in no name, and is not percent-encoded in a form
_VIEW_FIELDS = ("q", "mailbox", "state", "before", "newer")


async def marked_messages(request: HttpRequest, visitor: Visitor, site: PageSite) -> Response:
    """POST /messages with `id`s or `names`, an `action`, and the fields of the list to go back to.

    GET /messages?action=&q=&mailbox=&state= asks about all that match.
    """
    require_method(request, "GET", "POST")
    if request.method == "GET":
        return await _all_that_match(request, visitor, site)
    form = await read_form(request, visitor.csrf)
    names = form.every("id")[:ROWS] + form.text("names").split(_SEPARATOR)
    names = list(dict.fromkeys(filter(None, names)))[:NAMES_MAX]
    action = _checked(form.text("action"), site)
    view = view_of([(name, form.text(name)) for name in _VIEW_FIELDS])
    if action == DELETE and names and not form.text("confirmed"):
        return await _question(action, names, request, visitor=visitor, site=site, view=view)
    done = await _apply(action, names, visitor, site=site)
    site.dependencies.changes.notify()
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204)
    return site.redirect(request, "", **view.here(), done=action, count=done, of=len(names))


def _checked(action: str, site: PageSite) -> str:
    """Return the action. Raises ApiError 400."""
    if action not in (READ, UNREAD, DELETE) or (
        action == DELETE and not site.handlers.is_development
    ):
        raise ApiError(400, "BadRequest", f"There is no action {quoted(action)}.")
    return action


async def _all_that_match(request: HttpRequest, visitor: Visitor, site: PageSite) -> Response:
    action = _checked(dict(request.query).get("action", ""), site)
    view = view_of(request.query)
    if view.fault:
        raise ApiError(400, "BadRequest", view.fault)
    names, is_more = await site.dependencies.journeys.names(
        site.handlers.with_reader(view.wanted, visitor.principal),
        account=visitor.principal.account,
        limit=NAMES_MAX,
    )
    return await _question(
        action, names, request, visitor=visitor, site=site, view=view, is_more=is_more
    )


async def _question(
    action: str,
    names: Sequence[str],
    request: HttpRequest,
    *,
    visitor: Visitor,
    site: PageSite,
    view: ListView,
    is_more: bool = False,
) -> Response:
    """Return the page that asks before an action."""
    rows = await site.dependencies.journeys.rows(
        names[:_LISTED_MAX], account=visitor.principal.account
    )
    return site.page(
        request, visitor, "marked.html",
        action=action, names=_SEPARATOR.join(names), count=len(names), is_more=is_more,
        rows=rows, back=view.here(),
    )  # fmt: skip


async def _apply(action: str, names: Sequence[str], visitor: Visitor, *, site: PageSite) -> int:
    """Apply an action to messages; return how many were changed."""
    if action != DELETE:
        is_read = action == READ
        return await site.handlers.mark_messages(names, visitor.principal, is_read=is_read)
    done = 0
    for at in range(0, len(names), _AT_ONCE):
        removals = (_remove(name, visitor, site) for name in names[at : at + _AT_ONCE])
        results = await asyncio.gather(*removals, return_exceptions=True)
        failures = [one for one in results if isinstance(one, BaseException)]
        if failures:
            raise failures[0]
        done += results.count(True)
    return done


async def _remove(name: str, visitor: Visitor, site: PageSite) -> bool:
    """Remove a message; return False if it is gone, or being delivered."""
    try:
        await site.handlers.remove_message(name, visitor.principal)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return False
    return True
