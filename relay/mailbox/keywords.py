"""Dovecot's keywords: lower-case letters among a file's flags.

The file `dovecot-keywords` of each folder names the letters. A message that gets to another folder
keeps its keywords by their names: a letter is converted to the one with the same name there, or
dropped.
"""

import re
from contextlib import suppress
from pathlib import Path

KEYWORDS_FILE = "dovecot-keywords"
_LINE = re.compile(rb"(\d{1,2}) ([^\n]+)")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BYTES_MAX = 64 * 1024


def convert_keywords(flags: str, source: Path, target: Path) -> str:
    """Return flags with their keyword letters converted from folder `source` to `target`."""
    if not any(flag in _LETTERS for flag in flags):
        return flags
    target_letters = {name: letter for letter, name in _keywords(target).items()}
    source_names = _keywords(source)
    kept = (
        target_letters.get(source_names.get(flag, b"")) if flag in _LETTERS else flag
        for flag in flags
    )
    return "".join(sorted({flag for flag in kept if flag}))


def letter_of(folder: Path, keyword: bytes) -> str:
    """Return the letter of a keyword in a folder, "" if it has none there."""
    return next((letter for letter, name in _keywords(folder).items() if name == keyword), "")


def _keywords(folder: Path) -> dict[str, bytes]:
    with suppress(OSError), (folder / KEYWORDS_FILE).open("rb") as file:
        found = _LINE.findall(file.read(_BYTES_MAX))
        return {_LETTERS[int(number)]: name for number, name in found if int(number) < 26}
    return {}
