"""Responses of the Graph API: a page of a list, and a change without a body."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from relay.front_door.http.responses import json_response


def fitting(resources: Iterable[Mapping[str, Any]], bytes_max: int) -> list[msgspec.Raw]:
    """Return the JSON of the first resources, as many as fit into `bytes_max`, but at least one."""
    encoded: list[msgspec.Raw] = []
    for resource in resources:
        octets = msgspec.json.encode(resource)
        bytes_max -= len(octets) + 1
        if encoded and bytes_max < 0:
            break
        encoded.append(msgspec.Raw(octets))
    return encoded


def collection_response(
    context: Mapping[str, Any],
    items: Sequence[Any],
    *,
    total: int | None = None,
    next_link: str = "",
    delta_link: str = "",
) -> Response:
    """Return a page of a list; `total` is None unless $count asks for it."""
    body = dict(context)
    if total is not None:
        body["@odata.count"] = total
    body["value"] = items
    if next_link:
        body["@odata.nextLink"] = next_link
    if delta_link:
        body["@odata.deltaLink"] = delta_link
    return json_response(body)


def minimal_response(
    location: str, *, is_new: bool = False, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response to a change without a body (OData 4.01 Protocol 8.2.8.7, 8.3.4)."""
    fields = {"odata-entityid": location, **(headers or {})}
    return Response(status_code=204, headers=fields | {"location": location} if is_new else fields)
