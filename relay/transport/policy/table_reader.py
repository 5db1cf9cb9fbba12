"""Read the tables of rule files: each fault has file, line, key, what was found and expected."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeVar

from relay.base.phrases import shown
from relay.base.settings.document import Document, Fault, KeyPath, unknown_key

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


class TableReader:
    """Reads one [[rule]] or [[test]], or a table inside it."""

    def __init__(
        self,
        document: Document,
        path: KeyPath,
        raw: object,
        *,
        faults: list[Fault],
        title: str = "",
    ) -> None:
        """`path` is the position of `raw`; `title` names the enclosing [[rule]] or [[test]]."""
        self._document = document
        self._path = path
        self._faults = faults
        self.table: Mapping[str, Any] = raw if isinstance(raw, dict) else {}
        self._title = title or _title(path, self.table)
        if not isinstance(raw, dict):
            self.add_fault((), f"found {shown(raw)}, expected a table")

    @property
    def line(self) -> int:
        """The line where the table begins."""
        return self._document.line(self._path)

    def subtable(self, key: str, index: int | None = None) -> "TableReader":
        """Return a reader for the table at `key`, or for the table at an index of the list there.

        The table is empty if the key is missing.
        """
        raw = self.table.get(key, {}) if index is None else self.table[key][index]
        path = (*self._path, key) if index is None else (*self._path, key, index)
        return TableReader(self._document, path, raw, faults=self._faults, title=self._title)

    def add_fault(self, keys: KeyPath, message: str) -> None:
        """Record a fault at `keys` below this table."""
        path = (*self._path, *keys)
        named = ".".join(name for name in path[2:] if isinstance(name, str))
        key = f"{self._title}: {named}" if named else self._title
        self._faults.append(Fault(self._document.file, self._document.line(path), key, message))

    def check_keys(self, known: Collection[str]) -> None:
        """Record a fault for every key that is not in `known`."""
        for key in unless_many(self._faults, self.table):
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


def true_or_false(value: Any) -> bool:
    """Read a boolean. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def array(document: Document, key: str, faults: list[Fault]) -> list[tuple[KeyPath, object]]:
    """Return the tables of [[key]] with their positions."""
    raw = document.table.get(key, [])
    if not isinstance(raw, list):
        faults.append(document.fault((key,), f"found {shown(raw)}, expected [[{key}]]"))
        return []
    return [((key, index), table) for index, table in enumerate(raw)]


def one_of(words: type[Word]) -> Callable[[Any], Word]:
    """Return a reader of one of `words`."""

    def read(value: Any) -> Word:
        if value not in list(words):
            raise ValueError(f"one of {', '.join(words)}")
        return words(value)

    return read


def words_of(value: Any, words: type[Word]) -> list[Word]:
    """Read one or more of `words`. Raises ValueError."""
    return parts(value if value and isinstance(value, list) else [value], one_of(words))


def _title(path: KeyPath, table: Mapping[str, Any]) -> str:
    """Return `rule "x"`, or `rule 3` for one without a name."""
    kind, index = path[0], path[1]
    name = table.get("name")
    number = index + 1 if isinstance(index, int) else index
    return f"{kind} {shown(name)}" if isinstance(name, str) and name else f"{kind} {number}"
