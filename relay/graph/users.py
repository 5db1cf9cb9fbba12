"""The user resource: /me and /users/{address}."""

from collections.abc import Collection
from typing import Any

from starlette.responses import Response

from relay.accounts.account import Account
from relay.graph.graph_request import GraphRequest
from relay.http.gateway import json_response

_PROPERTIES = frozenset({"id", "displayName", "mail", "userPrincipalName"})


async def get_user(request: GraphRequest) -> Response:
    """GET /me or /users/{address}."""
    options = request.options({"select"}, _PROPERTIES)
    user = _user_json(request.account, options.select)
    return json_response({**request.context("users/$entity"), **user})


def _user_json(account: Account, select: Collection[str] = ()) -> dict[str, Any]:
    """Return a user's JSON; the id is the address."""
    shown = {
        "id": account.address,
        "displayName": account.address.rpartition("@")[0],
        "mail": account.address,
        "userPrincipalName": account.address,
    }
    return {name: value for name, value in shown.items() if not select or name in ("id", *select)}
