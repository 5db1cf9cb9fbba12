"""What is wrong with a file that a person wrote: where, and what to do about it.

On the path: loader, accounts and policy collect faults; `relay check` prints them, exit 78.
Holds: every fault of a file is reported at once; no text of a fault shows a secret.
Fails: never.
Standards: none.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KeyPath = tuple[str | int, ...]
_SHOWN_LENGTH_MAX = 80
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `line` counts from 1, 0 is the file as a whole; `key` is dotted, or ""."""

    file: Path
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else f"{self.file}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class SettingsError(Exception):
    """A file cannot be used; `faults` are all that is wrong with it, in the order of its lines."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (str(fault.file), fault.line)))
        super().__init__("\n".join(map(str, self.faults)))


def dotted(path: KeyPath) -> str:
    """Return a key path as people write it: smtp[0].tls.key."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else shown(part)
            text += f".{name}" if text else name
    return text


def shown(value: object) -> str:
    """Return a value as a fault shows it: on one line, and not endless."""
    match value:
        case bool():
            text = str(value).lower()
        case str():
            text = ascii(value) if not value.isprintable() else f'"{value}"'
        case None:
            return "nothing"
        case dict():
            return "a table"
        case list():
            return "a list"
        case _:
            text = str(value)
    return text if len(text) <= _SHOWN_LENGTH_MAX else f"{text[:_SHOWN_LENGTH_MAX]}…"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return the message for a key that does not exist, with the likeliest one that does."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    return f"found an unknown key, expected one of {', '.join(names)}{hint}"


def counted(number: int, noun: str) -> str:
    """Return "1 entry", "2 entries": a number and its noun, which is given in the singular."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith("y"):
        return f"{number} {noun[:-1]}ies"
    return f"{number} {noun}{'es' if noun.endswith('x') else 's'}"
