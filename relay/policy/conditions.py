"""The conditions that `when` and `unless` may use: one class each, and its line in CONDITIONS.

On the path: loader parses them from the rule files; the engine asks holds().
Holds: pure; a condition on the recipient is asked per recipient, all others once per content.
Fails: parse() with ValueError that says what was expected.
Standards: the vocabulary is Exchange's mail flow rules; RFC 5321 2.3.11 (addresses).
"""

import unicodedata
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, Self

from relay.message.content import size_of
from relay.message.verdict import Examined, Source
from relay.mime import headers
from relay.policy.globs import Globs
from relay.policy.view import View
from relay.settings.values import parse_size


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
