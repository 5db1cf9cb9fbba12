"""The key of SRS addresses: `mailboxes.srs_key`, or a file in state_dir that a start makes.

Reports come back to addresses of the last three weeks, so a key is never replaced: what cannot be
used stops a start. `relay backup` copies the file with the state_dir.
"""

import secrets
import stat
from pathlib import Path

from relay.files import replace_file
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
        self.found, self.expected = found, expected


def srs_of(settings: Settings) -> Srs:
    """Return what writes and reads SRS addresses; create the file if there is none and no other key
    is configured. Raises UnusableKeyError, OSError.
    """
    key, path = settings.mailboxes.srs_key, settings.state_dir / SRS_KEY_FILE
    if not key and not path.exists():
        replace_file(path, f"{secrets.token_hex(_MADE_BYTES)}\n".encode(), mode=0o600)
    return Srs((key or read_srs_key(path)).encode())


def read_srs_key(path: Path) -> str:
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
