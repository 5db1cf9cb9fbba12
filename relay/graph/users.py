"""Handlers of the user resource: /me, /users/{address} and /users.

A user is an account: the id is its address, and properties of a directory are null. The
mailboxSettings are part of a user when they are selected, as programs at sign-in do.
"""

from contextlib import suppress

from starlette.responses import Response

from relay.accounts.account import Account, AccountDirectory, UnknownUserError
from relay.graph.graph_request import GraphRequest
from relay.graph.mailbox_settings import MAY_READ, settings_json
from relay.graph.odata.resources import select_users
from relay.graph.serializer import USER_PROPERTIES, user_json
from relay.http.gateway import json_response

_LIST_OPTIONS = ("select", "filter", "search", "orderby", "count", "top", "skip")


async def get_user(request: GraphRequest) -> Response:
    """GET /me or /users/{address}."""
    options = request.options({"select"}, USER_PROPERTIES)
    user = user_json(request.account, options.select)
    if "mailboxSettings" in options.select:
        request.check_scopes(MAY_READ)
        settings = await request.store.settings.read(request.mailbox)
        user["mailboxSettings"] = settings_json(settings)
    return json_response({**request.context("users/$entity"), **user})


def _may_open(accounts: AccountDirectory, caller: Account, owner: Account) -> bool:
    with suppress(UnknownUserError):  # removed meanwhile
        return accounts.opened(owner.address, caller) is not None
    return False


async def list_users(request: GraphRequest) -> Response:
    """GET /users: return the users whose mailboxes the token may open."""
    options = request.collection_options(_LIST_OPTIONS, USER_PROPERTIES)
    caller, accounts = request.caller, request.dependencies.accounts
    visible = [account for account in accounts.every() if _may_open(accounts, caller, account)]
    users = select_users(
        visible, filter_=options.filter, search=options.search, orderby=options.orderby
    )
    return request.page(users, options, user_json, context="users")
