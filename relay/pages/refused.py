"""The page of what SMTP sessions refused, newest first, and its tab in the list of messages."""

from typing import Any

from starlette.responses import Response

from relay.api.request_parameters import require_method
from relay.pages.site import PageRequest
from relay.refusals.refusal import PAGE_MAX, is_cursor

_ROWS = 50
_ADDRESS_CHARACTERS_MAX = 320


async def refused_page(request: PageRequest) -> Response:
    """GET /refused?address=&before=; fields that are not known are ignored."""
    require_method(request.http, "GET")
    fields = dict(request.http.query)
    address = fields.get("address", "").strip()[:_ADDRESS_CHARACTERS_MAX]
    before = fields.get("before", "") if is_cursor(fields.get("before", "")) else ""

    async def render() -> str:
        given = {"address": address, "before": before, "limit": str(_ROWS)}
        query = {name: value for name, value in given.items() if value}
        page = await request.site.handlers.refused(query, request.principal)
        conditions = {"address": address or None}
        return request.shared_part(
            "_refused.html",
            rows=page.refused,
            tab=await refused_tab(request),
            address=address,
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
    times = sum(one.times for one in page.refused)
    more = "+" if page.older else ""
    return {"label": "Refused", "number": f"{times:,}{more}" if times else ""}
