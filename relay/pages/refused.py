"""The page of what SMTP sessions refused, newest first, and its tab in the list of messages."""

from typing import Any

from starlette.responses import Response

from relay.api.request_parameters import require_method
from relay.http.http_request import HttpRequest
from relay.pages.access import Visitor
from relay.pages.site import PageSite
from relay.refusals.refusal import PAGE_MAX, is_cursor

_ROWS = 50
_ADDRESS_CHARACTERS_MAX = 320


async def refused_page(request: HttpRequest, visitor: Visitor, site: PageSite) -> Response:
    """GET /refused?address=&before=; fields that are not known are ignored."""
    require_method(request, "GET")
    fields = dict(request.query)
    address = fields.get("address", "").strip()[:_ADDRESS_CHARACTERS_MAX]
    before = fields.get("before", "") if is_cursor(fields.get("before", "")) else ""

    async def render() -> str:
        given = {"address": address, "before": before, "limit": str(_ROWS)}
        query = {name: value for name, value in given.items() if value}
        page = await site.handlers.refused(query, visitor.principal)
        conditions = {"address": address or None}
        return site.render(
            request,
            None,
            "_refused.html",
            rows=page.refused,
            tab=await refused_tab(visitor, site),
            address=address,
            newest=conditions if before else None,
            older=conditions | {"before": page.older} if page.older else None,
        )

    if (stream := site.live_stream(request, visitor, render)) is not None:
        return stream
    return site.page(
        request, visitor, "refused.html", address=address,
        live=await site.live_part(request, render),
    )  # fmt: skip


async def refused_tab(visitor: Visitor, site: PageSite) -> dict[str, Any]:
    """Return the label of the tab, and its number: "" if there are none, "+" for more."""
    page = await site.handlers.refused({"limit": str(PAGE_MAX)}, visitor.principal)
    times = sum(one.times for one in page.refused)
    more = "+" if page.older else ""
    return {"label": "Refused", "number": f"{times:,}{more}" if times else ""}
