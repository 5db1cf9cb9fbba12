"""The front door as an ASGI application: who asks, whose mailbox, which handler.

On the path: the server's dispatch hands /v1.0 and /beta in; handlers call the store.
Holds: nothing is read of a body before the token is known and the mailbox is the account's own.
Fails: ApiError: 401, 403 for another account's mailbox, 404 for nobody's, 501
for what Graph has and Relay has not, 503 while not ready.
Standards: Graph's user and mail resources; its paths ignore case.
"""

from collections.abc import Callable

from starlette.responses import Response

from relay.accounts import Account, AccountDirectory
from relay.clock import Clock, Ids
from relay.crashpoints import CrashPoints
from relay.graph.graph_request import Door, Visit, refusal
from relay.graph.routes import Brings, check_room, find_route, not_implemented, with_keys
from relay.graph.upload_sessions import serve_upload
from relay.http.errors import ApiError, UnansweredError, shown, try_later
from relay.http.gateway import Gateway, Limits
from relay.http.http_request import Call, bearer_account
from relay.mailbox.api import MailStore
from relay.mailbox.types import OutcomeUnknownError, StoreError
from relay.pressure import Pressure
from relay.settings.tree import HttpSettings

_HELD_BODIES = 4  # how many of the largest bodies may be in memory at once
_READY_RETRY_S = 5
_BESIDE_MAILBOXES = {"$batch": "$batch", "subscriptions": "The resource subscription"}
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

    Of `http` the limits and the public URL count; `ready` returns "" or why nothing can be answered
    now; under `pressure` what brings messages is refused.
    """
    pressure = pressure or Pressure()
    door = Door(
        store=store,
        clock=clock,
        ids=Ids(clock),
        hostname=hostname,
        public_url=http.public_url,
        crash=crash,
        max_upload=http.max_upload,
    )

    async def handle(call: Call) -> Response:
        segments = with_keys(call.segments)
        is_upload = len(segments) == len(_UPLOAD) and segments[1].lower() == _UPLOAD[1]
        if not is_upload:
            account = bearer_account(call.headers, accounts, realm=hostname)
        if reason := ready():
            raise try_later("ResourceUnhealthy", reason, after_s=_READY_RETRY_S)
        try:
            if is_upload:  # the token in its URL is all that it needs
                if call.method == "PUT":
                    check_room(pressure.state, Brings.CONTENT)
                return await serve_upload(door, call, segments[2], accounts=accounts)
            rest = _behind_owner(segments[1:], account, accounts)
            match = find_route(call.method, rest)
            check_room(pressure.state, match.brings)
            return await match.handler(Visit(door, call, account, match.names))
        except OutcomeUnknownError as error:
            raise UnansweredError(str(error)) from error
        except StoreError as error:
            raise refusal(error) from error

    limits = Limits(body_bytes=http.max_body, held_bytes=_HELD_BODIES * http.max_body)
    return Gateway(handle, clock=clock, limits=limits)


def _behind_owner(
    segments: tuple[str, ...], account: Account, accounts: AccountDirectory
) -> tuple[str, ...]:
    """Return the path behind /me or /users/{address}, which must be the account's own."""
    first = segments[0].lower() if segments else ""
    if first == "me":
        return segments[1:]
    if first in _BESIDE_MAILBOXES:
        raise not_implemented(_BESIDE_MAILBOXES[first])
    if first != "users" or len(segments) == 1:
        path = "/".join(segments)
        message = f"Resource not found for the path {shown(path)}; mail is under /me and /users/…."
        raise ApiError(404, "ResourceNotFound", message)
    owner = accounts.by_address(segments[1])
    if owner is None:
        message = f"The requested user {shown(segments[1])} is invalid."
        raise ApiError(404, "ErrorInvalidUser", message)
    if owner.address != account.address:
        message = "Access is denied. Check credentials and try again."
        raise ApiError(403, "ErrorAccessDenied", message)
    return segments[2:]
