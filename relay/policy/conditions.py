"""The conditions of mail-flow rules: each key of `when` and `unless` is a class in CONDITIONS.

To add a condition, write a frozen Struct with parse(), matches() and value_in(), and add it to
MessageCondition and CONDITIONS: it is evaluated once per content. One that reads the
content is added to CONTENT_CONDITIONS. One that is evaluated per recipient has matches_recipient()
and is added to RecipientCondition. Conditions are pure. parse() raises ValueError that says what
was expected.

Globs are matched in linear time, without regard to case; only * and ? are special, so "[EXTERNAL]*"
is literal. MessageView reads each fact of a message once, when a condition first needs it.

value_in() or value_for() returns the value that a condition compares: of several, the first that
matches.

The vocabulary is that of Exchange's mail flow rules. RFC 5321 2.3.11 (addresses), RFC 5322 3.6.
"""

import fnmatch
import re
import unicodedata
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct

from relay.message.envelope import Source
from relay.message.header import ParsedContent
from relay.message.verdict import ExaminedMessage
from relay.mime import headers
from relay.mime.encoded_words import decode_words
from relay.policy.attachment_names import attachment_names, may_have_attachments
from relay.settings.values import parse_size

GLOB_CHARACTERS_MAX = 500
VALUE_CHARACTERS_MAX = 2000  # the rest of a longer value is ignored
FIELDS_MAX = 100  # of one name; further ones are ignored
_FOUND_CHARACTERS_MAX = 120
_READ_AT_ONCE_OCTETS = 65536  # for less, a thread costs more than reading


class Globs(Struct, frozen=True):
    """Globs, any of which may match; common kinds need no regular expression."""

    whole: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ()  # "text*"
    endings: tuple[str, ...] = ()  # "*text"
    contained: tuple[str, ...] = ()  # "*text*"
    others: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """Compile `patterns`. Raises ValueError that says what was expected."""
        whole: set[str] = set()
        found: dict[tuple[bool, bool], list[str]] = {}  # by whether it ends, and begins, with a *
        others = []
        for pattern in patterns:
            if not 0 < len(pattern) <= GLOB_CHARACTERS_MAX:
                raise ValueError(f"globs of 1 to {GLOB_CHARACTERS_MAX} characters")
            folded = pattern.casefold()
            ends, begins = folded.endswith("*"), len(folded) > 1 and folded.startswith("*")
            inner = folded[begins : len(folded) - ends]
            if "*" in inner or "?" in inner:
                others.append(re.compile(fnmatch.translate(folded.replace("[", "[[]"))))
            elif ends or begins:
                found.setdefault((ends, begins), []).append(inner)
            else:
                whole.add(folded)
        return cls(
            whole=frozenset(whole),
            beginnings=tuple(found.get((True, False), ())),
            endings=tuple(found.get((False, True), ())),
            contained=tuple(found.get((True, True), ())),
            others=tuple(others),
        )

    @property
    def matches_all(self) -> bool:
        """Whether one of the globs is "*"."""
        return "" in self.beginnings

    @staticmethod
    def folded(value: str) -> str:
        """Return a value as it is compared."""
        return value[:VALUE_CHARACTERS_MAX].casefold()

    def match(self, value: str) -> bool:
        """Return whether any glob matches the whole `value`."""
        return self.match_folded(self.folded(value))

    def match_folded(self, folded: str) -> bool:
        """Return whether any glob matches a value that is folded already."""
        return (
            folded in self.whole
            or folded.startswith(self.beginnings)
            or folded.endswith(self.endings)
            or any(each in folded for each in self.contained)
            or any(each.match(folded) for each in self.others)
        )

    def match_any(self, values: Sequence[str]) -> bool:
        """Return whether any glob matches any of `values`."""
        return any(map(self.match, values))

    def first_match(self, values: Sequence[str]) -> str:
        """Return the first of `values` that matches, "" if none does."""
        return next(filter(self.match, values), "")


# A field of a message ("sender", "header x-spam") and the globs for its values; None for any value.
FieldGlobs = tuple[str, Globs | None]


