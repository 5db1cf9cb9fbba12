"""What a MIME message is made of: its entities, where each lies, and what its text is like.

On the path: relay.mime.structure finds them; conversion and the store's readers ask.
Holds: places are counted from the message's first octet; no body is in memory.
Fails: never.
Standards: RFC 2045 2.4 (entity), 2.8 (7bit); RFC 5322 2.1.1 (line lengths).
"""

from dataclasses import dataclass, field
from email.message import Message

from relay.mime.section import read_header

LINE_OCTETS_MAX = 998  # RFC 5322 2.1.1, without the line end


@dataclass(frozen=True, slots=True)
class BodyFacts:
    """What a body is made of: its own text, without the parts that are in it.

    Counts are of octets and of CRLF pairs. `long_line`: one has more than LINE_OCTETS_MAX octets.
    """

    size: int = 0
    carriage_returns: int = 0
    line_feeds: int = 0
    pairs: int = 0
    eight_bit: bool = False
    nul: bool = False
    long_line: bool = False

    @property
    def has_crlf_only(self) -> bool:
        """Whether every line ends in CRLF, and no CR or LF is anywhere else."""
        return self.carriage_returns == self.line_feeds == self.pairs


@dataclass(frozen=True, slots=True)
class Entity:
    """A message or a part of one (RFC 2045 2.4); all places are counted from the first octet.

    `lead` is where the delimiter in front of it begins, its line end included; `header` are the
    octets from `start` on as they came, then come `blank` (b"" where the blank line is missing) and
    at `body_start` the body; the line end before the next delimiter lies at `end`. `parent` is an
    index into Structure.entities, -1 for the message itself. `content_type` and `encoding` are in
    lower case; `boundary` is b"" unless it has parts. `sealed`: it lies in something that is signed
    or encrypted as it stands.
    """

    parent: int
    depth: int
    lead: int
    start: int
    header: bytes = field(repr=False)
    blank: bytes
    body_start: int
    end: int
    content_type: str
    encoding: str
    boundary: bytes
    is_message: bool
    sealed: bool
    body: BodyFacts

    @property
    def is_leaf(self) -> bool:
        """Whether no other entity lies in it."""
        return not self.boundary and not self.is_message

    def fields(self) -> "Message[str, str]":
        """Parse its header."""
        return read_header(self.header)


@dataclass(frozen=True, slots=True)
class Structure:
    """All entities in the order in which they begin; the message itself is the first."""

    entities: tuple[Entity, ...]
    size: int
    defects: tuple[str, ...] = ()

    @property
    def message(self) -> Entity:
        """The message itself."""
        return self.entities[0]

    def within(self, index: int) -> range:
        """Return the indices of what lies in an entity, itself left out."""
        depth, behind = self.entities[index].depth, index + 1
        while behind < len(self.entities) and self.entities[behind].depth > depth:
            behind += 1
        return range(index + 1, behind)


@dataclass(slots=True)
class Tally:
    """Counts what BodyFacts tells, slice by slice."""

    size: int = 0
    carriage_returns: int = 0
    line_feeds: int = 0
    pairs: int = 0
    eight_bit: bool = False
    nul: bool = False
    long_line: bool = False
    line_octets: int = 0  # of the line that has not ended

    def add(self, octets: bytes, before: bytes) -> None:
        """Take a slice; `before` is the octet in front of it."""
        line_feeds, returns = octets.count(b"\n"), octets.count(b"\r")
        pairs = octets.count(b"\r\n") + (before == b"\r" and octets[:1] == b"\n")
        self.size += len(octets)
        self.line_feeds += line_feeds
        self.carriage_returns += returns
        self.pairs += pairs
        self.eight_bit = self.eight_bit or not octets.isascii()
        self.nul = self.nul or b"\0" in octets
        if not self.long_line:
            # in front of the LF is the CR, which does not count
            self._measure(octets, LINE_OCTETS_MAX + (1 if line_feeds == pairs else 0))

    def _measure(self, octets: bytes, limit: int) -> None:
        """Look whether a line is longer: one search per limit's worth of octets."""
        start = -self.line_octets
        while len(octets) - start > limit:
            line_end = octets.rfind(b"\n", max(start, 0), max(start + limit + 1, 0))
            if line_end < 0:
                self.long_line = True
                return
            start = line_end + 1
        last = octets.rfind(b"\n")
        self.line_octets = len(octets) - 1 - last if last >= 0 else self.line_octets + len(octets)

    def facts(self) -> BodyFacts:
        """Return what was counted; the last line has ended."""
        return BodyFacts(
            self.size,
            self.carriage_returns,
            self.line_feeds,
            self.pairs,
            eight_bit=self.eight_bit,
            nul=self.nul,
            long_line=self.long_line or self.line_octets > LINE_OCTETS_MAX,
        )
