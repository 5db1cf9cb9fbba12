"""The actions of mail-flow rules: each key of `then` is a class and a line in ACTIONS.

To add an action, write a frozen dataclass with parse(), add it to ACTIONS, and apply it in engine.
Header edits are pure functions here. parse() raises ValueError that says what was expected; an edit
cannot fail afterwards.

RFC 3463 (code of reject), RFC 5322 3.6 (fields), RFC 5321 4.4 (trace fields).
"""

from dataclasses import dataclass
from typing import Any, Self

from msgspec import Struct

from relay.message.address import AddressError, parse_mailbox
from relay.message.header import Header
from relay.message.status import REPLY_TEXT_MAX, split_reply
from relay.message.verdict import ExaminedMessage
from relay.mime import headers

REJECT_STATUS = "5.7.1"
ADDRESSES_MAX = 50
PROTECTED = frozenset({"received", "return-path", "dkim-signature"})
PROTECTED_PREFIX = "x-relay-"
FINAL = ("reject", "discard", "redirect")  # no action can follow these


class RejectAction(Struct, frozen=True):
    """The recipient is rejected; the sender gets `text`."""

    status: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "5.7.1 text"; without a code it is 5.7.1. Raises ValueError."""
        reply = split_reply(value) if isinstance(value, str) else None
        if reply is None or not reply.text.strip() or not reply.text.isprintable():
            raise ValueError('a code and a text for the sender, "5.7.1 Not accepted"')
        if len(reply.text) > REPLY_TEXT_MAX:
            raise ValueError(f"a text of at most {REPLY_TEXT_MAX} characters")
        if reply.status and not reply.status.startswith("5."):
            raise ValueError("a code 5.y.z: a reject is permanent")
        return cls(reply.status or REJECT_STATUS, reply.text.strip())


class DiscardAction(Struct, frozen=True):
    """The recipient gets nothing, and no report is sent."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read true. Raises ValueError."""
        if value is not True:
            raise ValueError("true")
        return cls()


class AddressesAction(Struct, frozen=True):
    """What all actions that add addresses have in common."""

    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read addresses. Raises ValueError."""
        return cls(_addresses(value))


class RedirectAction(AddressesAction, frozen=True):
    """Other addresses get the message instead of the recipient."""


class BccAction(AddressesAction, frozen=True):
    """Other addresses get a copy that no header shows."""


class CcAction(AddressesAction, frozen=True):
    """Other addresses get a copy; the Cc field of the matched recipients' copies shows them."""

    def edit(self, header: Header, message: ExaminedMessage) -> Header:
        """Append those that are not yet recipients to the Cc field."""
        present = {recipient.casefold() for recipient in message.recipients}
        shown = [each for each in self.addresses if each.casefold() not in present]
        if not shown:
            return header
        new = ",\r\n ".join(shown).encode()
        found = header.first_octets("Cc")
        if found is None:
            return header.append(b"Cc: " + new + b"\r\n")
        old = found.rstrip()
        comma = b"" if old.endswith(b":") else b","
        return header.replace_first("Cc", old + comma + b"\r\n " + new + b"\r\n")


@dataclass(frozen=True, slots=True)
class SetHeaderAction:
    """The header has exactly one field of this name."""

    name: str
    value: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { name, value }. Raises ValueError."""
        keys = set(value) if isinstance(value, dict) else set()
        if keys != {"name", "value"} or not all(isinstance(each, str) for each in value.values()):
            raise ValueError('a table with two texts, { name = "X-Tag", value = "yes" }')
        _check_name(value["name"])
        try:
            headers.field(value["name"], value["value"])
        except ValueError as error:
            raise ValueError(f"a value that a field can hold: {error}") from None
        return cls(value["name"], value["value"])

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Replace the field or append it."""
        return headers.set_field(header, self.name, self.value)


class RemoveHeaderAction(Struct, frozen=True):
    """The header has no fields of these names."""

    names: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a name or a list of names. Raises ValueError."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            raise ValueError("a field's name or a list of names")
        for name in names:
            _check_name(name)
        return cls(tuple(names))

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Remove the fields."""
        return header.remove(self.names)


class SubjectPrefixAction(Struct, frozen=True):
    """The Subject begins with this tag, exactly once."""

    tag: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read the tag. Raises ValueError."""
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise ValueError('one line of text, "[EXTERNAL]"')
        return cls(value.strip())

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Add the tag, if it is missing."""
        return headers.prefix_subject(header, self.tag)


HeaderEdit = CcAction | SetHeaderAction | RemoveHeaderAction | SubjectPrefixAction
RuleAction = RejectAction | DiscardAction | RedirectAction | BccAction | HeaderEdit


ACTIONS: dict[str, type[RuleAction]] = {
    "reject": RejectAction,
    "discard": DiscardAction,
    "redirect": RedirectAction,
    "cc": CcAction,
    "bcc": BccAction,
    "set_header": SetHeaderAction,
    "remove_header": RemoveHeaderAction,
    "subject_prefix": SubjectPrefixAction,
}


def _addresses(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= ADDRESSES_MAX:
        raise ValueError(f"an address or a list of 1 to {ADDRESSES_MAX} addresses")
    addresses = []
    for text in texts:
        try:
            addresses.append(parse_mailbox(text if isinstance(text, str) else "", smtputf8=True))
        except AddressError as error:
            raise ValueError(f"addresses: {error}") from None
    return tuple(dict.fromkeys(addresses))


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not headers.is_field_name(name):
        raise ValueError("a field's name: printable ASCII without ':'")
    if name.lower() in PROTECTED or name.lower().startswith(PROTECTED_PREFIX):
        raise ValueError(
            "a field that rules may change, not Received, Return-Path, DKIM-Signature or X-Relay-*"
        )