class MessageView:
    """A message for conditions: `message` as received, `content` after earlier rules."""

    def __init__(self, message: ExaminedMessage, content: ParsedContent) -> None:
        self.message = message
        self.content = content
        # Not cached_property, which takes a lock before Python 3.12.
        self.size = content.size
        self._subject: str | None = None
        self._attachment_names: tuple[str, ...] | None = None
        self._values: dict[str, tuple[str, ...]] = {}
        self.known: dict[int, bool] = {}  # results, by the number of the condition

    @property
    def subject(self) -> str:
        """The decoded Subject."""
        if self._subject is None:
            self._subject = headers.decoded(self.content.header, "Subject")
        return self._subject

    @property
    def attachment_names(self) -> tuple[str, ...]:
        """The normalised names of all attachments."""
        if self._attachment_names is None:
            self._attachment_names = attachment_names(self.content)
        return self._attachment_names

    def header(self, name: str) -> tuple[str, ...]:
        """Return the values of all fields called `name`, unfolded and decoded."""
        found = self._values.get(name)
        if found is None:
            values = self.content.header.values(name)[:FIELDS_MAX]
            found = self._values[name] = tuple(map(decode_words, values))
        return found

    def field_names(self) -> Iterable[str]:
        """Return the names of the header fields, in lower case, each once."""
        return self.content.header.names()

    def values_of(self, field: str) -> Sequence[str]:
        """Return the values of a field in FieldGlobs that is not in the header."""
        match field:
            case "sender":
                return (self.message.reverse_path or "<>",)
            case "recipient":
                return self.message.recipients
            case "attachment":
                return ("",) if may_have_attachments(self.content) else ()
            case _:
                return (self.subject,)


class BaseCondition(Struct, frozen=True):
    """What all conditions have in common."""

    @property
    def is_deep(self) -> bool:
        """Whether it may take long, so that it is asked last, and in a thread."""
        return False

    def needs_thread(self, _: MessageView) -> bool:
        """Return whether it takes long for this content."""
        return self.is_deep

    def terms(self) -> Sequence[FieldGlobs]:
        """Return globs of which one matches wherever the condition does; () if there are none."""
        return ()


class GlobCondition(BaseCondition, frozen=True):
    """What all conditions on one text have in common."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(_texts(value)))


class SenderCondition(GlobCondition, frozen=True):
    """The reverse-path matches a glob; the null reverse-path is written <>."""

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return (("sender", self.globs),)

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.globs.match(view.message.reverse_path or "<>")

    def value_in(self, view: MessageView) -> str:
        """Return the reverse-path."""
        return view.message.reverse_path or "<>"


class RecipientAddressCondition(GlobCondition, frozen=True):
    """The recipient's address matches a glob."""

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return (("recipient", self.globs),)

    def matches_recipient(self, _: MessageView, recipient: str) -> bool:
        """Return whether the condition matches."""
        return self.globs.match(recipient)

    def value_for(self, _: MessageView, recipient: str) -> str:
        """Return the address."""
        return recipient


class MailDirection(StrEnum):
    """The direction of a copy; each copy has exactly one."""

    INBOUND = "inbound"  # from elsewhere to a local mailbox
    OUTBOUND = "outbound"  # to a mailbox elsewhere
    INTERNAL = "internal"  # from a local sender to a local mailbox


def _direction(view: MessageView, recipient: str) -> MailDirection:
    if recipient not in view.message.local:
        return MailDirection.OUTBOUND
    return MailDirection.INTERNAL if view.message.sender_local else MailDirection.INBOUND


class DirectionCondition(BaseCondition, frozen=True):
    """The copy for this recipient has one of these directions."""

    directions: frozenset[MailDirection]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one or more of inbound, outbound, internal. Raises ValueError."""
        return cls(frozenset(MailDirection(each) for each in _words(value, MailDirection)))

    def matches_recipient(self, view: MessageView, recipient: str) -> bool:
        """Return whether the condition matches."""
        return _direction(view, recipient) in self.directions

    def value_for(self, view: MessageView, recipient: str) -> str:
        """Return the direction."""
        return str(_direction(view, recipient))


class SourceCondition(BaseCondition, frozen=True):
    """How the message arrived."""

    sources: frozenset[Source]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one or more of graph, smtp, sendmail, report. Raises ValueError."""
        return cls(frozenset(Source(each) for each in _words(value, Source)))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return view.message.source in self.sources

    def value_in(self, view: MessageView) -> str:
        """Return how it arrived."""
        return str(view.message.source)


