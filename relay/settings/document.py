"""Read a TOML file that a person wrote, and keep the place of everything in it.

On the path: loader and accounts (and policy) read their files through it.
Holds: the file is read once; a place is the line of the key, else of the nearest table around it.
Fails: with SettingsError for a file that is missing, unreadable, too large, not UTF-8, or not TOML.
Standards: TOML 1.0.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.settings.faults import Fault, KeyPath, SettingsError, dotted
from relay.settings.locator import locate

_FILE_SIZE_MAX = 1024 * 1024
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Document:
    """A TOML file: what is in it, and where."""

    file: Path
    table: Mapping[str, Any]
    lines: Mapping[KeyPath, int]

    def line(self, path: KeyPath) -> int:
        """Return the line of a key, or of what is around it; 0 for the file as a whole."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 0

    def value(self, path: KeyPath) -> object:
        """Return what stands at `path` in the file, as tomllib read it; None for nothing."""
        found: Any = self.table
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def fault(self, path: KeyPath, message: str) -> Fault:
        """Return a fault at the place of `path`."""
        return Fault(self.file, self.line(path), dotted(path), message)


def read_document(file: Path) -> Document:
    """Read `file`. Raises SettingsError."""
    text = _read_text(file)
    try:
        table = tomllib.loads(text)
        return Document(file, table, locate(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([_syntax_fault(file, text, error)]) from None
    except RecursionError:
        fault = Fault(file, 0, "", "found values nested too deeply, expected a few levels")
        raise SettingsError([fault]) from None


def _read_text(file: Path) -> str:
    try:
        if not file.is_file():
            found = "no regular file" if file.exists() else "no such file"
            raise SettingsError([Fault(file, 0, "", f"found {found}, expected a TOML file")])
        with file.open("rb") as stream:
            content = stream.read(_FILE_SIZE_MAX + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or type(error).__name__}"
        raise SettingsError([Fault(file, 0, "", message)]) from None
    if len(content) > _FILE_SIZE_MAX:
        message = f"found more than {_FILE_SIZE_MAX} bytes, expected a file of settings"
        raise SettingsError([Fault(file, 0, "", message)])
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
        line = int(place[1]) if place[1] else max(1, len(text.splitlines()))
    return Fault(file, line, "", f"found no valid TOML: {message[:1].lower()}{message[1:]}")
