"""The ASGI application for /v1.0 and /beta.

A request is authenticated, and its mailbox and route are found, before its body is read.
"""

from collections.abc import Callable

from starlette.responses import Response

from relay.accounts.account import AccountDirectory
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.graph.graph_request import GraphDependencies, GraphRequest, api_error
from relay.graph.routes import Intake, check_pressure, find_route, with_keys
from relay.graph.upload_sessions import serve_upload
from relay.graph.users import path_in_mailbox
from relay.http.errors import UnansweredError, service_unavailable
from relay.http.gateway import Gateway, RequestLimits
from relay.http.http_request import HttpRequest, bearer_account
from relay.mailbox.api import MailStore
from relay.mailbox.types import OutcomeUnknownError, StoreError
from relay.pressure import Pressure
from relay.settings.tree import HttpSettings

_HELD_BODIES = 4  # bodies of the maximum size that may be in memory at once
_READY_RETRY_S = 5
_UPLOAD = ("v1.0", "uploads", "{token}")


def create_app(
    store: MailStore,
    accounts: AccountDirectory,
    *,
    clock: Clock,
    hostname: str,
    http: HttpSettings,
    crash: CrashPoints,
    ready: Callable[[], str],
    pressure: Pressure | None = None,
) -> Gateway:
    """Return the application for /v1.0 and /beta.

    `http` gives the limits and the public URL. `ready` returns "", or the reason for a 503. Under
    `pressure` requests that add messages or content are rejected.
    """
    pressure = pressure or Pressure()
    dependencies = GraphDependencies(
        store=store,
        clock=clock,
        ids=Ids(clock),
        hostname=hostname,
        public_url=http.public_url,
        crash=crash,
        max_upload=http.max_upload,
    )

    async def handle(request: HttpRequest) -> Response:
        segments = with_keys(request.segments)
        is_upload = len(segments) == len(_UPLOAD) and segments[1].lower() == _UPLOAD[1]
        if not is_upload:
            account = bearer_account(request.headers, accounts, realm=hostname)
        if reason := ready():
            raise service_unavailable("ResourceUnhealthy", reason, retry_after_s=_READY_RETRY_S)
        try:
            if is_upload:  # the URL's own token authorizes it
                if request.method == "PUT":
                    check_pressure(pressure.state, Intake.CONTENT)
                return await serve_upload(dependencies, request, segments[2], accounts=accounts)
            rest = path_in_mailbox(segments[1:], account, accounts)
            match = find_route(request.method, rest)
            check_pressure(pressure.state, match.intake)
            return await match.handler(
                GraphRequest(dependencies, request, account, match.path_parameters)
            )
        except OutcomeUnknownError as error:
            raise UnansweredError(str(error)) from error
        except StoreError as error:
            raise api_error(error) from error

    limits = RequestLimits(body_bytes=http.max_body, held_bytes=_HELD_BODIES * http.max_body)
    return Gateway(handle, clock=clock, limits=limits)
