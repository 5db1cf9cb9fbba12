"""The ASGI application for /v1.0 and /beta: authorize a request, find its mailbox and its route.

All of this happens before the body is read. `routes` decides which scopes a request needs,
`admission` which requests are carried out.
"""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from starlette.responses import Response

from relay.base.accounts.account import Account
from relay.front_door.graph import strict_profile
from relay.front_door.graph.admission import Admission, check_pressure
from relay.front_door.graph.batch import BatchHandler
from relay.front_door.graph.dependencies import GraphDependencies
from relay.front_door.graph.graph_request import GraphRequest
from relay.front_door.graph.mailbox_paths import find_mailbox, with_keys
from relay.front_door.graph.routes import Intake, RouteMatch, find_route, find_route_outside
from relay.front_door.graph.store_errors import api_error
from relay.front_door.graph.upload_sessions import serve_upload
from relay.front_door.http.errors import UnansweredError, service_unavailable
from relay.front_door.http.gateway import Gateway
from relay.front_door.http.http_request import HttpRequest, RequestLimits
from relay.front_door.sign_in.authentication import HttpAuthentication
from relay.store.mailbox.errors import OutcomeUnknownError, StoreError

# limit of Graph: bodies of `http.max_body` in memory, down to 1 where memory is limited, half of
# them of one account; others wait 30 s; then 503
HELD_BODIES = 8
_MEMORY_OF_BODY = 5  # octets of memory for each octet of a body while it is processed
_READY_RETRY_S = 5
_NO_METADATA = re.compile(r"odata\.metadata\s*+=\s*+none", re.IGNORECASE)
_METADATA = Path(__file__).with_name("metadata.xml")  # what Graph's schema says of mail
_UPLOAD = ("v1.0", "uploads", "{attachment}")


def create_app(
    dependencies: GraphDependencies,
    authentication: HttpAuthentication,
    max_body: int,
    *,
    memory_bytes: int,
    ready: Callable[[], str],
) -> Gateway:
    """Return the application for /v1.0 and /beta.

    `max_body` is the maximum size of a request's body in octets, `memory_bytes` the memory for all
    bodies. `ready` returns "", or the reason for a 503.
    """
    pressure = dependencies.pressure
    admission = Admission(dependencies)

    async def handle(request: HttpRequest) -> Response:
        segments = with_keys(request.segments)
        if request.method == "GET" and segments[1:] == ("$metadata",):
            return Response(_METADATA.read_bytes(), media_type="application/xml")
        is_upload = len(segments) == len(_UPLOAD) and segments[1].lower() == _UPLOAD[1]
        if not is_upload:
            caller = authentication.account(request)
            is_strict = strict_profile.in_force(request, dependencies.profile)
        if reason := ready():
            message = f"The relay is not ready: {reason}."
            raise service_unavailable(message, retry_after_s=_READY_RETRY_S)
        try:
            if is_upload:  # the URL's own token authorizes it
                if request.method == "PUT":
                    check_pressure(pressure, Intake.CONTENT)
                return await serve_upload(dependencies, request, segments[2])
            if len(segments) == 2 and segments[1].lower() == "$batch":
                return await batches.handle(request, is_strict=is_strict)
            match, graph_request = await _find_operation(
                dependencies, request, segments[1:], caller=caller, is_strict=is_strict
            )
            response = await admission.run(match.operation, graph_request)
        except OutcomeUnknownError as error:
            raise UnansweredError(str(error)) from error
        except StoreError as error:
            raise api_error(error, request) from error
        accepted = request.headers.getlist("accept") if request.method == "GET" else ()
        if any(_NO_METADATA.search(media_types) for media_types in accepted):
            response = await asyncio.to_thread(_without_metadata, response)
        return graph_request.add_applied(response)

    held_bytes = max(max_body, min(memory_bytes // _MEMORY_OF_BODY, HELD_BODIES * max_body))
    limits = RequestLimits(body_bytes=max_body, held_bytes=held_bytes, bound="graph bodies")
    gateway = Gateway(handle, clock=dependencies.clock, limits=limits)
    batches = BatchHandler(
        gateway.respond_to,
        clock=dependencies.clock,
        pressure=pressure,
        base_url=dependencies.base_url,
    )
    return gateway


async def _find_operation(
    dependencies: GraphDependencies,
    request: HttpRequest,
    segments: tuple[str, ...],
    *,
    caller: Account,
    is_strict: bool,
) -> tuple[RouteMatch, GraphRequest]:
    """Return the operation that the caller requests, in a mailbox or on /users, by the path after
    the version. Raises ApiError.
    """
    match, account = find_route_outside(request.method, segments), caller
    if match is None:
        account, rest = await find_mailbox(segments, caller, dependencies.accounts)
        match = find_route(request.method, rest)
    parameters = match.path_parameters
    graph_request = GraphRequest(
        dependencies, request, account, parameters, caller=caller, is_strict=is_strict
    )
    graph_request.check_scopes(match.operation.scopes)
    return match, graph_request


def _without_metadata(response: Response) -> Response:
    """Return a response without annotations except links and counts (odata.metadata=none).

    A streamed response does not change.
    """
    if type(response) is not Response or response.headers.get("content-type") != "application/json":
        return response
    value = _without_annotations(msgspec.json.decode(response.body))
    headers = {name: text for name, text in response.headers.items() if name != "content-length"}
    headers["content-type"] = "application/json;odata.metadata=none"
    return Response(msgspec.json.encode(value), status_code=response.status_code, headers=headers)


def _without_annotations(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_annotations(child) for child in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without_annotations(child)
        for name, child in value.items()
        if "@odata." not in name or name.endswith((".nextLink", ".deltaLink", ".count"))
    }
