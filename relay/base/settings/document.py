"""Read a TOML file with the line of every key, and report its faults.

relay.toml, accounts.toml and policies are read through it. All faults of a file are collected and
reported together as FILE:LINE: KEY: MESSAGE; no text of a fault shows a secret. `relay check`
prints them and exits with 78. Raises SettingsError for a file that is missing, unreadable, larger
than 1 MiB (accounts.toml: 16 MiB), not UTF-8, or not TOML 1.0.
"""

import difflib
import re
import tomllib
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.base.phrases import printable, shown

KeyPath = tuple[str | int, ...]
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `line` counts from 1, 0 is the whole file; `key` is dotted, or ""."""

    file: Path
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else f"{self.file}"
        text = f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"
        return printable(text)


class SettingsError(Exception):
    """A file is faulty; `faults` are all its faults in the order of lines."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (str(fault.file), fault.line)))
        super().__init__("\n".join(map(str, self.faults)))


def dotted(path: KeyPath) -> str:
    """Return a key path as text: smtp[0].tls.key."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else shown(part)
            text += f".{name}" if text else name
    return text


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the most similar known key."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    return f"found an unknown key, expected one of {', '.join(names)}{hint}"


_BARE_ENDS = frozenset(" \t\r\n=.]}#,")
_VALUE_ENDS = frozenset(",]}#\r\n")


def locate(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of each key, table and array element in a valid TOML text."""
    return _Scanner(text).document()


class _Scanner:
    """Scans the text once; `self._at` is the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted_to = 0
        self._lines: dict[KeyPath, int] = {}
        self._last_index: dict[KeyPath, int] = {}

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip_blank()
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip_blank()
        return self._lines

    def _header(self) -> KeyPath:
        """Read [table] or [[table]]; return its path with the indexes of the arrays on it."""
        is_array = self._text.startswith("[[", self._at)
        line = self._line_here()
        self._at += 2 if is_array else 1
        names = self._key()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for name in names[:-1]:
            path = self._with_index((*path, name))
        path = (*path, names[-1])
        self._lines.setdefault(path, line)
        if is_array:
            index = self._last_index.get(path, -1) + 1
            self._last_index[path] = index
            path = (*path, index)
            self._lines[path] = line
        return path

    def _with_index(self, path: KeyPath) -> KeyPath:
        index = self._last_index.get(path)
        return path if index is None else (*path, index)

    def _pair(self, table: KeyPath) -> None:
        line = self._line_here()
        path = table
        for name in self._key():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._skip_spaces()
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key up to "=" or "]"."""
        names = []
        while True:
            self._skip_spaces()
            start = self._at
            if self._text[start] in "\"'":
                self._string()
                names.append(next(iter(tomllib.loads(f"{self._text[start : self._at]} = 0"))))
            else:
                while self._text[self._at] not in _BARE_ENDS:
                    self._at += 1
                names.append(self._text[start : self._at])
            self._skip_spaces()
            if self._text[self._at] != ".":
                return names
            self._at += 1

    def _value(self, path: KeyPath) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._string()
        elif first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            while self._at < len(self._text) and self._text[self._at] not in _VALUE_ENDS:
                self._at += 1

    def _array(self, path: KeyPath) -> None:
        self._at += 1
        index = 0
        while self._next_item("]"):
            self._lines[(*path, index)] = self._line_here()
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._at += 1
        while self._next_item("}"):
            self._pair(path)

    def _next_item(self, end: str) -> bool:
        """Go to the next item of an array or inline table; return False at its end."""
        self._skip_blank()
        if self._text[self._at] == ",":
            self._at += 1
            self._skip_blank()
        if self._text[self._at] != end:
            return True
        self._at += 1
        return False

    def _string(self) -> None:
        """Skip a string of any of the four kinds."""
        quote = self._text[self._at]
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(fence)
        while not self._text.startswith(fence, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(fence)
        if len(fence) == 3:
            # one or two quotes may precede the closing three
            while self._at < len(self._text) and self._text[self._at] == quote:
                self._at += 1

    def _skip_spaces(self) -> None:
        while self._text[self._at] in " \t":
            self._at += 1

    def _skip_blank(self) -> None:
        """Skip white space, ends of lines and comments."""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            elif character in " \t\r\n":
                self._at += 1
            else:
                return

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted_to, self._at)
        self._counted_to = self._at
        return self._line


