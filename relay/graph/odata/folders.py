"""$filter, $orderby and $count of mail folders, answered from the list of all of them.

On the path: the handlers of mailFolders hand in what the store listed; a page comes out.
Holds: without $orderby the store's order stays.
Fails: ApiError 400, see resolve.
Standards: Graph's mailFolder resource type; OData 4.01 URL conventions 5.1.
"""

import operator as compared_by
from collections.abc import Callable, Sequence

from relay.graph.odata.expression import parse_expression
from relay.graph.odata.messages import order_keys
from relay.graph.odata.resolve import Field, Resource, Type, Value, resolve
from relay.graph.show import FOLDER_PROPERTIES
from relay.mailbox.query import Operator
from relay.mailbox.types import Folder

_Matches = Callable[[Folder], bool]
_TYPES = {
    "displayName": Type.TEXT,
    "id": Type.TEXT,
    "parentFolderId": Type.TEXT,
    "isHidden": Type.BOOLEAN,
    "totalItemCount": Type.NUMBER,
    "unreadItemCount": Type.NUMBER,
    "childFolderCount": Type.NUMBER,
    "sizeInBytes": Type.NUMBER,
}
_BY_NAME = {name.lower(): name for name in _TYPES}
_COMPARED: dict[Operator, Callable[..., bool]] = {
    Operator.EQ: compared_by.eq,
    Operator.NE: compared_by.ne,
    Operator.GT: compared_by.gt,
    Operator.GE: compared_by.ge,
    Operator.LT: compared_by.lt,
    Operator.LE: compared_by.le,
    Operator.STARTS_WITH: str.startswith,
    Operator.ENDS_WITH: str.endswith,
    Operator.CONTAINS: compared_by.contains,
}


def select_folders(
    folders: Sequence[Folder], *, filter_: str | None, orderby: str | None
) -> Sequence[Folder]:
    """Return the folders that a $filter and an $orderby mean. Raises ApiError 400."""
    if filter_ is not None:
        matches = resolve(parse_expression(filter_), _FOLDER)
        folders = [folder for folder in folders if matches(folder)]
    if orderby is not None:
        for name, descending in reversed(order_keys(orderby, tuple(_BY_NAME))):
            read = _reader(_BY_NAME[name])
            folders = sorted(folders, key=read, reverse=descending)
    return folders


def _reader(name: str) -> Callable[[Folder], Value]:
    """Return what reads a property as it is shown, for comparison without regard to case."""
    read = FOLDER_PROPERTIES[name]
    return lambda folder: _folded(read(folder))


def _folded(value: Value) -> Value:
    return value.casefold() if isinstance(value, str) else value


def _field(name: str, kind: Type) -> Field[_Matches]:
    read = _reader(name)

    def compare(operator: Operator, value: Value) -> _Matches:
        holds, wanted = _COMPARED[operator], _folded(value)
        return lambda folder: holds(read(folder), wanted)

    return Field(name, kind, compare)


def _all_of(parts: tuple[_Matches, ...]) -> _Matches:
    return lambda folder: all(matches(folder) for matches in parts)


def _one_of(parts: tuple[_Matches, ...]) -> _Matches:
    return lambda folder: any(matches(folder) for matches in parts)


def _negated(part: _Matches) -> _Matches:
    return lambda folder: not part(folder)


_FOLDER: Resource[_Matches] = Resource(
    type_name="microsoft.graph.mailFolder",
    fields={name.lower(): _field(name, kind) for name, kind in _TYPES.items()},
    all_of=_all_of,
    one_of=_one_of,
    negated=_negated,
    known=frozenset(name.lower() for name in FOLDER_PROPERTIES),
)
