"""Read the tables of rule files: each fault has file, line, key, what was found and expected."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from relay.base.phrases import shown
from relay.base.settings.document import Document, Fault, KeyPath, unknown_key
from relay.base.settings.reader import read_leaf

FAULTS_MAX = 100  # more than a person reads; then reading stops
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_WORD = re.compile(r"\w")
T = TypeVar("T")
Word = TypeVar("Word", bound=StrEnum)


class PartError(ValueError):
    """A part of a value is wrong. `keys` lead to it; the text says what was found and expected."""

    def __init__(self, keys: KeyPath, message: str) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(eq=False, repr=False)
class TableReader:
    """Reads one [[rule]] or [[test]], or a table inside it."""

    document: Document
    path: KeyPath  # the position of `raw`
    raw: object
    faults: list[Fault]
    title: str = ""  # of the enclosing [[rule]] or [[test]]; "": this is one

    def __post_init__(self) -> None:
        self._before = len(self.faults)
        self.table: Mapping[str, Any] = self.raw if isinstance(self.raw, dict) else {}
        self.title = self.title or _title(self.path, self.table)
        if not isinstance(self.raw, dict):
            self.add_fault((), f"found {shown(self.raw)}, expected a table")

    @property
    def has_faults(self) -> bool:
        """Whether there was a fault since the reader was made."""
        return len(self.faults) > self._before

    @property
    def line(self) -> int:
        """The line where the table begins."""
        return self.document.line(self.path)

    def subtable(self, key: str, index: int | None = None) -> "TableReader":
        """Return a reader for the table at `key`, or for the table at an index of the list there.

        The table is empty if the key is missing.
        """
        raw = self.table.get(key, {}) if index is None else self.table[key][index]
        path = (*self.path, key) if index is None else (*self.path, key, index)
        return TableReader(self.document, path, raw, self.faults, self.title)

    def add_fault(self, keys: KeyPath, message: str) -> None:
        """Record a fault at `keys` below this table."""
        path = (*self.path, *keys)
        named = ".".join(name for name in path[2:] if isinstance(name, str))
        key = f"{self.title}: {named}" if named else self.title
        self.faults.append(Fault(self.document.file, self.document.line(path), key, message))

    def check_keys(self, known: Collection[str]) -> None:
        """Record a fault for every key that is not in `known`."""
        for key in unless_many(self.faults, self.table):
            if key not in known:
                self.add_fault((key,), unknown_key(key, known))

    def value(self, raw: Any, keys: KeyPath, parse: Callable[[Any], T]) -> T | None:
        """Return the parsed `raw`, or record a fault and return None."""
        try:
            return parse(raw)
        except PartError as error:
            self.add_fault((*keys, *error.keys), str(error))
            return None
        except ValueError as error:
            self.add_fault(keys, f"found {shown(raw)}, expected {error}")
            return None

    def key(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        """Return the parsed value of `key`, or `default`."""
        if key not in self.table:
            return default
        value = self.value(self.table[key], (key,), parse)
        return default if value is None else value

    def required(self, key: str, parse: Callable[[Any], T], default: T) -> T:
        """Like key(), but a missing key is a fault."""
        if key not in self.table:
            self.add_fault((key,), "found nothing, expected a value: this key is required")
        return self.key(key, parse, default)


def unless_many(faults: list[Fault], values: Iterable[T]) -> Iterator[T]:
    """Yield the values, until there are FAULTS_MAX faults."""
    for value in values:
        if len(faults) >= FAULTS_MAX:
            return
        yield value


def part(value: Any, key: str | int, parse: Callable[[Any], T]) -> T:
    """Return a part of a value, parsed. Raises PartError."""
    try:
        return parse(value[key])
    except PartError as error:
        raise PartError((key, *error.keys), str(error)) from None
    except ValueError as error:
        raise PartError((key,), f"found {shown(value[key])}, expected {error}") from None


def parts(values: Sequence[Any], parse: Callable[[Any], T]) -> list[T]:
    """Return the values of a list, each parsed. Raises PartError."""
    return [part(values, index, parse) for index in range(len(values))]


def check_parts(table: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise PartError for a key that is not in `known`."""
    if unknown := [key for key in table if key not in known]:
        raise PartError((unknown[0],), unknown_key(unknown[0], known))


def text(value: Any) -> str:
    """Read a text of one line. Raises ValueError."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("a text in quotes, on one line")
    return value


def some_text(value: Any) -> str:
    """Read a text that is not empty. Raises ValueError."""
    if not text(value).strip():
        raise ValueError("a text that is not empty")
    return text(value)


def long_text(value: Any, characters_max: int) -> str:
    """Read a text of one or more lines that has a word. Raises ValueError."""
    if not isinstance(value, str) or _CONTROLS.search(value) or not _WORD.search(value):
        raise ValueError("a text with a word and without control characters")
    if len(value) > characters_max:
        raise ValueError(f"at most {characters_max} characters")
    return value


def texts(value: Any) -> list[str]:
    """Read a text or a list of texts. Raises ValueError."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(line, str) for line in values):
        raise ValueError("a list of texts")
    return parts(values, text)


def tables(document: Document, key: str, faults: list[Fault]) -> Iterator[TableReader]:
    """Yield the tables of [[key]], until there are FAULTS_MAX faults."""
    raw = document.table.get(key, [])
    if not isinstance(raw, list):
        faults.append(document.fault((key,), f"found {shown(raw)}, expected [[{key}]]"))
        return
    for index, table in enumerate(unless_many(faults, raw)):
        reader = TableReader(document, (key, index), table, faults)
        if isinstance(table, dict):
            yield reader


def typed(hint: Any) -> Callable[[Any], Any]:
    """Return a reader of a value of this type, as relay.toml has it."""
    return lambda value: read_leaf(hint, value, Path())


def words_of(value: Any, words: type[Word]) -> list[Word]:
    """Read one or more of `words`. Raises ValueError."""
    return parts(value if value and isinstance(value, list) else [value], typed(words))


def _title(path: KeyPath, table: Mapping[str, Any]) -> str:
    """Return `rule "x"`, or `rule 3` for one without a name."""
    kind, index = path[0], path[1]
    name = table.get("name")
    number = index + 1 if isinstance(index, int) else index
    return f"{kind} {shown(name)}" if isinstance(name, str) and name else f"{kind} {number}"
