"""Dovecot's keywords: small letters among a file's flags, whose meaning each folder keeps.

On the path: a message that is moved or copied to another folder.
Holds: a letter never changes its meaning on the way; one that the other folder has not is dropped.
Fails: never; a file that cannot be read has no keywords.
Standards: Dovecot's `dovecot-keywords` (a number, which is the letter, and a name on each line).
"""

import re
from contextlib import suppress
from pathlib import Path

_FILE = "dovecot-keywords"
_LINE = re.compile(rb"(\d{1,2}) ([^\n]+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BYTES_MAX = 64 * 1024


def translated(flags: str, source: Path, target: Path) -> str:
    """Return flags with the letters that mean in folder `target` what they meant in `source`."""
    if not any(flag in _LETTERS for flag in flags):
        return flags
    there = {name: letter for letter, name in _keywords(target).items()}
    meant = _keywords(source)
    kept = (there.get(meant.get(flag, b"")) if flag in _LETTERS else flag for flag in flags)
    return "".join(sorted({flag for flag in kept if flag}))


def _keywords(folder: Path) -> dict[str, bytes]:
    with suppress(OSError), (folder / _FILE).open("rb") as file:
        found = _LINE.findall(file.read(_BYTES_MAX))
        return {_LETTERS[int(number)]: name for number, name in found if int(number) < 26}
    return {}
