"""$expand: extended properties of a message, those that are asked for by their ids; attachments.

On the path: the handlers that show messages.
Holds: nothing is expanded that was not named; a property that a message lacks is left out.
Fails: ApiError 400 for what cannot be expanded, and for a filter of another form.
Standards: OData 4.01 URL conventions 5.1.3; Graph's $expand of singleValueExtendedProperties.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from relay.graph.extended import MULTIPLE, SINGLE, show_extended
from relay.http.errors import ApiError, shown
from relay.mailbox.types import StoredMessage
from relay.message.extended import ExtendedPropertyError, canonical_id

_IDS_MAX = 100
_ITEM = re.compile(
    r"\s*([A-Za-z]++)\s*+(?:\(\s*+\$?filter\s*+=((?:[^()']|'(?:[^']|'')*+')*+)\)\s*+)?(,|$)",
    re.IGNORECASE,
)
_ATTACHMENTS = re.compile(
    r"\s*attachments\s*(?:\(\s*\$?select\s*=([^()]*)\)\s*)?(,|$)", re.IGNORECASE
)
_TERM = re.compile(r"\s*+(?:\w+/)?id\s++eq\s++'((?:[^']|'')*+)'\s*+(or\b|$)", re.IGNORECASE)
_NAMES = {SINGLE.lower(): SINGLE, MULTIPLE.lower(): MULTIPLE}


@dataclass(frozen=True, slots=True)
class Expand:
    """The canonical ids of the properties to show. `attachments` is None unless these are wanted;
    then it has the names of their properties, none for all.
    """

    single: tuple[str, ...] = ()
    multiple: tuple[str, ...] = ()
    attachments: tuple[str, ...] | None = None

    def show(self, message: StoredMessage) -> dict[str, Any]:
        """Return what is asked for of a message, to be added to its JSON."""
        extended = message.properties.extended
        found = {
            SINGLE: show_extended(extended, self.single, multiple=False),
            MULTIPLE: show_extended(extended, self.multiple, multiple=True),
        }
        return {name: value for name, value in found.items() if value}


def parse_expand(text: str | None, *, of_attachments: Collection[str] | None = None) -> Expand:
    """Read an $expand such as `singleValueExtendedProperties($filter=id eq 'String 0x1045')`.

    `of_attachments` are the properties that attachments have, where they can be expanded.
    Raises ApiError 400.
    """
    ids: dict[str, tuple[str, ...]] = {}
    attachments: tuple[str, ...] | None = None
    position, is_more = 0, text is not None
    while is_more:
        if of_attachments is not None and (found := _ATTACHMENTS.match(text or "", position)):
            attachments = _selected(found[1], of_attachments)
            position, is_more = found.end(), found[2] == ","
            continue
        match = _ITEM.match(text or "", position)
        if match is None:
            raise _bad(f"$expand: found {shown((text or '')[position:])}, {_EXPECTED}.")
        name = _NAMES.get(match[1].lower())
        if name is None:
            raise _bad(f"$expand: {shown(match[1])} cannot be expanded here, {_EXPECTED}.")
        if match[2] is None:
            raise _bad(f"$expand: {name} needs to know which, {_EXPECTED}.")
        if name in ids:
            raise _bad(f"$expand: {name} is given twice.")
        ids[name] = _ids(match[2], multiple=name == MULTIPLE)
        position, is_more = match.end(), match[3] == ","
    return Expand(ids.get(SINGLE, ()), ids.get(MULTIPLE, ()), attachments)


def _selected(text: str | None, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if name not in known:
            raise _bad(f"$expand: attachments have no property named {shown(name)}.")
    return names


def _ids(text: str, *, multiple: bool) -> tuple[str, ...]:
    found: list[str] = []
    position, is_more = 0, True
    while is_more:
        match = _TERM.match(text, position)
        if match is None or len(found) == _IDS_MAX:
            raise _bad(f"$expand: found the $filter {shown(text)}, {_EXPECTED}.")
        try:
            found.append(canonical_id(match[1].replace("''", "'"), multiple=multiple))
        except ExtendedPropertyError as error:
            raise _bad(f"$expand: found the id {shown(match[1])}, {error}.") from None
        position, is_more = match.end(), bool(match[2])
    return tuple(found)


def _bad(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


_EXPECTED = f"expected {SINGLE}($filter=id eq 'TYPE 0xTAG'), with 'or' between several"
