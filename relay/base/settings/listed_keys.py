"""List all keys of relay.toml with their values, for `relay config`.

A value is as the file has it, with ${env:NAME} and ${file:PATH} as they are written there, or the
default as a file would have it. What the tree marks as Secret is hidden, and so are the login in a
URL, the query in the URL of a token server and what follows the host in the URL of a webhook.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from msgspec import Struct

from relay.base.phrases import without_login
from relay.base.settings import values
from relay.base.settings.document import dotted, parse_document
from relay.base.settings.reader import DocumentReader
from relay.base.settings.reloadable_keys import has_tables
from relay.base.settings.tree import Secret, Settings

DEFAULT = "default"
_UNITS = {"d": 86400, "h": 3600, "m": 60}
# of these secrets only the login is hidden
_WITH_LOGIN = {values.parse_spool_url, values.parse_proxy}
# what a webhook's URL begins with, and the rest, which may be a secret
_WEBHOOK_URL = re.compile(r"(https?://[^/?]*+|\$\{[^}]*+\}).++", re.DOTALL | re.IGNORECASE)
_INDEX = re.compile(r"\d++")


class ListedKey(Struct, frozen=True):
    """A key and its value. `parsed` may have secrets: it is only compared."""

    key: str
    value: Any
    origin: str  # FILE:LINE, or DEFAULT
    parsed: Any


def in_order(listed: ListedKey) -> str:
    """Return what sorts keys by name, and the tables of an array by index."""
    return _INDEX.sub(lambda index: index[0].zfill(9), listed.key)


def list_keys(
    file: Path, text: str, environ: Mapping[str, str]
) -> tuple[Settings, list[ListedKey]]:
    """Return the settings in a `text` of `file`, and its keys in order, without those that have no
    value. The `text` was valid once; what has become faulty, as by a file that was moved, is as it
    is written. Raises SettingsError if it is not TOML.
    """
    document = parse_document(file, text)
    reader = DocumentReader(document, base=file.absolute().parent, environ=environ)
    reader.keeps_faulty = True
    settings = Settings(**reader.fields(Settings, document.table, ()))
    keys = []
    for path, table in [((), settings), *reader.read]:
        for name, hint in get_type_hints(type(table), include_extras=True).items():
            # `further` is no key; None has no text, except of a path
            parsed, marks, place = getattr(table, name), set(get_args(hint)), (*path, name)
            if has_tables(parsed) or name == "further" or (parsed is None and Path not in marks):
                continue
            is_default = (written := document.value(place)) is None
            origin = DEFAULT if is_default else f"{file}:{document.line(place)}"
            value = _value(parsed if is_default else written, marks, is_default=is_default)
            keys.append(ListedKey(dotted(place), value, origin, parsed))
    return settings, sorted(keys, key=in_order)


def _value(raw: Any, marks: set[Any], *, is_default: bool) -> Any:
    """Return a value as a file has it, or would have a default, without secrets."""
    match raw:
        case list() | tuple():
            return [_value(item, marks, is_default=is_default) for item in raw]
        case float() if is_default:  # seconds
            unit = next((unit for unit, size in _UNITS.items() if raw and not raw % size), "s")
            return f"{raw / _UNITS.get(unit, 1):g}{unit}"
        case int() | float():
            return raw
        case dict():  # a table that this version does not take
            return "(hidden)"
        case str() if is_default and raw and values.parse_rate in marks:
            count, _, seconds = raw.partition("/")
            return f"{count}/{_value(float(seconds), marks, is_default=True)}"
        case str() if values.parse_webhook_url in marks:
            return _WEBHOOK_URL.sub(r"\1/…", raw)
        case str() if values.parse_token_url in marks and "?" in raw:
            return f"{without_login(raw.partition('?')[0])}?…"
        case str() if Secret in marks and not marks & _WITH_LOGIN:
            return "(hidden)" if values.without_references(raw) else raw
        case _:
            text = str(raw or "")
            return without_login(text) if "://" in text else text
