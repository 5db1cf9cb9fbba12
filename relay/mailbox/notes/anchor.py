"""The anchor next to the notes, from which a start continues the time that their names have.

On the path: read when the store is opened, written from time to time while it is in use.
Holds: what is read is whole; it says less than the spool's own anchor only where that is older.
Fails: never for reading: without it the spool's anchor decides; OSError when the disk refuses.
Standards: docs/design.md 6 (Time).
"""

from pathlib import Path

import msgspec

from relay.clock import Anchor

_NAME = "clock"
_decoder = msgspec.json.Decoder(Anchor)


class AnchorFile:
    """A file of JSON in `.submissions`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _NAME

    def read(self) -> Anchor | None:
        """Return what was written last; None if that cannot be read."""
        try:
            return _decoder.decode(self._path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None

    def write(self, anchor: Anchor) -> None:
        """Replace it. Not synced: after a loss of power the one before is as good."""
        part = self._path.with_name(f"{_NAME}.new")
        part.write_bytes(msgspec.json.encode(anchor))
        part.replace(self._path)
