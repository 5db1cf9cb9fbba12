"""Handler of translateExchangeIds, which converts ids from one format to another.

An id of Relay is both a restId and a restImmutableEntryId, so each is translated to itself. The
other formats of Exchange (entryId, ewsId, immutableEntryId) do not exist here: 501.
"""

from typing import Any

from starlette.responses import Response

from relay.graph.graph_request import GraphRequest, is_graph_id, malformed_id
from relay.graph.json_values import (
    invalid_value,
    missing_property,
    one_of,
    read_array,
    read_parameters,
    unsupported,
)
from relay.http.gateway import json_response

IDS_MAX = 1000
_PARAMETERS = {
    "inputids": "inputIds",
    "sourceidtype": "sourceIdType",
    "targetidtype": "targetIdType",
}
_OWN_TYPES = ("restid", "restimmutableentryid")
_TYPES = (*_OWN_TYPES, "entryid", "ewsid", "immutableentryid")


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
