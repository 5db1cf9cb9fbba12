"""The queue: listed, counted, and changed by hand.

On the path: beside it; `relay queue` shows what these answer.
Holds: all of it is for roles above user; whoever hangs up stops an order between two slices, and
    what is done until then stays done.
Fails: ApiError 400 for a parameter or body, 403 for the role.
Standards: none; JSON from docs/names.md.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from relay.api.means import Means
from relay.api.orders import Asking, order_of_body
from relay.api.parameters import limit_of, selector_of_query
from relay.api.viewer import OPERATOR, Viewer
from relay.http.call import Call
from relay.http.gateway import json_response
from relay.spool.operating import UNKNOWN_HEADER, Operation


class Queue:
    """The handlers of /queue."""

    def __init__(self, means: Means) -> None:
        self._means = means

    async def list(self, query: Mapping[str, str], viewer: Viewer) -> Response:
        """GET /queue?CONDITION=&limit=; what is not known stands in a header."""
        viewer.check_may_read()
        listed = await self._means.desk.list(selector_of_query(query), limit=limit_of(query))
        unknown = ",".join(quote(name, safe="") for name in listed.unknown)
        return json_response(listed, headers={UNKNOWN_HEADER: unknown} if unknown else None)

    async def stats(self, viewer: Viewer) -> Mapping[str, Any]:
        """GET /queue/stats."""
        viewer.check_may_read()
        return await self._means.stats()

    async def change(self, operation: Operation, call: Call, viewer: Viewer) -> dict[str, Any]:
        """POST /queue/{operation}."""
        viewer.check_may_operate()
        call.may_be_repeated = True  # what is held is held, and what is cancelled is gone
        asking = Asking(
            name=viewer.name,
            may_say_who=viewer is OPERATOR,
            way_to=self._means.way_to,
            clock=self._means.clock,
        )
        order = order_of_body(operation, await call.body(), asking)
        try:
            changed = await call.unless_gone(self._means.desk.carry_out(order))
        finally:
            self._means.changes.announce()
        return changed.as_json()
