"""What is to be replaced in a MIME message, and the message with it replaced.

On the path: a change of a MIME draft gathers its edits here.
Holds: what no edit names stays octet for octet, and lies where it lay; edits do not overlap.
Fails: OSError where the content cannot be read.
Standards: RFC 5322 2.1; RFC 2046 5.1.
"""

from collections.abc import Iterable
from operator import itemgetter

from relay.message.content import MemoryOctets, Octets
from relay.mime.entities import Entity, Structure
from relay.mime.section import MARK, cleaned, split_fields, with_fields

CRLF = b"\r\n"
Fields = list[tuple[bytes, bytes]]  # lower-case name, the field with its line end


class Edits:
    """What of a message is to be replaced: places in its body, and the fields of its header."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        message = structure.message
        # a NUL in a name would hide a field, and so would what comes in front of a mark
        is_odd = b"\0" in message.header or message.header.startswith(MARK)
        header = cleaned(message.header) if is_odd else message.header
        if header and not header.endswith((b"\r", b"\n")):
            header += CRLF
        self.fields = list(split_fields(header))
        self._places: list[tuple[int, int, tuple[bytes | range, ...]]] = []
        self._ends_of_lines: set[int] = set()

    def replace_fields(self, names: Iterable[str], written: Iterable[tuple[bytes, bytes]]) -> None:
        """Put what is written of these names into the place of the first that there is."""
        wanted = {name.lower().encode() for name in names}
        new = [one for one in written if one[0] in wanted]
        kept = []
        for name, octets in self.fields:
            if name not in wanted:
                kept.append((name, octets))
                continue
            mine = [one for one in new if one[0] == name]
            kept += mine
            new = [one for one in new if one[0] != name]
        self.fields = with_fields(kept, new)

    def replace(self, start: int, end: int, *instead: bytes | range) -> None:
        """Put octets, and ranges of the content, into the place of what is from start to end."""
        self._places.append((start, end, instead))

    def replace_lines(self, start: int, end: int, *instead: bytes | range) -> None:
        """replace(), with a line end behind it where none stands there: a delimiter's may be that
        of the delimiter, or of the blank line, in front of it.
        """
        self.replace(start, end, *instead)
        self._ends_of_lines.add(end)

    def replace_header(self, entity: Entity, fields: Fields) -> None:
        """Give a part, or the message, other fields."""
        if entity is self.structure.message:
            self.fields = fields
            return
        header = b"".join(octets for _, octets in fields)
        end = entity.start + len(entity.header)
        self.replace(entity.start, end, header if entity.blank else header + CRLF)

    def applied(self, content: Octets) -> tuple[Octets, ...]:
        """Return the message in pieces: what stays lies where it lay."""
        message = self.structure.message
        header = b"".join(octets for _, octets in self.fields)
        has_body = self.structure.size > message.body_start or bool(self._places)
        pieces: list[Octets] = [MemoryOctets(header + (message.blank or CRLF * has_body))]
        place = message.body_start
        for start, end, instead in sorted(self._places, key=itemgetter(0)):
            pieces.append(content.part(place, start - place))
            for one in instead:
                if isinstance(one, bytes):
                    pieces.append(MemoryOctets(one))
                else:
                    pieces.append(content.part(one.start, len(one)))
            if end in self._ends_of_lines and content.read(end, 1) not in (b"\r", b"\n"):
                pieces.append(MemoryOctets(CRLF))
            place = end
        pieces.append(content.part(place, self.structure.size - place))
        return tuple(one for one in pieces if one.size)