class SizeOverCondition(BaseCondition, frozen=True):
    """The whole message, header and encodings included, has more bytes than this."""

    size_bytes: int

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "25 MiB" or a number of bytes. Raises ValueError."""
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return cls(value)
        return cls(parse_size(value if isinstance(value, str) else ""))

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return view.size > self.size_bytes

    def value_in(self, view: MessageView) -> str:
        """Return the size."""
        return str(view.size)


class SubjectCondition(GlobCondition, frozen=True):
    """The decoded Subject matches a glob."""

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return (("subject", self.globs),)

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.globs.match(view.subject)

    def value_in(self, view: MessageView) -> str:
        """Return the Subject."""
        return view.subject


class HeaderCondition(BaseCondition, frozen=True):
    """One of the fields, decoded, matches one of its globs; a missing field matches none."""

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
                raise ValueError(f"{expected}; this name is not a field name")
        return cls(
            tuple((table["name"].lower(), Globs.of(_texts(table["matches"]))) for table in tables)
        )

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition."""
        return [(f"header {name}", globs) for name, globs in self.fields]

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return any(globs.match_any(view.header(name)) for name, globs in self.fields)

    def value_in(self, view: MessageView) -> str:
        """Return the first field that matches, else the first of these fields, "" without any."""
        return ": ".join(self._field(view))

    def _field(self, view: MessageView) -> tuple[str, ...]:
        """Return the name and the value of value_in(), nothing without any."""
        found: tuple[str, ...] = ()
        for name, globs in self.fields:
            values = view.header(name)
            if globs.match_any(values):
                return name, globs.first_match(values)
            if values and not found:
                found = name, values[0]
        return found


class AttachmentNameCondition(GlobCondition, frozen=True):
    """The name of an attachment matches a glob, in any encoding and at any nesting."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(unicodedata.normalize("NFKC", text) for text in _texts(value)))

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return True

    def needs_thread(self, view: MessageView) -> bool:
        """Return whether it takes long for this content: a small one is read at once."""
        return view.size > _READ_AT_ONCE_OCTETS

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition: any attachment."""
        return (("attachment", None),)

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches."""
        return self.globs.match_any(view.attachment_names)

    def value_in(self, view: MessageView) -> str:
        """Return the first name that matches, else all names."""
        names = view.attachment_names
        return self.globs.first_match(names) or ", ".join(names)


MessageCondition = (
    SenderCondition
    | SourceCondition
    | SizeOverCondition
    | SubjectCondition
    | HeaderCondition
    | AttachmentNameCondition
)
# What these compare is known only where there is a message.
CONTENT_CONDITIONS = (SizeOverCondition, SubjectCondition, HeaderCondition, AttachmentNameCondition)
RecipientCondition = RecipientAddressCondition | DirectionCondition
Condition = MessageCondition | RecipientCondition


# In the order of evaluation: the most expensive ones come last.
CONDITIONS: dict[str, type[Condition]] = {
    "source": SourceCondition,
    "direction": DirectionCondition,
    "size_over": SizeOverCondition,
    "sender": SenderCondition,
    "recipient": RecipientAddressCondition,
    "subject": SubjectCondition,
    "header": HeaderCondition,
    "attachment_name": AttachmentNameCondition,
}
_KEYS = {kind: key for key, kind in CONDITIONS.items()}


def key_of(condition: Condition) -> str:
    """Return the key of a condition in a rule file."""
    return _KEYS[type(condition)]


def cut_value(value: str) -> str:
    """Return a value as a journey or an explanation shows it."""
    cut = value[:_FOUND_CHARACTERS_MAX]
    return f"{cut}…" if len(cut) < len(value) else cut


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
