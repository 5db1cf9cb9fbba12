"""Dovecot's keywords (the tags of Thunderbird): lower-case letters among a file's flags.

The file `dovecot-keywords` of each folder names the letters. A message that gets to another folder
keeps its keywords by their names. A letter is converted to the one with the same name there. A name
that is not there is added, under Dovecot's lock. A folder has 26 letters: a name beyond them is
dropped, since Dovecot has it only in its index.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.maildir import remove, replace_durably, take_lock

KEYWORDS_FILE = "dovecot-keywords"
_LOCK = "dovecot-uidlist.lock"  # Dovecot changes the file while it holds this one
_STALE_S = 120  # Dovecot's own limit for this lock
_LINE = re.compile(rb"^(\d{1,2}) ([^\n]+)", re.MULTILINE)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BYTES_MAX = 64 * 1024


def convert_keywords(flags: str, source: Path, target: Path) -> str:
    """Return flags with their keyword letters converted from folder `source` to `target`.

    Names that `target` does not have are added, durably. Raises OSError, and StoreUnavailableError
    if the lock stays taken.
    """
    letters = [flag for flag in flags if flag in _LETTERS]
    if not letters:
        return flags
    names = _keywords(source)
    keywords = [names[letter] for letter in letters if letter in names]
    there = _letters(_keywords(target))
    if len(there) < len(_LETTERS) and any(name.lower() not in there for name in keywords):
        there = _letters(_added(target, keywords))
    kept = {there.get(name.lower(), "") for name in keywords}
    return "".join(sorted({*flags} - {*letters} | kept))


def letter_of(folder: Path, keyword: bytes) -> str:
    """Return the letter of a keyword in a folder, "" if it has none there."""
    return _letters(_keywords(folder)).get(keyword.lower(), "")


def _keywords(folder: Path) -> dict[str, bytes]:
    with suppress(OSError), (folder / KEYWORDS_FILE).open("rb") as file:
        lines = _LINE.findall(file.read(_BYTES_MAX))
        return {_LETTERS[int(number)]: name for number, name in lines if int(number) < 26}
    return {}


def _letters(names: dict[str, bytes]) -> dict[bytes, str]:
    """Return the letter of each name in lower case: IMAP ignores the case of keywords."""
    return {name.lower(): letter for letter, name in reversed(names.items())}


def _added(folder: Path, keywords: Iterable[bytes]) -> dict[str, bytes]:
    """Give new keywords the free letters of a folder; return all of its keywords by letter."""
    if not take_lock(lock := folder / _LOCK, stale_s=_STALE_S):
        raise StoreUnavailableError(f"Another program holds the lock {_LOCK} of the folder.")
    try:
        names = _keywords(folder)
        # An open session of Dovecot reads the file again only for letters beyond those it knows.
        last = max(names, default="")
        free = [letter for letter in _LETTERS if letter > last] + [
            letter for letter in _LETTERS if letter < last
        ]
        free = [letter for letter in free if letter not in names]
        fresh = {name.lower(): name for name in keywords if name.lower() not in _letters(names)}
        if added := dict(zip(free, fresh.values(), strict=False)):
            names |= added
            _write(folder, names)
        return names
    finally:
        remove(lock)


def _write(folder: Path, names: dict[str, bytes]) -> None:
    file = folder / KEYWORDS_FILE
    lines = [b"%d %s\n" % (_LETTERS.index(letter), names[letter]) for letter in sorted(names)]

    def set_time(part: Path) -> None:
        with suppress(FileNotFoundError):
            before_s = int(file.stat().st_mtime)
            if int(part.stat().st_mtime) <= before_s:  # Dovecot compares whole seconds
                os.utime(part, (before_s + 1, before_s + 1))

    part = folder / f"{KEYWORDS_FILE}.lock"
    replace_durably(file, b"".join(lines), part=part, prepare=set_time)
