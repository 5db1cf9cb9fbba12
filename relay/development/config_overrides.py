"""Override some keys of a configuration that Relay wrote, for tests of programs."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import tomlkit


def with_overrides(text: str, overrides: Mapping[str, Any]) -> str:
    """Return a TOML text with other values of some keys; of its comments the first line stays.

    A table is overridden key by key, an array of tables entry by entry; further entries are added.
    Routes are put before those that are there, because the first match wins. Raises ValueError for
    what TOML does not have.
    """
    if not overrides:
        return text
    table = _overridden(tomllib.loads(text), overrides)
    return "\n".join([text.partition("\n")[0], *_written(table), ""])


def _overridden(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    overridden = dict(table)
    for key, value in overrides.items():
        there = overridden.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping):
            overridden[key] = _overridden(there, value)
        elif _is_tables(there) and _is_tables(value):
            if key == "route":
                overridden[key] = [*value, *there]
            else:
                entries = zip(there, value, strict=False)
                common = [_overridden(one, other) for one, other in entries]
                longer = there if len(there) > len(value) else value
                overridden[key] = [*common, *longer[len(common) :]]
        else:
            overridden[key] = value
    return overridden


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
