"""The conditions of mail-flow rules: each key of `when` and `unless` is a class in CONDITIONS.

To add a condition, write a frozen Struct with parse(), matches() and value_in(), and add it to
MessageCondition and CONDITIONS: it is evaluated once per content. One that reads the
content is added to CONTENT_CONDITIONS. One that is evaluated per recipient has matches_recipient()
and is added to RecipientCondition. Conditions are pure. parse() raises ValueError that says what
was expected.

value_in() or value_for() returns the value that a condition compares: of several, the first that
matches.

The vocabulary is that of Exchange's mail flow rules. RFC 5321 2.3.11 (addresses), RFC 5322 3.6.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Self

from relay.message.envelope import Source
from relay.mime import headers
from relay.policy.content_conditions import (
    AttachmentCondition,
    AttachmentNameCondition,
    BodyCondition,
)
from relay.policy.globs import FieldGlobs, Globs, some_texts
from relay.policy.message_view import BaseCondition, MessageView
from relay.settings.values import parse_size

_FOUND_CHARACTERS_MAX = 120


class GlobCondition(BaseCondition, frozen=True):
    """What all conditions on one text have in common."""

    globs: Globs

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read globs. Raises ValueError."""
        return cls(Globs.of(some_texts(value)))


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
            tuple(
                (table["name"].lower(), Globs.of(some_texts(table["matches"]))) for table in tables
            )
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


MessageCondition = (
    SenderCondition
    | SourceCondition
    | SizeOverCondition
    | SubjectCondition
    | HeaderCondition
    | AttachmentNameCondition
    | AttachmentCondition
    | BodyCondition
)
# What these compare is known only where there is a message.
CONTENT_CONDITIONS = (
    SizeOverCondition,
    SubjectCondition,
    HeaderCondition,
    AttachmentNameCondition,
    AttachmentCondition,
    BodyCondition,
)
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
    "attachment": AttachmentCondition,
    "body": BodyCondition,
}
_KEYS = {kind: key for key, kind in CONDITIONS.items()}


def key_of(condition: Condition) -> str:
    """Return the key of a condition in a rule file."""
    return _KEYS[type(condition)]


def cut_value(value: str) -> str:
    """Return a value as a journey or an explanation shows it."""
    cut = value[:_FOUND_CHARACTERS_MAX]
    return f"{cut}…" if len(cut) < len(value) else cut


def _words(value: Any, words: type[StrEnum]) -> list[str]:
    known = [str(each) for each in words]
    expected = f"one or more of {', '.join(known)}"
    try:
        found = some_texts(value)
    except ValueError:
        raise ValueError(expected) from None
    if not set(found) <= set(known):
        raise ValueError(expected)
    return found
