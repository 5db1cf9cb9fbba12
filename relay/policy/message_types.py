"""The condition `message_type`: the kind of a message, by its header and the types of its parts.

RFC 3834 5 (Auto-Submitted), RFC 2919 (List-Id), RFC 1847 (multipart/signed and encrypted), RFC 8551
3.2 (S/MIME), RFC 6522 (multipart/report), RFC 5545 8.1 (text/calendar).
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Self

from relay.message.header import Header
from relay.mime.content_fields import ContentField, content_field
from relay.policy.content_conditions import is_slow
from relay.policy.globs import FieldGlobs, Groups
from relay.policy.message_parts import may_have_attachments
from relay.policy.message_view import FIELDS_MAX, BaseCondition, MessageView
from relay.policy.table_reader import one_of, parts

_BULK = ("bulk", "junk")
_SMIME = ("application/pkcs7-mime", "application/x-pkcs7-mime")
_ENVELOPED = ("enveloped-data", "authenveloped-data")
_CALENDARS = ("text/calendar", "application/ics")


class MessageType(StrEnum):
    """The kinds of messages, in the order in which they are asked; a message may be of several."""

    AUTOMATIC = "automatic"  # a program sent it, or it is bulk mail
    LIST = "list"  # it comes from a mailing list
    REPORT = "report"  # about the delivery or the reading of another one
    SIGNED = "signed"  # as a whole
    ENCRYPTED = "encrypted"  # the same
    CALENDAR = "calendar"  # an invitation, or an answer to one


class MessageTypeCondition(BaseCondition, frozen=True):
    """The message is of one of these kinds."""

    kinds: tuple[MessageType, ...]  # in the order of MessageType

    @classmethod
    def parse(cls, value: Any, _: Groups) -> Self:
        """Read one or more kinds. Raises ValueError."""
        values = value if value and isinstance(value, list) else [value]
        found = parts(values, one_of(MessageType))
        return cls(tuple(each for each in MessageType if each in found))

    @property
    def is_deep(self) -> bool:
        """See BaseCondition."""
        return MessageType.CALENDAR in self.kinds

    def needs_thread(self, view: MessageView) -> bool:
        """Return whether the types of the parts have to be found, and that takes long."""
        return self.is_deep and may_have_attachments(view.content) and is_slow(view)

    def terms(self) -> Sequence[FieldGlobs]:
        """See BaseCondition: the field that says it is there."""
        names = dict.fromkeys(name for each in self.kinds for name in _FIELDS.get(each, ()))
        return () if self.is_deep else [(f"header {name}", None) for name in names]

    def matches(self, view: MessageView) -> bool:
        """Return whether the condition matches. Raises what MessageView raises."""
        return any(_is_of(view, each) for each in self.kinds)

    def value_in(self, view: MessageView) -> str:
        """Return the first kind that matches, else the others of the message.

        Raises what MessageView raises.
        """
        for each in self.kinds:
            if _is_of(view, each):
                return each
        return ", ".join(each for each in _BY_HEADER if _is_of(view, each))


def _is_of(view: MessageView, kind: MessageType) -> bool:
    """Return whether a message is of a kind."""
    header = view.content.header
    if kind is not MessageType.CALENDAR:
        return _BY_HEADER[kind](header)
    if any(each.value in _CALENDARS for each in _read(header, "Content-Type")):
        return True
    return may_have_attachments(view.content) and any(
        part.content_type in _CALENDARS and not part.is_forwarded for part in view.parts
    )


def _read(header: Header, name: str) -> list[ContentField]:
    values = header.values(name)[:FIELDS_MAX]
    return [content_field(each.decode("latin-1")) for each in values]


def _is_automatic(header: Header) -> bool:
    return any(each.value not in ("", "no") for each in _read(header, "Auto-Submitted")) or any(
        each.value in _BULK for each in _read(header, "Precedence")
    )


def _is_signed(header: Header) -> bool:
    return any(
        each.value == "multipart/signed" or _smime_type(each, header) == "signed-data"
        for each in _read(header, "Content-Type")
    )


def _is_encrypted(header: Header) -> bool:
    return any(
        each.value == "multipart/encrypted" or _smime_type(each, header) in _ENVELOPED
        for each in _read(header, "Content-Type")
    )


def _smime_type(field: ContentField, header: Header) -> str:
    """Return what an S/MIME message contains, "" for other messages. Without a parameter that says
    it, the name does.
    """
    if field.value not in _SMIME:
        return ""
    if found := field.raw("smime-type"):
        return found.lower()
    names = [*field.all("name")]
    for each in _read(header, "Content-Disposition"):
        names += each.all("filename")
    is_signed = any(name.lower().endswith(".p7s") for name in names)
    return "signed-data" if is_signed else "enveloped-data"


_BY_HEADER: dict[MessageType, Callable[[Header], bool]] = {
    MessageType.AUTOMATIC: _is_automatic,
    MessageType.LIST: lambda header: "List-Id" in header,
    MessageType.REPORT: lambda header: any(
        each.value == "multipart/report" for each in _read(header, "Content-Type")
    ),
    MessageType.SIGNED: _is_signed,
    MessageType.ENCRYPTED: _is_encrypted,
}
# Without these fields, a message is not of the kind.
_FIELDS: dict[MessageType, Sequence[str]] = {
    MessageType.AUTOMATIC: ("auto-submitted", "precedence"),
    MessageType.LIST: ("list-id",),
    MessageType.REPORT: ("content-type",),
    MessageType.SIGNED: ("content-type",),
    MessageType.ENCRYPTED: ("content-type",),
}
