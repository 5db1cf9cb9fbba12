"""Apply the keys of relay.toml that a reload (SIGHUP) applies, and name those that need a restart.

The tree says which are which, by RELOADED. docs/operation-run.md has all of them as a table.
"""

import dataclasses
from itertools import zip_longest
from typing import Any

from relay.base.settings.document import KeyPath, dotted
from relay.base.settings.tree import RELOADED, Settings
from relay.base.socket_address import Address


def apply_reloadable(active: Settings, read: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return `active` with the reloadable values of `read`, and the other keys that differ."""
    changes: list[str] = []
    merged: Settings = _merge(active, read, (), changes=changes)
    return merged, tuple(changes)


def _merge(active: Any, read: Any, path: KeyPath, *, changes: list[str]) -> Any:
    """Merge two tables, or two arrays of tables by their index.

    A table of an array whose first key differs is another one: nothing of it is applied.
    """
    if isinstance(active, tuple):
        merged = []
        for index, (old, new) in enumerate(zip_longest(active, read)):
            place = (*path, index)
            if old and new and _first_value(old) == _first_value(new):
                merged.append(_merge(old, new, place, changes=changes))
                continue
            changes.append(dotted(place))
            merged += [old] if old else []
        return tuple(merged)
    values = {}
    for field in dataclasses.fields(active):
        name = field.name
        old, new, place = getattr(active, name), getattr(read, name), (*path, name)
        if old == new:
            continue
        if field.metadata == RELOADED:
            values[name] = new
        elif None not in (old, new) and (has_tables(old) or has_tables(new)):
            values[name] = _merge(old, new, place, changes=changes)
        else:
            changes.append(dotted(place))
    return dataclasses.replace(active, **values)


def _first_value(table: Any) -> Any:
    return getattr(table, dataclasses.fields(table)[0].name)


def has_tables(value: Any) -> bool:
    """Return whether a value is a table, or an array of tables."""
    if isinstance(value, tuple):
        return any(map(has_tables, value))
    return dataclasses.is_dataclass(value) and not isinstance(value, Address)
