"""The actions that edit a message: its header fields, its sender, and the disclaimer in its text.

relay/transport/policy/actions.py says what an action is, and has the keys. Edits of the header are
pure functions, and edited() applies the edits of a rule. An edit does not fail, with one exception:
a disclaimer raises OSError if a large body cannot be read. relay.formats.disclaimer writes the
messages with disclaimers.

RFC 3463 3.7 (5.6.3: the content cannot be converted), RFC 5322 3.6 (fields), RFC 5321 4.4 (trace
fields).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

from msgspec import Struct

from relay.base.message.address import own_mailbox
from relay.base.message.header import Header, ParsedContent
from relay.base.message.properties import EmailAddress
from relay.base.message.verdict import ExaminedMessage, Finding
from relay.formats import headers
from relay.formats.disclaimer import Disclaimer, DisclaimerObstacle, with_disclaimer, wrapped
from relay.formats.html_tokens import html_layout
from relay.formats.read_header import originators
from relay.formats.write_header import address_list_field
from relay.transport.policy.recipient_actions import AddressesAction, read_address
from relay.transport.policy.table_reader import check_parts, long_text, part, parts, typed

DISCLAIMER_TEXT_MAX = 5000  # characters, as in Exchange
DISCLAIMER_HTML_MAX = 20_000  # characters: its styles take more than its text
NO_DISCLAIMER_STATUS = "5.6.3"
PROTECTED = frozenset({"received", "return-path", "dkim-signature"})
PROTECTED_PREFIX = "x-relay-"
_KEYS = ("text", "html", "where", "fallback")
_EXPECTED = 'a table { text = "For the addressee only" }'


class CcAction(AddressesAction, frozen=True):
    """Other recipients get a copy, and are added to its Cc field.

    address or list, at most 50
    """

    def edit(self, header: Header, message: ExaminedMessage) -> Header:
        """Append the addresses that are not yet recipients to the Cc field."""
        present = set(map(own_mailbox, message.recipients))
        added = [address for address in self.addresses if own_mailbox(address) not in present]
        if not added:
            return header
        new = ",\r\n ".join(added).encode()
        cc_field = header.first_octets("Cc")
        if cc_field is None:
            return header.append(b"Cc: " + new + b"\r\n")
        old = cc_field.rstrip()
        comma = b"" if old.endswith(b":") else b","
        return header.replace_first("Cc", old + comma + b"\r\n " + new + b"\r\n")


@dataclass(frozen=True, slots=True)
class SetHeaderAction:
    """All fields of that name are replaced by one.

    `{ name = "X-Tag", value = "yes" }`
    """

    name: str
    value: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { name, value }. Raises ValueError."""
        keys = set(value) if isinstance(value, dict) else set()
        if keys != {"name", "value"} or not all(isinstance(text, str) for text in value.values()):
            raise ValueError('a table with two texts, { name = "X-Tag", value = "yes" }')
        name = part(value, "name", _checked_name)
        part(value, "value", lambda text: _field(name, text))
        return cls(name, value["value"])

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Replace the field or append it."""
        return headers.set_field(header, self.name, self.value)


class RemoveHeaderAction(Struct, frozen=True):
    """All fields of that name are removed.

    name or list
    """

    names: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read a name or a list of names. Raises ValueError."""
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            raise ValueError("a field's name or a list of names")
        return cls(tuple(parts(names, _checked_name)))

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Remove the fields."""
        return header.remove(self.names)


class SubjectPrefixAction(Struct, frozen=True):
    """The tag is put in front of the Subject, unless the Subject has it (`Re: [TAG]`).

    `"[EXTERNAL]"`
    """

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


class SetSenderAction(Struct, frozen=True):
    """The message is [from this address](#devices-and-cron).

    an address of an own domain, or that a route names
    """

    address: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read an address. Raises ValueError.

        Whether the domain is an own domain is checked in rule_files, where these are known.
        """
        address = read_address(value)
        if not address.isascii():
            raise ValueError("an address in ASCII: not each next hop takes others")
        return cls(address)

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Replace From by this address, with the name of the first author.

        Sender is removed: it would name another mailbox that sends the message (RFC 5322 3.6.2).
        """
        authors = [
            address
            for field in originators(header)
            if field.name == "From"
            for address in field.addresses
        ]
        author = EmailAddress(self.address, authors[0].name if authors else "")
        from_field = address_list_field("From", [author]).encode()
        return header.remove(("Sender",)).set("From", from_field)


HeaderEdit = CcAction | SetHeaderAction | RemoveHeaderAction | SubjectPrefixAction | SetSenderAction


def _field(name: str, value: str) -> bytes:
    try:
        return headers.field(name, value)
    except ValueError as error:
        raise ValueError(f"a value that a field can hold: {error}") from None


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not headers.is_field_name(name):
        raise ValueError("a field's name: printable ASCII without ':'")
    if name.lower() in PROTECTED or name.lower().startswith(PROTECTED_PREFIX):
        raise ValueError(
            "a field that rules may change, not Received, Return-Path, DKIM-Signature or X-Relay-*"
        )
    return str(name)


class DisclaimerPlace(StrEnum):
    """Where the disclaimer stands in a text."""

    END = "end"
    START = "start"


class DisclaimerFallback(StrEnum):
    """`fallback`: what happens to a message that cannot have the disclaimer."""

    # it becomes a new message: the disclaimer, and the original attached, octet for octet. The
    # header has the fields of the original: a rule that removes a field must come before
    WRAP = "wrap"
    IGNORE = "ignore"  # it stays as it is
    REJECT = "reject"  # the matched recipients are rejected with `554 5.6.3`


class DisclaimerAction(Struct, frozen=True):
    """A [text](#disclaimers) is added to the body.

    `{ text = "For the addressee only" }`
    """

    text: str
    html: str  # "": made from the text
    where: DisclaimerPlace
    fallback: DisclaimerFallback

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { text, html, where, fallback }; only text is required. Raises ValueError."""
        if not isinstance(value, dict) or "text" not in value:
            raise ValueError(f"{_EXPECTED}; it may also have {', '.join(_KEYS[1:])}")
        check_parts(value, _KEYS)
        value = {"where": "end", "fallback": "wrap"} | value
        return cls(
            part(value, "text", lambda text: long_text(text, DISCLAIMER_TEXT_MAX)),
            part(value, "html", _html) if "html" in value else "",
            part(value, "where", typed(DisclaimerPlace)),
            part(value, "fallback", typed(DisclaimerFallback)),
        )

    def edit(self, content: ParsedContent) -> tuple[ParsedContent, str]:
        """Return the content with the disclaimer, and why the texts do not have it, or "".

        If nothing changes, the content is the same object. Reading blocks; raises OSError.
        """
        disclaimer = _disclaimer(self)
        new = with_disclaimer(content, disclaimer)
        if not isinstance(new, DisclaimerObstacle):
            return new, ""
        if self.fallback is DisclaimerFallback.WRAP:
            return wrapped(content, disclaimer), new.reason
        return content, new.reason


@lru_cache(maxsize=256)  # a disclaimer is split into words once, not for each message
def _disclaimer(action: DisclaimerAction) -> Disclaimer:
    return Disclaimer.of(action.text, action.html, at_start=action.where is DisclaimerPlace.START)


def _html(value: Any) -> str:
    html = long_text(value, DISCLAIMER_HTML_MAX)
    if not html_layout(html).is_whole:
        raise ValueError("markup that does not end inside a tag, a comment or a script")
    return html


@dataclass(frozen=True, slots=True)
class EditedContent:
    """A content after the edits of a rule; the same object if nothing changes.

    `notes` say which edits could not be made. With a `refusal`, the recipients are rejected.
    """

    content: ParsedContent
    notes: tuple[Finding, ...] = ()
    refusal: str = ""


def edited(
    content: ParsedContent, edits: Sequence[HeaderEdit | DisclaimerAction], message: ExaminedMessage
) -> EditedContent:
    """Return the content after the edits, in their order. Raises OSError."""
    notes, refusal = [], ""
    for action in edits:
        if isinstance(action, DisclaimerAction):
            content, obstacle = action.edit(content)
            if obstacle:
                notes.append(Finding("disclaimer", f"{action.fallback}: {obstacle}"))
                if action.fallback is DisclaimerFallback.REJECT:
                    refusal = f"A disclaimer has to be added to this message, but {obstacle}"
        else:
            header = action.edit(content.header, message)
            if header != content.header:
                content = dataclasses.replace(content, header=header)
    return EditedContent(content, tuple(notes), refusal)
