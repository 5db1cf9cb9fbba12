"""Find the line of every key in a TOML text, because tomllib has no positions.

On the path: document asks for the lines of a text that tomllib has already read.
Holds: a key path is that of tomllib's result: names, and indexes for arrays and arrays of tables.
Fails: never for a text that tomllib accepts; a key that it cannot place is missing in the answer.
Standards: TOML 1.0.
"""

import tomllib

from relay.settings.faults import KeyPath

_BARE_ENDS = frozenset(" \t\r\n=.]}#,")
_VALUE_ENDS = frozenset(",]}#\r\n")


def locate(text: str) -> dict[KeyPath, int]:
    """Return the line (from 1) of each key, table and array element in a valid TOML text."""
    return _Scanner(text).document()


class _Scanner:
    """Walks over the text once; `self._at` is the next character."""

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
                names.append(_unquoted(self._text[start : self._at]))
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
        """Go to the next item of an array or inline table; False behind its end."""
        self._skip_blank()
        if self._text[self._at] == ",":
            self._at += 1
            self._skip_blank()
        if self._text[self._at] != end:
            return True
        self._at += 1
        return False

    def _string(self) -> None:
        """Go behind a string of any of the four kinds."""
        quote = self._text[self._at]
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        self._at += len(fence)
        while not self._text.startswith(fence, self._at):
            self._at += 2 if quote == '"' and self._text[self._at] == "\\" else 1
        self._at += len(fence)
        if len(fence) == 3:
            # one or two quotes may stand right before the closing three
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


def _unquoted(text: str) -> str:
    """Return the name that a quoted key stands for."""
    return next(iter(tomllib.loads(f"{text} = 0")))
