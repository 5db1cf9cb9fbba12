"""The conditions that `when` and `unless` may use: one class each, and its line in CONDITIONS.

On the path: loader parses them from the rule files; the engine asks holds().
Holds: pure; a condition on the recipient is asked per recipient, all others once per content.
Fails: parse() with ValueError that says what was expected.
Standards: the vocabulary is Exchange's mail flow rules; RFC 5321 2.3.11 (addresses).
"""

import fnmatch
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

from relay.message.content import Content, in_sight, size_of
from relay.message.verdict import Examined, Source, Subject
from relay.mime import headers
from relay.mime.encodedwords import decode_words
from relay.policy.attachments import attachment_names
from relay.settings.values import parse_size

GLOB_CHARACTERS_MAX = 500
VALUE_CHARACTERS_MAX = 2000  # the rest of a longer value is not looked at


@dataclass(frozen=True, slots=True)
class Globs:
    """Some globs, any of which may match; the common kinds need no regular expression."""

    whole: frozenset[str]
    endings: tuple[str, ...]
    others: tuple[re.Pattern[str], ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """Compile `patterns`. Raises ValueError that says what was expected."""
        whole, endings, others = set(), [], []
        for pattern in patterns:
            if not 0 < len(pattern) <= GLOB_CHARACTERS_MAX:
                raise ValueError(f"globs of 1 to {GLOB_CHARACTERS_MAX} characters")
            folded = pattern.casefold()
            if "*" not in folded and "?" not in folded:
                whole.add(folded)
            elif folded[0] == "*" and "*" not in folded[1:] and "?" not in folded:
                endings.append(folded[1:])
            else:
                others.append(re.compile(fnmatch.translate(folded.replace("[", "[[]"))))
        return cls(frozenset(whole), tuple(endings), tuple(others))

    def match(self, value: str) -> bool:
        """Whether any glob matches the whole of `value`."""
        folded = value[:VALUE_CHARACTERS_MAX].casefold()
        return (
            folded in self.whole
            or folded.endswith(self.endings)
            or any(other.match(folded) for other in self.others)
        )

    def match_any(self, values: Sequence[str]) -> bool:
        """Whether any glob matches any value."""
        return any(map(self.match, values))


FIELDS_MAX = 100  # of one name; further ones are not looked at


class View:
    """A content with its envelope: `mail` is how it came in, `content` its present form."""

    def __init__(self, mail: Subject, content: Content) -> None:
        self.mail = mail
        self.content = content
        self._in_sight = in_sight(content)
        # Not cached_property: before Python 3.12 each first look takes a lock.
        self._subject: str | None = None
        self._attachment_names: tuple[str, ...] | None = None
        self._lowered_header: bytes | None = None
        self._values: dict[str, tuple[str, ...]] = {}

    @property
    def subject(self) -> str:
        """The Subject as people read it."""
        if self._subject is None:
            self._subject = headers.decoded(self._in_sight, "Subject")
        return self._subject

    @property
    def attachment_names(self) -> tuple[str, ...]:
        """The normalised names of all attachments."""
        if self._attachment_names is None:
            self._attachment_names = attachment_names(self.content)
        return self._attachment_names

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name` (lower case), unfolded and decoded."""
        found = self._values.get(name)
        if found is None:
            found = self._values[name] = self._find(name.encode())
        return found

    def _find(self, name: bytes) -> tuple[str, ...]:
        content = self._in_sight
        if self._lowered_header is None:
            self._lowered_header = content[: headers.split(content)].lower()
        if name not in self._lowered_header:
            return ()
        return tuple(
            decode_words(content[field.value_start : field.end].replace(b"\r\n", b"").strip(b" \t"))
            for field in headers.fields(content)
            if field.name == name
        )[:FIELDS_MAX]


@dataclass(frozen=True, slots=True)
class Sender:
    """The reverse-path matches a glob; the null reverse-path is written <>."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(_texts(value)))

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return self.globs.match(view.mail.reverse_path or "<>")


@dataclass(frozen=True, slots=True)
class Recipient:
    """The recipient's address matches a glob."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(_texts(value)))

    def holds_for(self, _: View, recipient: Examined) -> bool:
        """Whether it is so."""
        return self.globs.match(recipient.address)


class Flow(StrEnum):
    """Which way a copy goes; seen from this relay, every copy goes exactly one way."""

    INBOUND = "inbound"  # from elsewhere to a mailbox here
    OUTBOUND = "outbound"  # to a mailbox elsewhere
    INTERNAL = "internal"  # from here to here


@dataclass(frozen=True, slots=True)
class Direction:
    """The copy for this recipient goes one of these ways."""

    flows: frozenset[Flow]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one or more of inbound, outbound, internal. Raises ValueError."""
        return cls(frozenset(Flow(each) for each in _words(value, Flow)))

    def holds_for(self, view: View, recipient: Examined) -> bool:
        """Whether it is so."""
        if not recipient.local:
            return Flow.OUTBOUND in self.flows
        return (Flow.INTERNAL if view.mail.sender_local else Flow.INBOUND) in self.flows


@dataclass(frozen=True, slots=True)
class CameBy:
    """How the message came in."""

    sources: frozenset[Source]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one or more of graph, smtp, sendmail, report. Raises ValueError."""
        return cls(frozenset(Source(each) for each in _words(value, Source)))

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return view.mail.source in self.sources


@dataclass(frozen=True, slots=True)
class SizeOver:
    """The whole message, header and encodings included, has more bytes than this."""

    size_bytes: int

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "25 MiB" or a number of bytes. Raises ValueError."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        return cls(parse_size(value if isinstance(value, str) else ""))

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return size_of(view.content) > self.size_bytes


@dataclass(frozen=True, slots=True)
class SubjectText:
    """The decoded Subject matches a glob."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(_texts(value)))

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return self.globs.match(view.subject)


@dataclass(frozen=True, slots=True)
class Header:
    """One of some fields, decoded, matches one of its globs; a missing field matches none."""

    fields: tuple[tuple[str, Globs], ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { name, matches }, or a list of them. Raises ValueError."""
        tables = value if isinstance(value, list) else [value]
        expected = 'a table with a field\'s name and globs, { name = "X-Spam", matches = "yes*" }'
        if not tables:
            raise ValueError(expected)
        for table in tables:
            if not isinstance(table, dict) or set(table) != {"name", "matches"}:
                raise ValueError(expected)
            if not isinstance(table["name"], str) or not headers.is_field_name(table["name"]):
                raise ValueError(f"{expected}; this name is no field's name")
        return cls(
            tuple((table["name"].lower(), Globs.of(_texts(table["matches"]))) for table in tables)
        )

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return any(globs.match_any(view.header(name)) for name, globs in self.fields)


@dataclass(frozen=True, slots=True)
class AttachmentName:
    """The name of an attachment matches a glob, however it is written or nested."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(unicodedata.normalize("NFKC", text) for text in _texts(value)))

    def holds(self, view: View) -> bool:
        """Whether it is so."""
        return self.globs.match_any(view.attachment_names)


MessageCondition = Sender | CameBy | SizeOver | SubjectText | Header | AttachmentName
RecipientCondition = Recipient | Direction
Condition = MessageCondition | RecipientCondition


class ConditionType(Protocol):
    """What the loader needs of a condition's class."""

    def parse(self, value: Any) -> Condition:
        """Read the value behind the key. Raises ValueError that says what was expected."""
        ...


# In the order in which they are asked: what costs most comes last.
CONDITIONS: dict[str, ConditionType] = {
    "source": CameBy,
    "direction": Direction,
    "size_over": SizeOver,
    "sender": Sender,
    "recipient": Recipient,
    "subject": SubjectText,
    "header": Header,
    "attachment_name": AttachmentName,
}


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(each, str) for each in texts):
        raise ValueError("a text or a list of texts")
    return texts


def _words(value: Any, words: type[StrEnum]) -> list[str]:
    known = [str(each) for each in words]
    expected = f"one or more of {', '.join(known)}"
    try:
        texts = _texts(value)
    except ValueError:
        raise ValueError(expected) from None
    if not set(texts) <= set(known):
        raise ValueError(expected)
    return texts
