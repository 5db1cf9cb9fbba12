"""Apply the changes of a milter to the header and the body of a message, as Postfix does: no I/O.

Milters do not see the fields that Relay adds in front (Received). In the place of a new field they
count as one field: 0 is before them, 1 after them. When a milter changes the n-th field of a name,
they do not count. A field that is not changed keeps its octets.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct

from relay.base.message.header import FIELDS_MAX, Header, HeaderField
from relay.transport.milter.codec import CHANGE_FIELD, INSERT_FIELD, FieldChange, MilterFaultError

_CRLF: Final = b"\r\n"
_LINE_OCTETS_MAX: Final = 1024 * 1024  # of a body; about the limit for received mail
_OWN_FIELD: Final = (b":", b"")  # stands for the fields that Relay adds


class ShownHeader(Struct, frozen=True):
    """The header as milters see it. `top` goes before the fields that Relay adds."""

    header: Header
    top: tuple[HeaderField, ...] = ()

    def fields(self, *, leading_blank: bool) -> Iterator[tuple[bytes, bytes]]:
        """Yield name and value of each field; lines of a value end with LF.

        Without `leading_blank`, a blank after the colon is left out, but not a tab.
        """
        for key, octets in (*self.top, *self.header.fields):
            if key:
                name, _, value = octets.partition(b":")
                value = value.removesuffix(_CRLF).replace(_CRLF, b"\n")
                yield name.rstrip(), value if leading_blank else value.removeprefix(b" ")

    def changed(self, changes: Sequence[FieldChange], *, leading_blank: bool) -> "ShownHeader":
        """Return the header with these changes. Raises MilterFaultError for too many fields."""
        if not changes:
            return self
        fields = [*self.top, _OWN_FIELD, *self.header.fields]
        first = len(self.top) + 2
        lines = (at for at in range(first, len(fields)) if not fields[at][0])
        end = next(lines, len(fields))  # for most readers the header ends there
        for change in changes:
            made = change.name.lower(), written(change, leading_blank=leading_blank)
            if change.command == CHANGE_FIELD:
                same = (at for at, (key, _) in enumerate(fields) if key == made[0])
                index = next(islice(same, max(change.place, 1) - 1, None), None)
                if index is not None and change.value:
                    fields[index] = made
                    continue
                if index is not None:
                    del fields[index]
                    end -= 1 if index < end else 0
                    continue
                if not change.value:
                    continue
            at = min(change.place, end) if change.command == INSERT_FIELD else end
            fields.insert(at, made)
            end += 1
            if len(fields) - 1 > FIELDS_MAX:
                raise MilterFaultError(f"a header of more than {FIELDS_MAX} fields")
        own = fields.index(_OWN_FIELD)
        return ShownHeader(Header(tuple(fields[own + 1 :])), tuple(fields[:own]))


def written(change: FieldChange, *, leading_blank: bool) -> bytes:
    """Return the octets of a field that a milter adds or changes."""
    blank = b"" if leading_blank else b" "
    return b"".join((change.name, b":", blank, change.value.replace(b"\n", _CRLF), _CRLF))


class BodyLines:
    """Checks the text of a new body piece by piece, and ends its lines with CRLF."""

    def __init__(self) -> None:
        self._held = b""  # a CR whose LF has not come
        self._line_octets = 0
        self.eight_bit = False

    def add(self, piece: bytes) -> bytes:
        """Return a piece as it is stored. Raises MilterFaultError for a lone CR, a NUL, and a line
        that is too long.
        """
        piece = self._held + piece
        self._held = b"\r" if piece.endswith(b"\r") else b""
        text = piece.removesuffix(b"\r").replace(_CRLF, b"\n")
        if b"\r" in text or b"\0" in text:
            raise MilterFaultError("a body with a lone CR or a NUL")
        first, _, _ = text.partition(b"\n")
        longest = self._line_octets + len(first)
        self._line_octets = len(text) - text.rfind(b"\n") - 1 if b"\n" in text else longest
        if max(longest, self._line_octets) > _LINE_OCTETS_MAX:
            raise MilterFaultError(f"a body with a line of more than {_LINE_OCTETS_MAX} octets")
        self.eight_bit = self.eight_bit or not text.isascii()
        return text.replace(b"\n", _CRLF)

    def end(self) -> bytes:
        """Return what ends the last line. Raises MilterFaultError for a lone CR."""
        if self._held:
            raise MilterFaultError("a body with a lone CR")
        return _CRLF if self._line_octets else b""
