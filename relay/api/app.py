"""/relay/v1, /healthz, /readyz and /metrics as an ASGI application.

On the path: the server's dispatch hands in what is not Graph's; the control socket has its own.
Holds: health and metrics need no token and say nothing about anybody; all else needs one, except
behind the control socket, whose file mode says who may.
Fails: ApiError: 401, 404, 405, 503.
Standards: Prometheus text format; JSON from docs/names.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response

from relay.accounts import AccountDirectory
from relay.api.dependencies import OPERATOR, Means, Viewer, viewer_of
from relay.api.handlers import Messages, Queue, Storage
from relay.api.request_parameters import QUEUE_PARAMETERS, single_values
from relay.http.errors import ApiError, shown, try_later
from relay.http.gateway import Gateway, Limits, json_response
from relay.http.http_request import Call, bearer_account
from relay.observe.metrics import CONTENT_TYPE
from relay.pressure import State
from relay.spool.operating import Operation
from relay.spool.types import SpoolError

_BODY_BYTES_MAX = 1 << 20
_HELD_BYTES_MAX = 16 << 20


@dataclass(frozen=True, slots=True)
class _Handlers:
    messages: Messages
    queue: Queue
    storage: Storage


def create_app(means: Means, accounts: AccountDirectory, *, hostname: str) -> Gateway:
    """Return the application for listeners that anybody may reach: tokens say who may what."""
    return _application(
        means, lambda call: viewer_of(bearer_account(call.headers, accounts, realm=hostname))
    )


def create_control_app(means: Means) -> Gateway:
    """Return the application for run/control.sock: whoever may open it is an operator."""
    return _application(means, lambda _: OPERATOR)


def _application(means: Means, viewer_for: Callable[[Call], Viewer]) -> Gateway:
    handlers = _Handlers(Messages(means), Queue(means), Storage(means))

    async def handle(call: Call) -> Response:
        try:
            open_to_all = _open_to_all(call, means)
            return open_to_all or await _relay_v1(call, viewer_for, handlers)
        except SpoolError as error:
            raise try_later("ResourceUnhealthy", str(error), after_s=5) from error

    limits = Limits(body_bytes=_BODY_BYTES_MAX, held_bytes=_HELD_BYTES_MAX)
    return Gateway(handle, clock=means.clock, limits=limits)


def _open_to_all(call: Call, means: Means) -> Response | None:
    """Answer health and metrics; None for any other path."""
    match call.segments:
        case ("healthz",):
            _only(call, "GET")
            return Response("ok\n", media_type="text/plain")
        case ("readyz",):
            _only(call, "GET")
            reason = means.ready()
            status = 503 if reason else 200
            text = reason or _ready_as(means.pressure.state)
            return Response(f"{text}\n", status_code=status, media_type="text/plain")
        case ("metrics",):
            _only(call, "GET")
            return Response(means.metrics.exposition(), headers={"content-type": CONTENT_TYPE})
        case _:
            return None


def _ready_as(state: State) -> str:
    """Ready under pressure, too: mail is read and delivered, and each refusal says when to come."""
    if not state.levels:
        return "ready"
    return f"ready; {state.level.name.lower()}: {', '.join(state.reasons)}"


async def _relay_v1(
    call: Call, viewer_for: Callable[[Call], Viewer], handlers: _Handlers
) -> Response:
    if tuple(map(str.lower, call.segments[:2])) != ("relay", "v1"):
        raise _not_found(call)
    viewer = viewer_for(call)
    match call.segments[2:]:
        case ("messages",):
            _only(call, "GET")
            query = single_values(call.query, ("limit", "state"))
            return json_response(await handlers.messages.recent(query, viewer))
        case ("messages", key):
            _only(call, "GET")
            single_values(call.query, ())
            return json_response(await handlers.messages.one(key, viewer))
        case ("messages", key, "wait"):
            _only(call, "GET")
            query = single_values(call.query, ("state", "timeout"))
            return json_response(await call.unless_gone(handlers.messages.wait(key, query, viewer)))
        case ("queue",):
            _only(call, "GET")
            query = single_values(call.query, QUEUE_PARAMETERS)
            return await handlers.queue.list(query, viewer)
        case ("queue", "stats"):
            _only(call, "GET")
            single_values(call.query, ())
            return json_response(await handlers.queue.stats(viewer))
        case ("storage", "prune"):
            _only(call, "POST")
            single_values(call.query, ())
            return json_response(await handlers.storage.prune(call, viewer))
        case ("queue", operation) if operation in tuple(Operation):
            _only(call, "POST")
            single_values(call.query, ())
            return json_response(await handlers.queue.change(Operation(operation), call, viewer))
        case _:
            raise _not_found(call)


def _only(call: Call, method: str) -> None:
    if call.method != method:
        raise ApiError(
            405,
            "Request_BadRequest",
            "Specified HTTP method is not allowed for the request target.",
            headers={"allow": method},
        )


def _not_found(call: Call) -> ApiError:
    path = "/".join(call.segments)
    return ApiError(404, "ResourceNotFound", f"There is nothing at the path {shown(path)}.")
