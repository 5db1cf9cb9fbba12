"""The parameters of an action: the JSON object that a POST to one has as its body.

On the path: the handlers of actions hand their body in.
Holds: names match in any case, since some clients send `DestinationId`; each is given once.
Fails: ApiError 400 that names the parameter.
Standards: Graph's actions; OData JSON 4.01 (annotations are passed over).
"""

from collections.abc import Collection, Mapping
from typing import Any

from relay.graph.values import header_text, is_annotation, missing, unknown_property, wrong

_ID_CHARACTERS = 512


def read_parameters(body: Mapping[str, Any], known: Collection[str], action: str) -> dict[str, Any]:
    """Return the parameters that are given, by their names in lower case, as `known` has them.

    Raises ApiError 400 for one that `action` has not, or that is given twice.
    """
    given: dict[str, Any] = {}
    for name, value in body.items():
        if is_annotation(name):
            continue
        folded = name.lower()
        if folded not in known:
            raise unknown_property(name, action)
        if folded in given:
            raise wrong(name, value, "each parameter once, whatever its case")
        given[folded] = value
    return given


def destination_id(body: Mapping[str, Any], action: str) -> str:
    """Return the only parameter of move and copy: a folder's id or well-known name."""
    given = read_parameters(body, ("destinationid",), action)
    identifier = header_text(given.get("destinationid"), "destinationId", longest=_ID_CHARACTERS)
    if not identifier:
        raise missing("destinationId")
    return identifier
