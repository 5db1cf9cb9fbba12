"""Apply what a milter changes to the header and the body of a message, as Postfix does: no I/O.

Milters do not see the fields that Relay adds in front (Received). A place counts them as one: 0 is
before them, 1 after them. A change counts the fields of a name without them. A field that is not
changed keeps its octets.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct

from relay.message.header import FIELDS_MAX, Header, HeaderField
from relay.milter.codec import CHANGE_FIELD, INSERT_FIELD, FieldChange, MilterFaultError

_CRLF: Final = b"\r\n"
_LINE_OCTETS_MAX: Final = 65536  # of a body, about as in mail that is received
_OWN: Final = b":"  # stands for the fields that Relay adds


class _Field:
    """A field while changes are applied; without octets it is removed."""

    __slots__ = ("key", "octets")

    def __init__(self, key: bytes, octets: bytes) -> None:
        self.key = key  # the name in lower case; b"" for a line that is no field
        self.octets = octets


class ShownHeader(Struct, frozen=True):
    """The header as milters see it. `top` goes before the fields that Relay adds."""

    header: Header
    top: tuple[HeaderField, ...] = ()

    def fields(self, *, leading_blank: bool) -> Iterator[tuple[bytes, bytes]]:
        """Yield name and value of each field; lines of a value end with LF. Without
        `leading_blank`, a blank (no tab) after the colon is left out.
        """
        for key, octets in (*self.top, *self.header.fields):
            if key:
                name, _, value = octets.partition(b":")
                value = value.removesuffix(_CRLF).replace(_CRLF, b"\n")
                yield name.rstrip(b" \t"), value if leading_blank else value.removeprefix(b" ")

    def changed(self, changes: Sequence[FieldChange], *, leading_blank: bool) -> "ShownHeader":
        """Return the header with these changes. Raises MilterFaultError for too many fields."""
        if not changes:
            return self
        fields = [_Field(*one) for one in (*self.top, (_OWN, b":"), *self.header.fields)]
        first = len(self.top) + 2
        lines = (at for at in range(first, len(fields)) if not fields[at].key)
        end = next(lines, len(fields))  # for most readers the header ends there
        by_name: dict[bytes, list[_Field]] = {}
        for one in fields:
            by_name.setdefault(one.key, []).append(one)
        for change in changes:
            made = _Field(change.name.lower(), _written(change, leading_blank=leading_blank))
            same = by_name.setdefault(made.key, [])
            number = max(change.place, 1) - 1
            if change.command == CHANGE_FIELD and number < len(same):
                if change.value:
                    same[number].octets = made.octets
                else:
                    same.pop(number).octets = b""
                continue
            if change.command == CHANGE_FIELD and not change.value:
                continue
            at, earlier = end, len(same)
            if change.command == INSERT_FIELD:
                at, earlier = _place(islice(fields, end), change.place, made.key)
                at = end if at < 0 else at
            fields.insert(at, made)
            same.insert(earlier, made)
            end += 1
        left = [(one.key, one.octets) for one in fields if one.octets]
        if len(left) - 1 > FIELDS_MAX:
            raise MilterFaultError(f"a header of more than {FIELDS_MAX} fields")
        own = left.index((_OWN, b":"))
        return ShownHeader(Header(tuple(left[own + 1 :])), tuple(left[:own]))


def _place(fields: Iterable[_Field], place: int, key: bytes) -> tuple[int, int]:
    """Return where a field is inserted, and how many of its name are before it; -1: at the end."""
    earlier = 0
    for at, one in enumerate(fields):
        if one.key and one.octets:
            if not place:
                return at, earlier
            place -= 1
            earlier += one.key == key
    return -1, earlier


def _written(change: FieldChange, *, leading_blank: bool) -> bytes:
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
