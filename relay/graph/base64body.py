"""A body in base64 that comes in blocks, decoded block by block.

On the path: MIME that is given as text/plain.
Holds: white space may stand anywhere; anything else that is not base64 is refused with its place.
Fails: Base64Error.
Standards: RFC 4648 4; RFC 2045 6.8 (lines).
"""

import binascii
import re

_WHITE_SPACE = b" \t\r\n"
_STRANGE = re.compile(rb"[^A-Za-z0-9+/=\s]|[\x0b\x0c]")


class Base64Error(ValueError):
    """What is no base64, and where: in bytes from the body's beginning."""


class Base64Decoder:
    """Takes the body in blocks."""

    def __init__(self) -> None:
        self._held = b""  # less than a group of four, without white space
        self._taken = 0  # bytes of the body before the block in hand
        self._padding_ends: int | None = None  # where the last group ended, if that had padding

    def feed(self, block: bytes) -> bytes:
        """Return what can be decoded with this block. Raises Base64Error."""
        plain = self._held + block.translate(None, _WHITE_SPACE)
        end = len(plain) // 4 * 4
        if plain and self._padding_ends is not None:
            raise Base64Error(f"Data behind the padding that ends at byte {self._padding_ends}")
        try:
            decoded = binascii.a2b_base64(plain[:end], strict_mode=True)
        except binascii.Error:
            raise self._error(block) from None
        if end and plain[end - 1] == ord("="):
            if end < len(plain):
                raise self._error(block)
            self._padding_ends = self._taken + block.rfind(b"=") + 1
        self._held = plain[end:]
        if self._held and _STRANGE.search(self._held):
            raise self._error(block)
        self._taken += len(block)
        return decoded

    def close(self) -> None:
        """Say that this was all. Raises Base64Error."""
        if self._held:
            found = self._held.decode("ascii", "replace")
            raise Base64Error(f"It ends at byte {self._taken} in the middle of a group: {found!r}")

    def _error(self, block: bytes) -> Base64Error:
        if strange := _STRANGE.search(block):
            at = self._taken + strange.start()
            return Base64Error(f"Found {strange[0]!r} at byte {at}, expected base64")
        at = self._taken + max(block.find(b"="), 0)
        return Base64Error(f"Padding in the wrong place, at byte {at}")
