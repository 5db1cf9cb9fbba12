"""Handlers of the user resource: /me, /users/{address} and /users; and translateExchangeIds.

A user is an account: the id is its address, and properties of a directory are null. The
mailboxSettings are part of a user when they are selected, as programs at sign-in do.

An id of Relay is both a restId and a restImmutableEntryId, so each is translated to itself. The
other formats of Exchange (entryId, ewsId, immutableEntryId) do not exist here: 501.
"""

from contextlib import suppress
from typing import Any

from starlette.responses import Response

from relay.accounts.account import Account, AccountDirectory, UnknownUserError
from relay.graph.graph_request import GraphRequest, is_graph_id, malformed_id
from relay.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_array,
    read_parameters,
    unsupported,
)
from relay.graph.mailbox_settings import MAY_READ, settings_json
from relay.graph.odata.resources import select_users
from relay.graph.serializer import USER_PROPERTIES, user_json
from relay.http.gateway import json_response

_LIST_OPTIONS = ("select", "filter", "search", "orderby", "count", "top", "skip")
IDS_MAX = 1000
_PARAMETERS = {
    "inputids": "inputIds",
    "sourceidtype": "sourceIdType",
    "targetidtype": "targetIdType",
}
_OWN_TYPES = ("restid", "restimmutableentryid")
_TYPES = (*_OWN_TYPES, "entryid", "ewsid", "immutableentryid")


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


async def translate_ids(request: GraphRequest) -> Response:
    """POST translateExchangeIds: return each id with its translation, or why it has none."""
    body = await request.json_object()
    given = read_parameters(body, _PARAMETERS, "microsoft.graph.translateExchangeIds")
    for name, spelled in _PARAMETERS.items():
        if given.get(name) is None:
            raise missing_property(spelled)
    for name in ("sourceidtype", "targetidtype"):
        if one_of(given[name], _PARAMETERS[name], _TYPES) not in _OWN_TYPES:
            what = "only restId and restImmutableEntryId exist in Relay"
            raise unsupported(_PARAMETERS[name], what)
    ids = read_array(given["inputids"], "inputIds", most=IDS_MAX)
    translated = [_translated(one, f"inputIds[{number}]") for number, one in enumerate(ids)]
    context = request.context("Collection(microsoft.graph.convertIdResult)")
    return json_response({**context, "value": translated})


def _translated(source: object, path: str) -> dict[str, Any]:
    if not isinstance(source, str):
        raise invalid_value(path, source, "a string")
    if is_graph_id(source):
        return {"sourceId": source, "targetId": source}
    error = malformed_id(source)
    return {"sourceId": source, "errorDetails": {"code": error.code, "message": error.message}}
