"""/relay/v1/webhooks: a list, a test, a replay. For operators only: URLs may have secrets."""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from relay.api.dependencies import Principal
from relay.api.request_parameters import read_body, require_method, single_values
from relay.base.clock import Clock
from relay.http.errors import ApiError, quoted
from relay.http.http_request import HttpRequest
from relay.journeys.event_feed import parse_event_cursor
from relay.notifications.webhooks import Webhooks
from relay.observe.logs import get_logger

_log = get_logger("api")


class _WebhookBody(Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""  # "": all
    from_: str = msgspec.field(name="from", default="")


class WebhookHandler:
    """Answers requests about webhooks."""

    def __init__(self, webhooks: Webhooks, clock: Clock) -> None:
        self._webhooks = webhooks
        self._clock = clock

    async def answer(self, request: HttpRequest, principal: Principal) -> dict[str, Any]:
        """GET /webhooks, POST /webhooks/test and /webhooks/replay. Raises ApiError."""
        principal.check_may_operate()
        single_values(request.query, ())
        match request.segments[3:]:
            case ():
                require_method(request, "GET")
            case ("test",):
                require_method(request, "POST")
                body = read_body(await request.body(), _WebhookBody)
                return {"webhooks": await self._webhooks.test(self._urls(body))}
            case ("replay",):
                require_method(request, "POST")
                body = read_body(await request.body(), _WebhookBody)
                urls = self._urls(body)
                try:
                    cursor = parse_event_cursor(body.from_, now_us=self._clock.time_us())
                except ValueError:
                    text = 'the cursor of an event, or "0" for the beginning'
                    message = f"from: found {quoted(body.from_)}, expected {text}."
                    raise ApiError(400, "BadRequest", message) from None
                await self._webhooks.replay(cursor, urls)
                _log.info("webhooks replay", who=principal.name, cursor=body.from_, count=len(urls))
            case _:
                raise ApiError(404, "ResourceNotFound", "Expected webhooks, or its test or replay.")
        return {"webhooks": self._webhooks.shown()}

    def _urls(self, body: _WebhookBody) -> Sequence[str]:
        known = [str(one["url"]) for one in self._webhooks.shown()]
        if body.url in known:
            return [body.url]
        if body.url:
            raise ApiError(404, "ErrorItemNotFound", f"There is no webhook {quoted(body.url)}.")
        return known
