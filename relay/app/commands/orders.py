"""An order for the queue, carried out on the files: where no relay runs.

On the path: beside it; reading comes here when the control socket does not answer.
Holds: the same words mean the same as over the socket; accounts are read only for a way by routes.
Fails: ControlError for an order that makes no sense; SettingsError for accounts with faults.
Standards: docs/names.md (Commands).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import msgspec

from relay.accounts import load_accounts
from relay.api.dependencies import OPERATOR
from relay.api.request_parameters import Asking, order_of_body
from relay.app.commands.control import ControlError
from relay.app.routes import route_table, way_to
from relay.clock import Clock
from relay.http.errors import ApiError
from relay.routing import RouteTable
from relay.settings import Settings, read_environment
from relay.spool.operating import Desk, Operation, Tell


async def carry_out(
    desk: Desk,
    operation: str,
    wanted: Mapping[str, Any],
    *,
    settings: Settings,
    clock: Clock,
    tell: Tell,
) -> dict[str, Any]:
    """Return what POST /relay/v1/queue/{operation} would have answered to `wanted`; `tell` is
    Desk.carry_out's.
    """
    with ExitStack() as until_done:

        def table() -> RouteTable:
            boxes = settings.mailboxes
            environ = read_environment().variables
            accounts = load_accounts(boxes.accounts, boxes.domains, clock=clock, environ=environ)
            until_done.callback(accounts.close)
            return route_table(settings, accounts)

        asking = Asking(
            name=OPERATOR.name,
            may_say_who=True,
            way_to=lambda text: way_to(text, table),
            clock=clock,
        )
        try:
            order = order_of_body(Operation(operation), msgspec.json.encode(wanted), asking)
        except ApiError as error:
            raise ControlError(error.status, error.code, error.message) from None
        return (await desk.carry_out(order, tell=tell)).as_json()
