"""The actions of mail-flow rules: each key of `then` is a class and a line in ACTIONS.

A rate limit is an action too: RateLimitAction says whom a message counts against (its sender, login
or client) and what follows beyond the limit. What has been counted is in
relay/transport/ingress/message_limits.py.

To add an action, write a frozen dataclass with parse(), add it to ACTIONS, and apply it in engine.
Header edits are pure functions here, and edited() applies those of a rule. parse() raises
ValueError that says what was expected; an edit cannot fail afterwards, but that of a disclaimer
raises OSError if a large body cannot be read. relay.formats.disclaimer has the messages with
disclaimers.

RFC 3463 (code of reject; 3.7, 5.6.3: the content cannot be converted), RFC 5322 3.6 (fields), RFC
5321 4.4 (trace fields).
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Self

from msgspec import Struct

from relay.base.message.address import AddressError, parse_mailbox
from relay.base.message.header import Header, ParsedContent
from relay.base.message.nexthop import ROUTE_PREFIX, NextHop
from relay.base.message.properties import EmailAddress
from relay.base.message.status import REPLY_TEXT_MAX, split_reply
from relay.base.message.verdict import JUNK_EMAIL, ExaminedMessage, Finding, Hold, RateCharge
from relay.base.settings.values import parse_next_hop, parse_rate
from relay.formats import headers
from relay.formats.disclaimer import Disclaimer, DisclaimerObstacle, with_disclaimer, wrapped
from relay.formats.html_tokens import html_layout
from relay.formats.read_header import originators
from relay.formats.write_header import address_list_field
from relay.transport.policy.table_reader import check_parts, one_of, part, parts

DISCLAIMER_TEXT_MAX = 5000  # characters, as in Exchange
NOTIFY_TEXT_MAX = 2000  # characters
DISCLAIMER_HTML_MAX = 20_000  # characters: its styles take more than its text
NO_DISCLAIMER_STATUS = "5.6.3"
_KEYS = ("text", "html", "where", "fallback")
_EXPECTED = 'a table { text = "For the addressee only" }'
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class DisclaimerPlace(StrEnum):
    """Where it stands in a text."""

    END = "end"
    START = "start"


class DisclaimerFallback(StrEnum):
    """What happens to a message that cannot have it."""

    WRAP = "wrap"  # it is attached to a new message that has it
    IGNORE = "ignore"  # it goes without
    REJECT = "reject"  # it is rejected


class DisclaimerAction(Struct, frozen=True):
    """The text and the HTML of the message have a disclaimer, exactly once."""

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
            part(value, "text", lambda text: _text(text, DISCLAIMER_TEXT_MAX)),
            part(value, "html", _html) if "html" in value else "",
            part(value, "where", one_of(DisclaimerPlace)),
            part(value, "fallback", one_of(DisclaimerFallback)),
        )

    def edit(self, content: ParsedContent) -> tuple[ParsedContent, str]:
        """Return the content with it, the same if nothing changes, and why it is not in the texts,
        "" if it is. Reading blocks; raises OSError.
        """
        disclaimer = _disclaimer(self)
        new = with_disclaimer(content, disclaimer)
        if not isinstance(new, DisclaimerObstacle):
            return new, ""
        if self.fallback is DisclaimerFallback.WRAP:
            return wrapped(content, disclaimer), new.reason
        return content, new.reason


@lru_cache(maxsize=256)  # its words are found once, not for each message
def _disclaimer(action: DisclaimerAction) -> Disclaimer:
    return Disclaimer.of(action.text, action.html, at_start=action.where is DisclaimerPlace.START)


def _text(value: Any, characters_max: int) -> str:
    if not isinstance(value, str) or _CONTROLS.search(value) or not re.search(r"\w", value):
        raise ValueError("a text with a word and without control characters")
    if len(value) > characters_max:
        raise ValueError(f"at most {characters_max} characters")
    return value


def _html(value: Any) -> str:
    html = _text(value, DISCLAIMER_HTML_MAX)
    if not html_layout(html).is_whole:
        raise ValueError("markup that does not end inside a tag, a comment or a script")
    return html


REJECT_STATUS = "5.7.1"
DEFER_STATUS = "4.7.1"
HOLD_REASON_MAX = 200  # characters
ADDRESSES_MAX = 50
PROTECTED = frozenset({"received", "return-path", "dkim-signature"})
PROTECTED_PREFIX = "x-relay-"
FINAL = ("reject", "discard", "redirect", "quarantine", "defer")  # no action can follow these


class RejectAction(Struct, frozen=True):
    """The recipient is rejected; the sender gets `text`."""

    status: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "5.7.1 text"; without a code it is 5.7.1. Raises ValueError."""
        status, text = _reply(
            value, expected='a code and a text for the sender, "5.7.1 Not accepted"'
        )
        if status and not status.startswith("5."):
            raise ValueError("a code 5.y.z: a reject is permanent")
        return cls(status or REJECT_STATUS, text)


