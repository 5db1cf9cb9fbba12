"""What a visitor does with marked messages of the list: mark as read or unread, or delete.

Only a development relay deletes. A deletion is confirmed on a page that says how many.
"""

from starlette.responses import Response

from relay.api.request_parameters import require_method
from relay.http.errors import ApiError, quoted
from relay.http.http_request import HttpRequest
from relay.pages.access import Visitor
from relay.pages.forms import read_form
from relay.pages.message_list import DELETE, READ, ROWS, UNREAD, view_of
from relay.pages.site import PageSite

_VIEW_FIELDS = ("q", "mailbox", "state", "before", "newer")


async def marked_messages(request: HttpRequest, visitor: Visitor, site: PageSite) -> Response:
    """POST /messages with `id`s, an `action`, and the fields of the list to go back to."""
    require_method(request, "POST")
    form = await read_form(request, visitor.csrf)
    keys = form.every("id")[:ROWS]
    action = form.text("action")
    if action not in (READ, UNREAD, DELETE) or (
        action == DELETE and not site.handlers.is_development
    ):
        raise ApiError(400, "BadRequest", f"There is no action {quoted(action)}.")
    back = view_of([(name, form.text(name)) for name in _VIEW_FIELDS]).here()
    if action == DELETE and keys and not form.text("confirmed"):
        return site.page(request, visitor, "delete.html", keys=keys, count=len(keys), back=back)
    done = 0
    for key in keys:
        done += await _apply(action, key, visitor, site=site)
    site.dependencies.changes.notify()
    if request.headers.get("hx-request") == "true":
        return Response(status_code=204)
    return site.redirect(request, "", **back, done=action, count=done, of=len(keys))


async def _apply(action: str, key: str, visitor: Visitor, *, site: PageSite) -> bool:
    """Apply an action to a message; return whether it was changed."""
    if action != DELETE:
        is_read = action == READ
        return await site.handlers.mark_message(key, visitor.principal, is_read=is_read)
    try:
        await site.handlers.remove_message(key, visitor.principal)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
        return False
    return True