FILE_BYTES_MAX = 1024 * 1024
# A key of so many parts: tomllib takes time and memory by the square of their number. Shorter keys
# match without a group, so that no part is looked at again.
_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(f"((?:{_PART}){{130}})|(?:{_PART})++", re.ASCII)
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_KEY_OF_LINE = re.compile(r"[ \t]*+([a-z_]{1,40})[ \t]*+=")  # as Relay's keys are: never a secret
_TABLE_OF_LINE = re.compile(r"[ \t]*+\[++([a-z_.]{1,80})\]")
_UNCLOSED = 'found a text without its second quote, expected "TEXT" on one line'
# What tomllib says of the mistakes that are made most often, and what is said instead.
_SYNTAX = (
    (
        re.compile(r"Cannot overwrite a value|Duplicate inline"),
        "found this key twice, expected it once",
    ),
    (
        re.compile(r"Cannot declare .* twice"),
        "found this table twice, expected it once; where several are allowed, each is [[NAME]]",
    ),
    (re.compile(r"Illegal character '\\n'|Unterminated string"), _UNCLOSED),
    (
        re.compile(r"Invalid value"),
        'found no value of TOML, expected "TEXT" in straight quotes, a number, true, false, a list',
    ),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file: its values and their lines."""

    file: Path
    table: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Return the line of a key, or of the nearest table around it; 0 for the whole file."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 0

    def value(self, path: KeyPath) -> object:
        """Return the value at `path` as tomllib read it, None if there is none."""
        found: Any = self.table
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def fault(self, path: KeyPath, message: str) -> Fault:
        """Return a fault at the line of `path`."""
        return Fault(self.file, self.line(path), dotted(path), message)


def read_document(file: Path, *, bytes_max: int = FILE_BYTES_MAX) -> Document:
    """Read `file`. Raises SettingsError."""
    return parse_document(file, read_text(file, bytes_max=bytes_max))


def parse_document(file: Path, text: str) -> Document:
    """Return the document `text`; its faults name it `file`. Raises SettingsError."""
    if found := next((one for one in _LONG_KEY.finditer(text) if one[1]), None):
        line = text.count("\n", 0, found.start()) + 1
        message = "found a key of more than 130 parts, expected a few"
        raise SettingsError([Fault(file, line, "", message)])
    try:
        table = tomllib.loads(text)
        return Document(file, table, locate(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([_syntax_fault(file, text, error)]) from None
    except ValueError:  # of int(), about more than 4300 digits
        message = "found a number of thousands of digits, expected at most 64 bits"
        raise SettingsError([Fault(file, 0, "", message)]) from None
    except RecursionError:
        fault = Fault(file, 0, "", "found values nested too deeply, expected a few levels")
        raise SettingsError([fault]) from None


def read_text(file: Path, *, bytes_max: int = FILE_BYTES_MAX) -> str:
    """Return the text of a settings file. Raises SettingsError."""
    try:
        if not file.is_file():
            found = "no regular file" if file.exists() else "no such file"
            raise SettingsError([Fault(file, 0, "", f"found {found}, expected a file of settings")])
        with file.open("rb") as stream:
            content = stream.read(bytes_max + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or type(error).__name__}"
        raise SettingsError([Fault(file, 0, "", message)]) from None
    if len(content) > bytes_max:
        message = f"found more than {bytes_max} bytes, expected a file of settings"
        raise SettingsError([Fault(file, 0, "", message)])
    if content.startswith(BOM_UTF8):
        message = "found a byte order mark, expected UTF-8 without one"
        raise SettingsError([Fault(file, 1, "", message)])
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"found the byte 0x{content[error.start]:02x}, expected UTF-8"
        raise SettingsError([Fault(file, line, "", message)]) from None


def _syntax_fault(file: Path, text: str, error: tomllib.TOMLDecodeError) -> Fault:
    message = str(error)
    place = _PLACE.search(message)
    line = text.count("\n") + 1
    if place:
        message = message[: place.start()]
        line = int(place[1]) if place[1] else text.rstrip("\n").count("\n") + 1
    there = text.split("\n")[line - 1]
    name = _KEY_OF_LINE.match(there) or _TABLE_OF_LINE.match(there)
    if plain := next((told for pattern, told in _SYNTAX if pattern.match(message)), ""):
        return Fault(file, line, name[1] if name else "", plain)
    return Fault(file, line, "", f"found no valid TOML: {message[:1].lower()}{message[1:]}")
