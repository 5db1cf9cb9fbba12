"""Load the configuration: read TOML tables into frozen dataclasses by the types of their fields.

load() returns Settings, or raises SettingsError with all faults of the file: DocumentReader
continues after a fault. `faults` has the faults, `removed` the keys of older releases, `read` the
valid values and `secret_files` the files that secrets are read from, each with its key path.
accounts.toml is read with the same class.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from types import FunctionType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from relay.base.phrases import shown
from relay.base.settings import tree
from relay.base.settings import values as texts
from relay.base.settings.document import (
    Document,
    Fault,
    KeyPath,
    SettingsError,
    dotted,
    parse_document,
    read_document,
    read_text,
    unknown_key,
)
from relay.base.settings.postgres_url import SCHEME, ServerUrl, check_no_password
from relay.base.settings.removed_keys import REMOVED_KEYS
from relay.base.settings.validation import check_together
from relay.base.socket_address import Address

_STATE_DIR = re.compile(r"^state_dir\b.*", re.MULTILINE)
_SECONDS_MAX = 10 * 366 * 86400.0
_SIZE_MAX = 1 << 50
_WORDS = {"true": True, "false": False}
# sections that have no meaning for this role
_NOT_OF_TRANSPORT: Mapping[str, Any] = {"http": {"listen": []}}


class _InvalidValueError(Exception):
    """The current value is faulty, and its fault is recorded."""


@cache
def _hints_of(kind: type) -> Mapping[str, Any]:
    """Return the types of the fields of a dataclass."""
    return get_type_hints(kind, include_extras=True)


class DocumentReader:
    """Reads one document; paths are relative to `base`. Without `environ` no reference is replaced:
    the text may come from any client that can send a request. With `keeps_faulty` a faulty value is
    kept as it is written.
    """

    def __init__(
        self,
        document: Document,
        *,
        base: Path,
        environ: Mapping[str, str] | None,
        removed_keys: Mapping[type, Mapping[str, str]] = REMOVED_KEYS,
    ) -> None:
        self.document = document
        self.faults: list[Fault] = []
        self.removed: list[Fault] = []  # keys that are ignored, with a warning
        self.read: list[tuple[KeyPath, object]] = []
        self.secret_files: list[tuple[KeyPath, Path]] = []
        self._base = base
        self._environ = environ
        self._removed_keys = removed_keys
        self.keeps_faulty = False

    def fields(self, kind: type, table: Mapping[str, Any], path: KeyPath) -> dict[str, Any]:
        """Read the fields of the dataclass `kind`.

        Valid fields are returned, and those whose default depends on `base`.
        """
        hints = {name.rstrip("_"): hint for name, hint in _hints_of(kind).items()}  # from_: from
        hints.pop("further", None)  # no key
        removed = self._removed_keys.get(kind, {})
        for key in table.keys() - hints.keys():
            if why := removed.get(key):
                text = f"found a key that {why}; remove it"
                self.removed.append(self.document.fault((*path, key), text))
                continue
            self._add_fault((*path, key), unknown_key(key, hints))
        values: dict[str, Any] = {}
        for field in dataclasses.fields(kind):
            name = field.name.rstrip("_")
            if name not in hints:
                continue
            place, hint = (*path, name), hints[name]
            try:
                if name in table:
                    empty_allowed = field.default == ""
                    values[field.name] = self._value(
                        hint, table[name], place, empty_allowed=empty_allowed
                    )
                elif _is_required(field):
                    self._add_fault(place, "found nothing, expected a value: this key is required")
                elif dataclasses.is_dataclass(hint):
                    values[field.name] = self._table(hint, {}, place)
                elif hint is Path:
                    values[field.name] = self._base / str(field.default)
            except _InvalidValueError:
                continue
        return values

    def tables(self, kind: type, raw: object, path: KeyPath) -> list[tuple[KeyPath, Any]]:
        """Read an array of tables: return each valid one with its key path."""
        if not isinstance(raw, list):
            self._add_fault(path, f"found {shown(raw)}, expected [[{path[-1]}]]")
            return []
        tables = []
        for index, item in enumerate(raw):
            try:
                tables.append(((*path, index), self._table(kind, item, (*path, index))))
            except _InvalidValueError:
                continue
        return tables

    def _add_fault(self, path: KeyPath, message: str) -> None:
        self.faults.append(self.document.fault(path, message))

    def _value(self, hint: Any, raw: Any, path: KeyPath, *, empty_allowed: bool = False) -> Any:
        origin = get_origin(hint)
        if origin in (UnionType, Union):  # X | None: a value that is present is an X
            inner, other, *_ = get_args(hint)
            if other is str and isinstance(raw, str):
                return self._leaf(str, raw, path)
            return None if inner is Path and raw == "" else self._value(inner, raw, path)
        if origin is tuple:
            return self._items(get_args(hint)[0], raw, path)
        is_tls = isinstance(hint, type) and issubclass(hint, tree.ListenerTls)
        if is_tls and isinstance(raw, list) and raw:
            return self._tables_of_tls(hint, raw, path)
        if dataclasses.is_dataclass(hint) and hint is not Address:
            return self._table(hint, raw, path)
        return self._leaf(hint, raw, path, empty_allowed=empty_allowed)

    def _table(self, kind: Any, raw: Any, path: KeyPath) -> Any:
        if not isinstance(raw, dict):
            self._add_fault(path, f"found {shown(raw)}, expected a table")
            raise _InvalidValueError
        values = self.fields(kind, raw, path)
        if any(_is_required(key) and key.name not in values for key in dataclasses.fields(kind)):
            raise _InvalidValueError
        made = kind(**values)
        self.read.append((path, made))
        return made

    def _tables_of_tls(self, kind: Any, raw: list[Any], path: KeyPath) -> tree.ListenerTls:
        first: tree.ListenerTls = self._table(kind, raw[0], (*path, 0))
        further = [
            self._table(tree.CertificateFiles, table, (*path, number))
            for number, table in enumerate(raw[1:], 1)
        ]
        return dataclasses.replace(first, further=tuple(further))

    def _items(self, hint: Any, raw: Any, path: KeyPath) -> tuple[Any, ...]:
        is_table = dataclasses.is_dataclass(hint) and hint is not Address
        if is_table:
            return tuple(made for _, made in self.tables(hint, raw, path))
        if hint == tree.Rate and not isinstance(raw, list):
            return () if raw == "" else (self._leaf(hint, raw, path),)
        if not isinstance(raw, list):
            self._add_fault(path, f"found {shown(raw)}, expected a list in [ ]")
            raise _InvalidValueError
        items: list[Any] = []
        for index, item in enumerate(raw):
            try:
                made = self._value(hint, item, (*path, index))
                items += made if hint == tree.Network else [made]
            except _InvalidValueError:
                continue
        return tuple(items)

    def _leaf(self, hint: Any, raw: Any, path: KeyPath, *, empty_allowed: bool = False) -> Any:
        marks = get_args(hint) if get_origin(hint) is Annotated else ()
        is_secret = tree.Secret in marks
        try:
            value = raw
            if texts.parse_spool_url in marks and isinstance(raw, str):
                check_no_password(texts.without_references(raw))
            if self._environ is not None and isinstance(raw, str) and texts.has_reference(raw):
                if is_secret:
                    files = texts.referenced_files(raw, base=self._base)
                    self.secret_files += [(path, file) for file in files]
                value = texts.expand(raw, base=self._base, environ=self._environ)
                if not _wants_text(hint):
                    value = _number_or_word(value)
                if texts.parse_spool_url in marks and value.startswith(SCHEME):
                    value = ServerUrl(value)
                    value.read = partial(texts.expand, raw, base=self._base, environ=self._environ)
            if empty_allowed and value == "" and (raw == "" or not is_secret):
                return ""
            return read_leaf(hint, value, self._base)
        except ValueError as error:
            is_shown = not is_secret or (
                texts.has_reference(str(raw)) and not texts.without_references(raw)
            )
            text = shown(raw) if is_shown else "something else"
            self._add_fault(path, f"found {text}, expected {error}")
            if self.keeps_faulty:
                return raw
            raise _InvalidValueError from None


def read_leaf(hint: Any, value: object, base: Path) -> Any:
    """Convert `value` to the type `hint`. Raises ValueError with what was expected."""
    marker = get_args(hint)[1] if get_origin(hint) is Annotated else None
    if marker is not None and marker not in texts.RELATIVE:
        return _read_marked(marker, value)
    if get_origin(hint) is Literal:
        return _read_choice(get_args(hint), value)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint(str(_read_choice(tuple(member.value for member in hint), value)))
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("true or false")
    if not isinstance(value, str):
        raise ValueError("a text in quotes")
    if "\0" in value:
        raise ValueError("a text without NUL")
    if hint is Address:
        return texts.parse_address(value, base)
    if marker is not None:
        return marker(value, base)
    if hint is Path:
        if not value:
            raise ValueError("a path")
        return base / value
    return value


def _read_marked(marker: object, value: object) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match marker:
        case FunctionType():
            if isinstance(value, str):
                return marker(value)
            raise ValueError("a text in quotes")
        case tree.Duration():
            if not is_number and not isinstance(value, str):
                raise ValueError(texts.DURATION_EXPECTED)
            try:
                seconds = (
                    texts.parse_duration(value) if isinstance(value, str) else float(str(value))
                )
            except ValueError:
                raise ValueError(texts.DURATION_EXPECTED) from None
            if not marker.at_least <= seconds <= _SECONDS_MAX:
                raise ValueError(f"a duration of {marker.at_least:g} s to 10 years")
            return seconds
        case tree.Size():
            if not isinstance(value, str) and not (is_number and isinstance(value, int)):
                raise ValueError(texts.SIZE_EXPECTED)
            size = texts.parse_size(value) if isinstance(value, str) else int(str(value))
            if marker.or_zero and not size:
                return size
            if not marker.at_least <= size <= _SIZE_MAX:
                mib, rest = divmod(marker.at_least, 1024 * 1024)
                least = f"{marker.at_least} bytes" if rest or not mib else f"{mib} MiB"
                or_zero = "0, or " if marker.or_zero else ""
                raise ValueError(f"{or_zero}a size of {least} to 1024 TiB")
            return size
        case tree.Between():
            is_fit = is_number and isinstance(value, int) and marker.low <= value <= marker.high
            if not is_fit:
                raise ValueError(f"a whole number from {marker.low} to {marker.high}")
            return value
        case _:
            if isinstance(value, str):
                return value
            raise ValueError("a text in quotes")


def _read_choice(choices: tuple[str | int, ...], value: object) -> object:
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    words = [choice for choice in choices if choice != ""]
    names = [str(word).lower() if type(word) is bool else str(word) for word in words]
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise ValueError(f"one of {', '.join(names)}{hint}")


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _wants_text(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return get_args(hint)[0] in (str, Address)
    return hint is not bool


def _number_or_word(text: str) -> str | float | bool:
    """Return the value of a replaced reference as if it were in the file without quotes."""
    if text in _WORDS:
        return _WORDS[text]
    if text.isascii() and text.isdecimal() and len(text) < 20:
        return int(text)
    return text


def load(
    file: Path | Document, environ: Mapping[str, str], *, role: tree.NodeRole = tree.NodeRole.ALL
) -> tree.Settings:
    """Return the settings in a file; `environ` is what ${env:NAME} may name.

    Sections that have no meaning for this `role` are not read. Raises SettingsError.
    """
    values, faults = _read(file, environ, role)
    if faults:
        raise SettingsError(faults)
    return tree.Settings(**values)


def load_valid(
    path: Path, environ: Mapping[str, str], *, state_dir: Path | None = None
) -> tuple[tree.Settings, Sequence[Fault]]:
    """Return the settings in a file, with the default in place of what has a fault ("" for the
    hostname), and the faults. Of a file that is no TOML, only what is above its first table counts,
    or the line of state_dir there.

    Raises SettingsError for a file without a state_dir if there is no default for it.
    """
    document, broken = Document(path, {}, {}), tuple[Fault, ...]()
    try:
        document = read_document(path)
    except SettingsError as error:
        broken = error.faults
        with suppress(SettingsError):
            head = read_text(path).partition("\n[")[0]
            document = parse_document(path, "\n".join(_STATE_DIR.findall(head)))
            document = parse_document(path, head)  # else the line of state_dir counts
    values, faults = _read(document, environ, tree.NodeRole.ALL)
    if "state_dir" not in values and state_dir is None:
        raise SettingsError(broken or faults)
    return tree.Settings(**{"hostname": "", "state_dir": state_dir, **values}), broken or faults


def _read(
    file: Path | Document, environ: Mapping[str, str], role: tree.NodeRole
) -> tuple[dict[str, Any], list[Fault]]:
    """Return the valid values of a file, and all its faults."""
    document = file if isinstance(file, Document) else read_document(file)
    base = document.file.absolute().parent
    try:
        str(base).encode()  # SQLite opens no other
    except UnicodeEncodeError:
        message = f"found the directory {shown(str(base))}, expected a name in UTF-8"
        raise SettingsError([Fault(document.file, 0, "", message)]) from None
    reader = DocumentReader(document, base=base, environ=environ)
    is_transport = role is tree.NodeRole.TRANSPORT
    table = {**document.table, **(_NOT_OF_TRANSPORT if is_transport else {})}
    values = reader.fields(tree.Settings, table, ())
    faults = [*reader.faults]
    if is_transport and getattr(values.get("spool"), "is_file", False):
        faults.append(document.fault(("spool", "url"), _TRANSPORT_EXPECTED))
    for place, expected in check_together(reader.read, values, value_in_file=document.value):
        inside = (f"{dotted(place)}[", f"{dotted(place)}.")  # or the key itself
        if any(f"{fault.key}.".startswith(inside) for fault in reader.faults):
            continue  # its faults have been recorded
        message = f"found {shown(document.value(place))}, expected {expected}"
        faults.append(document.fault(place, message))
    return values, faults


_TRANSPORT_EXPECTED = (
    "found a spool of this machine alone, expected the URL of a PostgreSQL server: with --role"
    " transport, local mail waits there for the node that has the mailboxes"
)


def read_again(document: Document, environ: Mapping[str, str]) -> DocumentReader:
    """Return the reader of a configuration, for its `removed` and `secret_files`."""
    reader = DocumentReader(document, base=document.file.absolute().parent, environ=environ)
    reader.fields(tree.Settings, document.table, ())
    return reader
