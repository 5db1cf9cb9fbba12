"""The first page: the list of messages, newest first."""

from starlette.responses import Response

from relay.http.http_request import HttpRequest
from relay.journeys.message_search import MessageSearch
from relay.pages.access import Visitor
from relay.pages.first_minute import first_minute
from relay.pages.site import PageSite

_ROWS = 50


async def message_list(request: HttpRequest, visitor: Visitor, site: PageSite) -> Response:
    """GET /."""
    found = await site.dependencies.journeys.search(
        MessageSearch(), account=visitor.principal.account, limit=_ROWS
    )
    return site.page(
        request, visitor, "list.html", messages=found.messages, first=first_minute(request, site)
    )
