"""List all keys of relay.toml with their values, for `relay config`.

A value is as the file has it, with ${env:NAME} and ${file:PATH} as they are written there, or the
default. What the tree marks as Secret is hidden, and so is the login in a URL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from msgspec import Struct

from relay.base.phrases import without_login
from relay.base.settings.document import dotted, parse_document
from relay.base.settings.reader import DocumentReader, load
from relay.base.settings.reloadable_keys import has_tables
from relay.base.settings.tree import Secret, Settings
from relay.base.settings.values import parse_proxy, parse_spool_url, without_references

DEFAULT = "default"
_UNITS = {"d": 86400, "h": 3600, "m": 60}
_WITH_LOGIN = {parse_spool_url, parse_proxy}  # of these secrets only the login is hidden


class ListedKey(Struct, frozen=True):
    """A key and its value. `raw` may have secrets: it is only compared."""

    key: str
    value: Any
    origin: str  # FILE:LINE, or DEFAULT
    raw: Any


def list_keys(
    file: Path, text: str, environ: Mapping[str, str]
) -> tuple[Settings, list[ListedKey]]:
    """Return the settings in a `text` of `file`, and its keys by name. Raises SettingsError."""
    settings, document = load(file, environ, text=text), parse_document(file, text)
    reader = DocumentReader(document, base=file.absolute().parent, environ=environ)
    reader.fields(Settings, document.table, ())
    keys = []
    for path, table in [((), settings), *reader.read]:
        for name, hint in get_type_hints(type(table), include_extras=True).items():
            raw, origin, marks = getattr(table, name), DEFAULT, set(get_args(hint))
            if has_tables(raw) or name == "further":  # which is no key
                continue
            place = (*path, name)
            if (written := document.value(place)) is not None:
                raw, origin = written, f"{file}:{document.line(place)}"
            value = _value(raw, is_secret=Secret in marks and not marks & _WITH_LOGIN)
            keys.append(ListedKey(dotted(place), value, origin, raw))
    return settings, sorted(keys, key=lambda listed: listed.key)


def _value(raw: Any, *, is_secret: bool = False) -> Any:
    """Return a value as a file has it, without secrets."""
    match raw:
        case list() | tuple():
            return [_value(item) for item in raw]
        case float():  # seconds
            units = (unit for unit, size in _UNITS.items() if raw and not raw % size)
            unit = next(units, "s")
            return f"{raw / _UNITS.get(unit, 1):g}{unit}"
        case int() | None:
            return raw
        case str() if is_secret and without_references(raw):
            return "(hidden)"
        case _:
            return without_login(str(raw)) if "://" in str(raw) else str(raw)
