"""The user resource: /me and /users/{address}, and who may open which mailbox."""

from starlette.responses import Response

from relay.accounts.account import Account, AccountDirectory
from relay.graph.graph_request import GraphRequest, not_implemented
from relay.graph.serializer import USER_PROPERTIES, user_json
from relay.http.errors import ApiError, quoted
from relay.http.gateway import json_response

_OUTSIDE_MAILBOXES = {"$batch": "$batch", "subscriptions": "The resource subscription"}


async def get_user(request: GraphRequest) -> Response:
    """GET /me or /users/{address}."""
    options = request.options({"select"}, USER_PROPERTIES)
    user = user_json(request.account, options.select)
    return json_response({**request.context("users/$entity"), **user})


def path_in_mailbox(
    segments: tuple[str, ...], account: Account, accounts: AccountDirectory
) -> tuple[str, ...]:
    """Return the rest of the path after /me or /users/{address}.

    Raises ApiError: 403 for another account's mailbox, 404 for an unknown user or path, 501 for
    resources outside of mailboxes.
    """
    first = segments[0].lower() if segments else ""
    if first == "me":
        return segments[1:]
    if first in _OUTSIDE_MAILBOXES:
        raise not_implemented(_OUTSIDE_MAILBOXES[first])
    if first != "users" or len(segments) == 1:
        path = "/".join(segments)
        message = f"Resource not found for the path {quoted(path)}; mail is under /me and /users/…."
        raise ApiError(404, "ResourceNotFound", message)
    owner = accounts.by_address(segments[1])
    if owner is None:
        message = f"The requested user {quoted(segments[1])} is invalid."
        raise ApiError(404, "ErrorInvalidUser", message)
    if owner.address != account.address:
        message = "Access is denied. Check credentials and try again."
        raise ApiError(403, "ErrorAccessDenied", message)
    return segments[2:]
