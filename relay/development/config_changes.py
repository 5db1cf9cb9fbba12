"""Change a configuration written by Relay by some keys, for tests of programs."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import tomlkit


def with_changes(text: str, changes: Mapping[str, Any]) -> str:
    """Return a TOML text with other values of some keys; of its comments the first line stays.

    A table is changed key by key, an array of tables entry by entry; further entries are added.
    Routes are put before those that are there, because the first match wins. Raises ValueError for
    what TOML does not have.
    """
    if not changes:
        return text
    table = _changed(tomllib.loads(text), changes)
    return "\n".join([text.partition("\n")[0], *_written(table), ""])


def _changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(table)
    for key, value in changes.items():
        there = changed.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            changed[key] = _changed(there, value)
        elif _is_tables(there) and _is_tables(value):
            if key == "route":
                changed[key] = [*value, *there]
            else:
                entries = zip(there, value, strict=False)
                common = [_changed(one, other) for one, other in entries]
                longer = there if len(there) > len(value) else value
                changed[key] = [*common, *longer[len(common) :]]
        else:
            changed[key] = value
    return changed


def _is_tables(value: object) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    return isinstance(value, list | tuple) and all(isinstance(one, Mapping) for one in value)


def _written(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table: its values, then its tables."""
    inner: dict[str, Any] = {
        key: value
        for key, value in table.items()
        if isinstance(value, Mapping) or (value and _is_tables(value))
    }
    for key, value in table.items():
        if key not in inner:
            yield f"{_value(key)} = {_value(value)}"
    for key, value in inner.items():
        for one in [value] if isinstance(value, Mapping) else value:
            yield f"\n[{_value(key)}]" if one is value else f"\n[[{_value(key)}]]"
            for name, each in one.items():
                yield f"{_value(name)} = {_value(each)}"


def _value(value: Any) -> str:
    """Return a value on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_value(key)} = {_value(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(tomlkit.item(value).as_string())
