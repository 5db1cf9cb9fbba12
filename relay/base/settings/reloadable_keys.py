"""Apply the keys of relay.toml that a reload (SIGHUP) applies, and name those that need a restart.

The tree says which are which, by RELOADED. docs/operation-run.md has all of them as a table.
"""

import dataclasses
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from relay.base.phrases import shown
from relay.base.settings.document import KeyPath, dotted
from relay.base.settings.tree import RELOADED, Duration, Secret, Settings
from relay.base.socket_address import Address

_VALUE_LENGTH_MAX = 300


@dataclass(frozen=True, slots=True)
class ChangedKey:
    """A key whose new value needs a restart; the values as text, without secrets."""

    key: str
    old: str
    new: str


def apply_reloadable(active: Settings, read: Settings) -> tuple[Settings, tuple[ChangedKey, ...]]:
    """Return `active` with the reloadable values of `read`, and the other keys that differ."""
    changes: list[ChangedKey] = []
    merged: Settings = _merge(active, read, (), changes=changes)
    return merged, tuple(changes)


def _merge(active: Any, read: Any, path: KeyPath, *, changes: list[ChangedKey]) -> Any:
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
            changes.append(ChangedKey(dotted(place), _text(old), _text(new)))
            merged += [old] if old else []
        return tuple(merged)
    values, hints = {}, get_type_hints(type(active), include_extras=True)
    for field in dataclasses.fields(active):
        name, hint = field.name, hints[field.name]
        old, new, place = getattr(active, name), getattr(read, name), (*path, name)
        if old == new:
            continue
        if field.metadata == RELOADED:
            values[name] = new
        elif None not in (old, new) and (_has_tables(old) or _has_tables(new)):
            values[name] = _merge(old, new, place, changes=changes)
        else:
            changes.append(ChangedKey(dotted(place), _text(old, hint), _text(new, hint)))
    return dataclasses.replace(active, **values)


def _first_value(table: Any) -> Any:
    return getattr(table, dataclasses.fields(table)[0].name)


def _has_tables(value: Any) -> bool:
    """Return whether a value is a table, or an array of tables."""
    if isinstance(value, tuple):
        return any(map(_has_tables, value))
    return dataclasses.is_dataclass(value) and not isinstance(value, Address)


def _text(value: Any, hint: Any = None) -> str:
    """Return a value about as relay.toml has it; of a table, the keys that are not defaults."""
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    if Secret in marks:
        return "(not shown)"
    if any(isinstance(mark, Duration) for mark in marks):
        return f"{value:.12g}s"
    if isinstance(value, tuple):
        item = get_args(hint)[0] if get_origin(hint) is tuple else None
        text = "[" + ", ".join(_text(one, item) for one in value) + "]"
    elif dataclasses.is_dataclass(value) and not isinstance(value, Address):
        hints = get_type_hints(type(value), include_extras=True)
        pairs = (
            f"{field.name} = {_text(getattr(value, field.name), hints[field.name])}"
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != field.default
        )
        text = "{ " + ", ".join(pairs) + " }"
    else:
        return shown(str(value) if isinstance(value, Path | Address) else value)
    return text if len(text) <= _VALUE_LENGTH_MAX else f"{text[:_VALUE_LENGTH_MAX]}…"
