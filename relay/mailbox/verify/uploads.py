"""Attachments that come in ranges: whether what was confirmed of each is there.

On the path: verifier.py, beside the notes.
Holds: what belongs to no session is a start's to remove, and is left to it.
Fails: OSError when the directory cannot be read.
Standards: none; relay/mailbox/attachments/uploads.py says what the files are.
"""

import re
from pathlib import Path

import msgspec

from relay.mailbox.maildir import list_names
from relay.mailbox.verify.findings import Fault, Kind
from relay.mailbox.verify.flight import Flight
from relay.mailbox.verify.mending import Mender

_RECEIVED = re.compile(r"[0-9a-f]{64}@(\d{1,18})")
_FACTS = ".json"


def check_uploads(directory: Path, mender: Mender, flight: Flight) -> int:
    """Put aside what cannot be gone on with; return how many sessions there are."""
    count = 0
    for name in sorted(list_names(directory)):
        path = directory / name
        count += name.endswith(_FACTS)
        if _fault(path) is not None and flight.land(path) and (fault := _fault(path)) is not None:
            mender.settle(fault, mender.put_aside(path))
    return count


def _fault(path: Path) -> Fault | None:
    """What is wrong with a file, None if nothing is or it is gone."""
    try:
        if path.name.endswith(_FACTS):
            return None if _is_table(path) else _broken(path, "no JSON", "a session's facts")
        match = _RECEIVED.fullmatch(path.name)
        size_bytes = path.stat().st_size
        if match and size_bytes < int(match[1]):
            return _broken(path, f"{size_bytes} bytes", f"the {match[1]} that were confirmed")
    except FileNotFoundError:
        return None
    return None


def _is_table(path: Path) -> bool:
    try:
        return isinstance(msgspec.json.decode(path.read_bytes()), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _broken(path: Path, found: str, expected: str) -> Fault:
    return Fault(Kind.BROKEN_UPLOAD, path, found, expected)
