"""The actions on who gets a message: reject, defer, hold, other next hops, other addresses.

A rate limit is an action too: RateLimitAction says whom a message counts against (its sender, login
or client) and what follows beyond the limit. What has been counted is in
relay/transport/ingress/message_limits.py.

relay/transport/policy/actions.py says what an action is, and has the keys. RFC 3463 (codes of
reject and defer).
"""

from enum import StrEnum
from typing import Any, Self

from msgspec import Struct

from relay.base.message.address import AddressError, own_mailbox, parse_mailbox
from relay.base.message.nexthop import ROUTE_PREFIX, HopKind, NextHop
from relay.base.message.status import REPLY_TEXT_MAX, split_reply
from relay.base.message.verdict import JUNK_EMAIL, ExaminedMessage, Hold, RateCharge
from relay.base.settings.values import parse_next_hop, parse_rate
from relay.transport.policy.table_reader import check_parts, long_text, part, parts, typed

REJECT_STATUS = "5.7.1"
DEFER_STATUS = "4.7.1"
HOLD_REASON_MAX = 200  # characters
NOTIFY_TEXT_MAX = 2000  # characters
ADDRESSES_MAX = 50
_NEXT_HOP_EXPECTED = '"route:NAME" or a URL such as "smtp://relay.example:587"'
_TOO_MUCH = f"{DEFER_STATUS} Too many recipients in a short time, try again later"


class RejectAction(Struct, frozen=True):
    """The recipient is rejected; the sender gets the text.

    `"5.7.1 text"`, at most 400 characters
    """

    status: str
    text: str

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read "5.7.1 text"; without a code it is 5.7.1. Raises ValueError."""
        expected = 'a code and a text for the sender, "5.7.1 Not accepted"'
        return cls(*_reply(value, expected, REJECT_STATUS, why="a reject is permanent"))


class DeferAction(Struct, frozen=True):
    """Nothing of the message is accepted; the client [tries again](#defer-and-limit).

    `"4.7.1 text"`, at most 400 characters
    """

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
    """The copy [waits for an operator](#hold-mail).

    the reason, one line of at most 200 characters
    """

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
    """The copy goes to [this route or host](#send-by-another-host).

    `"route:NAME"`, or a URL
    """

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
        if next_hop.kind is HopKind.GRAPH:
            raise ValueError('"route:NAME": only a route to Microsoft Graph has a login')
        return cls(str(next_hop))


class RateKey(StrEnum):
    """What a rate limit is for: the recipients of each sender, login or client."""

    SENDER = "sender"  # the reverse-path
    LOGIN = "login"  # of AUTH or the API; mail without a login is not limited
    CLIENT = "client"  # the IP address; mail from the API is not limited


class RateLimitAction(Struct, frozen=True):
    """A `defer`, beyond this number of recipients in this time.

    `{ rate = "100/1h", per = "login" }`
    """

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
        per = part(value, "per", typed(RateKey))
        status, text = part({"text": _TOO_MUCH} | value, "text", _deferral)
        count, _, seconds = rate.partition("/")
        return cls(int(count), float(seconds), per, status, text)

    def key(self, message: ExaminedMessage) -> str:
        """Return the key of the limit that a message counts against, "" if it counts for none."""
        match self.per:
            case RateKey.SENDER:
                return own_mailbox(message.forms_of((message.reverse_path,))[-1]) or "<>"
            case RateKey.LOGIN:
                return own_mailbox(message.login)
            case RateKey.CLIENT:
                return message.client

    def charge(self, rule: str, key: str, recipients: int) -> RateCharge:
        """Return what a message counts against the limit of this rule."""
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
    """The recipient gets nothing, and no report is sent.

    `true`
    """

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read true. Raises ValueError."""
        if value is not True:
            raise ValueError("true")
        return cls()


class AddressesAction(Struct, frozen=True):
    """The base of all actions that add addresses.

    In the rule of a tenant, the addresses are in the domains of the tenant, unless its key `may`
    lists the action. ADDRESS_ACTIONS of the settings has the keys of these actions.
    """

    addresses: tuple[str, ...]

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read addresses. Raises ValueError."""
        return cls(read_addresses(value))


class RedirectAction(AddressesAction, frozen=True):
    """Other recipients get the message instead.

    address or list, at most 50
    """


class QuarantineAction(AddressesAction, frozen=True):
    """The copy goes [into Junk Email](#quarantine), or to an address; the sender learns nothing.

    `true`, or an address
    """

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read true or an address. Raises ValueError."""
        if value is not True and not isinstance(value, str):
            raise ValueError(f"true, for {JUNK_EMAIL}, or an address")
        return cls(() if value is True else (read_address(value),))

    @staticmethod
    def hold_of(rule: str) -> Hold:
        """Return the hold for a copy whose mailbox is on another host."""
        return Hold("quarantine", rule, silent=True)


class BccAction(AddressesAction, frozen=True):
    """Other recipients get a copy that no field shows.

    address or list, at most 50
    """


class JournalAction(AddressesAction, frozen=True):
    """An archive gets [a report](#the-journal-report) with the message as it was accepted.

    an address
    """

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Read one address. Raises ValueError."""
        if not isinstance(value, str):
            raise ValueError('one address as a text, "journal@example.org"')
        return cls((read_address(value),))


class NotifyAction(AddressesAction, frozen=True):
    """Addresses get [a short mail](#the-notice) about the message.

    `{ to = "it@example.org", text = "Look at this" }`
    """

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
            part(value, "to", read_addresses),
            part(value, "text", lambda text: long_text(text, NOTIFY_TEXT_MAX)),
        )


def _reply(value: Any, expected: str, status: str, *, why: str) -> tuple[str, str]:
    """Return the status, which is by default `status`, and the text. Raises ValueError for another
    class than that of `status`, which has the reason `why`.
    """
    reply = split_reply(value) if isinstance(value, str) else None
    if reply is None or not reply.text.strip() or not reply.text.isprintable():
        raise ValueError(expected)
    if len(reply.text) > REPLY_TEXT_MAX:
        raise ValueError(f"a text of at most {REPLY_TEXT_MAX} characters")
    if reply.status and reply.status[0] != status[0]:
        raise ValueError(f"a code {status[0]}.y.z: {why}")
    return reply.status or status, reply.text.strip()


def _deferral(value: Any) -> tuple[str, str]:
    """Return the status and the text of a deferral. Raises ValueError."""
    expected = 'a code and a text for the client, "4.7.1 Try again later"'
    return _reply(value, expected, DEFER_STATUS, why="the client tries again later")


def read_addresses(value: Any) -> tuple[str, ...]:
    """Read an address or a list of addresses, each once. Raises ValueError."""
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
