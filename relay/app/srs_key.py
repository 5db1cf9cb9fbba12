"""The key of SRS addresses: `mailboxes.srs_key`, or a file in state_dir that a start makes.

Reports come back to addresses of the last three weeks, so a key is never replaced: what cannot be
used stops a start. `relay backup` copies the file with the state_dir.
"""

import os
import secrets
import stat
from pathlib import Path

from relay.base.files import replace_file
from relay.message.srs import Srs
from relay.settings.document import Fault, SettingsError
from relay.settings.tree import Settings
from relay.settings.values import SRS_KEY_EXPECTED, parse_srs_key

SRS_KEY_FILE = "srs.key"
_MADE_BYTES = 32


class UnusableKeyError(SettingsError):
    """The file has no key, or others can read it."""

    def __init__(self, path: Path, found: str, expected: str) -> None:
        super().__init__([Fault(path, 0, "", f"found {found}, expected {expected}")])
        self.path, self.found, self.expected = path, found, expected


def srs_of(settings: Settings) -> Srs:
    """Return what writes and reads SRS addresses; create the file if there is none and no other key
    is configured. Raises UnusableKeyError, OSError.
    """
    if found := srs_in(settings):
        return found
    path = settings.state_dir / SRS_KEY_FILE
    replace_file(path, f"{secrets.token_hex(_MADE_BYTES)}\n".encode(), mode=0o600)
    return Srs(_read_key(path).encode(), settings.mailboxes.srs_domain)


def srs_in(settings: Settings) -> Srs | None:
    """Return the same with a key that there is already; None: the next start makes one.

    Raises UnusableKeyError.
    """
    key, path = settings.mailboxes.srs_key, settings.state_dir / SRS_KEY_FILE
    if not key and not os.access(path, os.F_OK):
        return None
    return Srs((key or _read_key(path)).encode(), settings.mailboxes.srs_domain)


def _read_key(path: Path) -> str:
    """Read the key in a file. Raises UnusableKeyError."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableKeyError(path, f"what cannot be read ({error})", SRS_KEY_EXPECTED) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        expected = "a key of its owner alone (chmod 600)"
        raise UnusableKeyError(path, f"mode {mode:04o}", expected)
    try:
        return parse_srs_key(text)
    except ValueError as error:
        found = "something else" if text else "nothing"
        raise UnusableKeyError(path, found, f"{error}, from a backup") from None
