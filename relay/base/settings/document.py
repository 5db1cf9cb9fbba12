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
    """One fault; `line` counts from 1, 0 is the whole file; `key` is dotted, "" if the file cannot
    be read.
    """

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


# Blanks and comments; strings of four kinds, of which those on several lines may end in quotes of
# their own; and what stands for itself, where values without quotes may come in several pieces.
_LEXEME = re.compile(
    r"""[ \t\r]++|#[^\n]*+|"{3}(?>[^"\\]|\\.|"{1,2}(?!"))*+"{3,5}+"""
    r"""|'{3}(?>[^']|'{1,2}(?!'))*+'{3,5}+|"(?>[^"\\]|\\.)*+"|'[^']*+'"""
    r"""|[\[\]{},.=\n]|[^][{},.=\s#"']++""",
    re.DOTALL,
)


def locate(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of each key, table and array element in a valid TOML text."""
    return _Scanner(text).document()


class _Scanner:
    """Reads the text once; `_next` is the next lexeme, "" at the end, and `_line` its line."""

    def __init__(self, text: str) -> None:
        self._lexemes = (match[0] for match in _LEXEME.finditer(text))
        self._line, self._next = 1, ""
        self._lines: dict[KeyPath, int] = {}
        self._last_index: dict[KeyPath, int] = {}
        self._take()

    def document(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._next:
            if self._next == "\n":
                self._take()
            elif self._next == "[":
                table = self._header()
            else:
                self._pair(table)
        return self._lines

    def _take(self) -> str:
        """Return the next lexeme, and go on to the one after it."""
        taken = self._next
        self._line += taken.count("\n")
        self._next = next((lexeme for lexeme in self._lexemes if lexeme[0] not in " \t\r#"), "")
        return taken

    def _header(self) -> KeyPath:
        """Read [table] or [[table]]; return its path with the indexes of the arrays on it."""
        line = self._line
        self._take()
        is_array = self._next == "[" and bool(self._take())
        path: KeyPath = ()
        for name in self._key():
            index = self._last_index.get(path)
            path = (*path, name) if index is None else (*path, index, name)
        self._lines.setdefault(path, line)
        if is_array:
            self._take()
            index = self._last_index[path] = self._last_index.get(path, -1) + 1
            path = (*path, index)
            self._lines[path] = line
        return path

    def _pair(self, table: KeyPath) -> None:
        line, path = self._line, table
        for name in self._key():
            path = (*path, name)
            self._lines.setdefault(path, line)
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key, and the "=" or "]" behind it."""
        names, end = [], "."
        while end == ".":
            word, end = self._take(), self._take()
            is_quoted = word[0] in "\"'"
            names.append(next(iter(tomllib.loads(f"{word} = 0"))) if is_quoted else word)
        return names

    def _value(self, path: KeyPath) -> None:
        first, index = self._take(), 0
        while first in "[{" and self._next_item():
            if first == "{":
                self._pair(path)
                continue
            self._lines[(*path, index)] = self._line
            self._value((*path, index))
            index += 1
        while first not in "[{" and self._next not in ("", ",", "]", "}", "\n"):
            self._take()

    def _next_item(self) -> bool:
        """Go to the next item of an array or inline table, or behind its end: False."""
        while self._next in ("\n", ","):
            self._take()
        return self._next not in ("]", "}") or not self._take()


# limit of rules: the size of a group, or of a rule file
FILE_BYTES_MAX = 1024 * 1024
# A key of so many parts: tomllib takes time and memory by the square of their number. Shorter keys
# match without a group, so that no part is looked at again.
_PART = r"""(?:(?<![\w-])[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
_LONG_KEY = re.compile(f"((?:{_PART}){{130}})|(?>{_PART})++", re.ASCII)
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
        node: Any = self.table
        for part in path:
            try:
                node = node[part]
            except (KeyError, IndexError, TypeError):
                return None
        return node

    def fault(self, path: KeyPath, message: str) -> Fault:
        """Return a fault at the line of `path`."""
        return Fault(self.file, self.line(path), dotted(path), message)


def read_document(file: Path, *, bytes_max: int = FILE_BYTES_MAX) -> Document:
    """Read `file`. Raises SettingsError."""
    return parse_document(file, read_text(file, bytes_max=bytes_max))


def parse_document(file: Path, text: str) -> Document:
    """Return the document `text`; its faults name it `file`. Raises SettingsError."""
    if key := next((match for match in _LONG_KEY.finditer(text) if match[1]), None):
        line = text.count("\n", 0, key.start()) + 1
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
            state = "no regular file" if file.exists() else "no such file"
            raise SettingsError([Fault(file, 0, "", f"found {state}, expected a file of settings")])
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
    if plain := next((words for pattern, words in _SYNTAX if pattern.match(message)), ""):
        return Fault(file, line, "", f"{name[1]}: {plain}" if name else plain)
    return Fault(file, line, "", f"found no valid TOML: {message[:1].lower()}{message[1:]}")