class DeferAction(Struct, frozen=True):
    """The whole message is deferred: the client gets `text` and tries again later."""

    status: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "4.7.1 text"; without a code it is 4.7.1. Raises ValueError."""
        return cls(*_deferral(value))


class AfterHold(StrEnum):
    """What the sender learns when a hold expires."""

    REPORT = "report"  # the message was not delivered
    SILENT = "silent"  # nothing


class HoldAction(Struct, frozen=True):
    """The copies of the matched recipients wait for an operator. See Hold."""

    reason: str
    expires_s: float | None = None
    silent: bool = False
    notice: str = ""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read the reason. The other fields are keys of the rule. Raises ValueError."""
        if (
            not isinstance(value, str)
            or not value.strip()
            or not value.isprintable()
            or len(value) > HOLD_REASON_MAX
        ):
            raise ValueError(
                f"a reason for operators: one line of 1 to {HOLD_REASON_MAX} characters"
            )
        return cls(value.strip())

    def of_rule(self, rule: str) -> Hold:
        """Return the hold that a rule with this action makes."""
        return Hold(
            self.reason, rule, expires_s=self.expires_s, silent=self.silent, notice=self.notice
        )


class NextHopAction(Struct, frozen=True):
    """The copies of the matched recipients go there, whatever route takes their addresses."""

    next_hop: str  # "route:NAME", or the text of a NextHop

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "route:NAME" or a URL without a login. Raises ValueError.

        Whether there is such a route is checked where the routes are known.
        """
        text = value.strip() if isinstance(value, str) else ""
        if text.removeprefix(ROUTE_PREFIX) and text.startswith(ROUTE_PREFIX):
            return cls(text)
        if "@" in text:
            raise ValueError(f"{_NEXT_HOP_EXPECTED} without a login; a route has one")
        try:
            next_hop = NextHop.parse(parse_next_hop(text))
        except ValueError:
            raise ValueError(_NEXT_HOP_EXPECTED) from None
        if not next_hop.host:
            raise ValueError(_NEXT_HOP_EXPECTED)
        return cls(str(next_hop))


class RateKey(StrEnum):
    """Whose recipients a limit counts."""

    SENDER = "sender"  # the reverse-path
    LOGIN = "login"  # of AUTH or the API; mail without one is not limited
    CLIENT = "client"  # the IP address; mail from the API is not limited


class RateLimitAction(Struct, frozen=True):
    """Beyond so many recipients in so long a time, the message is deferred."""

    allowed: int  # recipients
    period_s: float
    per: RateKey
    status: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { rate, per, text }. Raises ValueError."""
        expected = 'a table { rate = "100/1h", per = "sender", text = "4.7.1 Too much mail" }'
        if not isinstance(value, dict) or not {"rate", "per"} <= set(value):
            raise ValueError(f"{expected}, with these keys")
        check_parts(value, ("rate", "per", "text"))
        rate = part(value, "rate", lambda rate: parse_rate(rate if isinstance(rate, str) else ""))
        per = part(value, "per", one_of(RateKey))
        status, text = part({"text": _TOO_MUCH} | value, "text", _deferral)
        count, _, seconds = rate.partition("/")
        return cls(int(count), float(seconds), per, status, text)

    def key(self, message: ExaminedMessage) -> str:
        """Return whose limit a message counts against, "" for nobody's."""
        match self.per:
            case RateKey.SENDER:
                return message.forms_of((message.reverse_path,))[-1].casefold() or "<>"
            case RateKey.LOGIN:
                return message.login.casefold()
            case RateKey.CLIENT:
                return message.client

    def charge(self, rule: str, key: str, recipients: int) -> RateCharge:
        """Return what a message of this rule counts."""
        return RateCharge(
            rule,
            str(self.per),
            key,
            recipients,
            allowed=self.allowed,
            period_s=self.period_s,
            status=self.status,
            text=self.text,
        )


class DiscardAction(Struct, frozen=True):
    """The recipient gets nothing, and no report is sent."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read true. Raises ValueError."""
        if value is not True:
            raise ValueError("true")
        return cls()


class AddressesAction(Struct, frozen=True):
    """What all actions that add addresses have in common. In the rule of a tenant these are in the
    domains of the tenant, unless it `may` do more: ADDRESS_ACTIONS of the settings has their keys.
    """

    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read addresses. Raises ValueError."""
        return cls(_addresses(value))


class RedirectAction(AddressesAction, frozen=True):
    """Other addresses get the message instead of the recipient."""


class QuarantineAction(AddressesAction, frozen=True):
    """The copy goes into Junk Email, or to other addresses; its sender learns nothing of it."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read true or an address. Raises ValueError."""
        if value is not True and not isinstance(value, str):
            raise ValueError(f"true, for {JUNK_EMAIL}, or an address")
        return cls(() if value is True else (read_address(value),))

    @staticmethod
    def hold_of(rule: str) -> Hold:
        """Return how a rule with this action holds a copy whose mailbox is not here."""
        return Hold("quarantine", rule, silent=True)


class BccAction(AddressesAction, frozen=True):
    """Other addresses get a copy that no header shows."""


class JournalAction(AddressesAction, frozen=True):
    """An address gets a journal report, with the message as it was accepted."""

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one address. Raises ValueError."""
        if not isinstance(value, str):
            raise ValueError('one address as a text, "journal@example.org"')
        return cls((read_address(value),))


class NotifyAction(AddressesAction, frozen=True):
    """Each of the addresses gets a short mail about the message, one in an hour at most."""

    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read { to, text }. Raises ValueError."""
        expected = 'a table { to = "it@example.org", text = "Look at this" }'
        if not isinstance(value, dict):
            raise ValueError(expected)
        check_parts(value, ("to", "text"))
        if missing := [key for key in ("to", "text") if key not in value]:
            raise ValueError(f"{expected}: {missing[0]} is missing")
        return cls(
            part(value, "to", _addresses),
            part(value, "text", lambda text: _text(text, NOTIFY_TEXT_MAX)),
        )


class CcAction(AddressesAction, frozen=True):
    """Other addresses get a copy; the Cc field of the matched recipients' copies shows them."""

    def edit(self, header: Header, message: ExaminedMessage) -> Header:
        """Append those that are not yet recipients to the Cc field."""
        present = {recipient.casefold() for recipient in message.recipients}
        added = [address for address in self.addresses if address.casefold() not in present]
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
    """The header has exactly one field of this name."""

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
    """The header has no fields of these names."""

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


class SetSenderAction(Struct, frozen=True):
    """The message is from this address: its reverse-path, unless that is null, and its From. One
    matched recipient is enough, because a message has one sender.
    """

    address: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read an address. Raises ValueError.

        Whether its domain is an own one is checked where these are known.
        """
        address = read_address(value)
        if not address.isascii():
            raise ValueError("an address in ASCII: not each next hop takes others")
        return cls(address)

    def edit(self, header: Header, _: ExaminedMessage) -> Header:
        """Replace From by this address, with the name of the first author; remove Sender, which
        would name another mailbox as the one that sends it (RFC 5322 3.6.2).
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


_NEXT_HOP_EXPECTED = '"route:NAME" or a URL such as "smtp://relay.example:587"'
_TOO_MUCH = f"{DEFER_STATUS} Too many recipients in a short time, try again later"
HeaderEdit = CcAction | SetHeaderAction | RemoveHeaderAction | SubjectPrefixAction | SetSenderAction
RuleAction = (
    RejectAction
    | DeferAction
    | HoldAction
    | NextHopAction
    | RateLimitAction
    | DiscardAction
    | RedirectAction
    | QuarantineAction
    | BccAction
    | JournalAction
    | NotifyAction
    | DisclaimerAction
    | HeaderEdit
)


ACTIONS: dict[str, type[RuleAction]] = {
    "defer": DeferAction,
    "hold": HoldAction,
    "next_hop": NextHopAction,
    "rate_limit": RateLimitAction,
    "reject": RejectAction,
    "discard": DiscardAction,
    "redirect": RedirectAction,
    "quarantine": QuarantineAction,
    "cc": CcAction,
    "bcc": BccAction,
    "journal": JournalAction,
    "notify": NotifyAction,
    "set_header": SetHeaderAction,
    "set_sender": SetSenderAction,
    "remove_header": RemoveHeaderAction,
    "subject_prefix": SubjectPrefixAction,
    "disclaimer": DisclaimerAction,
}


def _reply(value: Any, *, expected: str) -> tuple[str, str]:
    """Return the status, "" without one, and the text. Raises ValueError."""
    reply = split_reply(value) if isinstance(value, str) else None
    if reply is None or not reply.text.strip() or not reply.text.isprintable():
        raise ValueError(expected)
    if len(reply.text) > REPLY_TEXT_MAX:
        raise ValueError(f"a text of at most {REPLY_TEXT_MAX} characters")
    return reply.status, reply.text.strip()


def _deferral(value: Any) -> tuple[str, str]:
    """Return the status and the text of a deferral. Raises ValueError."""
    status, text = _reply(
        value, expected='a code and a text for the client, "4.7.1 Try again later"'
    )
    if status and not status.startswith("4."):
        raise ValueError("a code 4.y.z: the client tries again later")
    return status or DEFER_STATUS, text


def _addresses(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= ADDRESSES_MAX:
        raise ValueError(f"an address or a list of 1 to {ADDRESSES_MAX} addresses")
    return tuple(dict.fromkeys(parts(texts, read_address)))


def read_address(text: Any) -> str:
    """Read an address. Raises ValueError."""
    try:
        return parse_mailbox(text if isinstance(text, str) else "", smtputf8=True)
    except AddressError as error:
        raise ValueError(f"an address: {error}") from None


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


@dataclass(frozen=True, slots=True)
class EditedContent:
    """A content after the edits of a rule: the same object if nothing changes.

    `notes` are what could not be done; with a `refusal`, its recipients are rejected.
    """

    content: ParsedContent
    notes: tuple[Finding, ...] = ()
    refusal: str = ""


def edited(
    content: ParsedContent,
    edits: Sequence[HeaderEdit | DisclaimerAction],
    message: ExaminedMessage,
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
