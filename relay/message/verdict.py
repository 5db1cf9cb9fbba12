"""The decision of the mail-flow rules: an action per recipient, and the changed contents.

Policy makes it, ingress carries it out, the spool stores the rule hits. There is one
RecipientVerdict for each examined recipient, in the same order; contents[0] is the original.
The vocabulary is that of Exchange's mail flow rules.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Struct

from relay.message.envelope import Source
from relay.message.header import ParsedContent

JUNK_EMAIL = "Junk Email"  # the name of the folder, for people
_NAMED_MAX = 100  # recipients named per hit; a message may have many


class ExaminedMessage(Struct, frozen=True):
    """The message that the rules examine. `content` has CRLF line ends.

    `sender_local`: the domain of the reverse-path is local and the session was trusted.
    `recipients` are the addresses of valid recipients; `local` are those of own domains.
    """

    reverse_path: str  # "" is the null reverse-path
    sender_local: bool  # see above
    recipients: tuple[str, ...]  # to each of which the rules apply
    local: frozenset[str]  # see above
    content: ParsedContent  # with its header cleaned up
    source: Source  # how it arrived
    client: str = ""  # the IP address of the SMTP client; "" on Relay's own socket
    login: str = ""  # the account that sent it, by AUTH or the API; "" for strangers
    recipient_count: int = (
        0  # that the client named, before aliases and the rejection of invalid ones
    )
    time_us: int | None = None  # for the dates of rules; None: they do not count
    is_own: Callable[[str], bool] = lambda _domain: False  # whether a domain (A-labels) is own


class VerdictAction(StrEnum):
    """The action for one recipient."""

    DELIVER = "deliver"
    REJECT = "reject"
    DISCARD = "discard"
    REDIRECT = "redirect"
    QUARANTINE = "quarantine"  # a REDIRECT of which the sender learns nothing


class Hold(Struct, frozen=True):
    """A rule holds the copy until an operator releases or cancels it, or the hold expires."""

    reason: str  # for people
    rule: str  # the first rule that held it
    expires_s: float | None = None  # after the acceptance; None: as the queue's mail does
    silent: bool = False  # nothing is reported when it expires
    notice: str = ""  # the text of a mail to the sender, "" for none


class RecipientVerdict(Struct, frozen=True):
    """The decision about one recipient."""

    address: str  # as in ExaminedMessage.recipients
    action: VerdictAction = VerdictAction.DELIVER  # the last one that rules decided
    content: int = 0  # an index into the verdict's contents
    rule: str = ""  # that decided the action, "" if none did
    status: str = ""  # of a REJECT (RFC 3463)
    text: str = ""  # of a REJECT, for the sender
    successors: tuple[str, ...] = ()  # of a REDIRECT or a QUARANTINE
    hold: Hold | None = None  # of a copy to DELIVER, or of what these two add
    next_hop: str = ""  # of a copy to DELIVER: "route:NAME" or a URL that a rule chose
    # of a copy to DELIVER into Junk Email: how it is held where its mailbox is not here
    junk: Hold | None = None

    @property
    def quarantined(self) -> str:
        """Where the copy is quarantined: a folder or an address, "" for one that is not."""
        if self.action is VerdictAction.QUARANTINE:
            return ", ".join(self.successors)
        return JUNK_EMAIL if self.junk else ""

    def held(self, *, in_mailbox: bool) -> Hold | None:
        """Return the hold of the copy, which goes into a mailbox of this relay or leaves."""
        return self.hold if in_mailbox else self.junk or self.hold


class AddedRecipient(Struct, frozen=True):
    """A recipient that a rule added (cc, bcc, or the target of a redirect). `hold` is that of a
    recipient who was redirected while held. `is_quarantine`: the sender must not hear of the copy.
    """

    address: str
    rule: str
    content: int = 0
    hold: Hold | None = None
    is_quarantine: bool = False


class RuleMail(Struct, frozen=True):
    """A mail about the message that a rule sends: a journal report or, with a text, a notice."""

    to: str
    rule: str
    recipients: tuple[str, ...]  # that the rule matched; of a journal, without those rejected
    text: str = ""  # of a notice

    @property
    def kind(self) -> str:
        """The action that makes it."""
        return "notify" if self.text else "journal"


class Finding(Struct, frozen=True):
    """What a condition that matched compared: its key, and the value, cut for people."""

    condition: str
    value: str


class RuleHit(Struct, frozen=True):
    """A rule that matched. `outcome` is what it did, or would have done in audit mode; `because`
    has what each of its conditions found, for the first recipient.
    """

    rule: str
    mode: str
    outcome: str
    recipients: tuple[str, ...]
    because: tuple[Finding, ...] = ()
    error: str = ""  # why the rule was skipped

    def as_json(self) -> dict[str, Any]:
        """Return the hit for `relay trace`, with `count` if not all recipients are named."""
        hit: dict[str, Any] = {
            "rule": self.rule,
            "mode": self.mode,
            "outcome": self.outcome,
            "recipients": list(self.recipients[:_NAMED_MAX]),
        }
        if self.because:
            hit["because"] = [
                {"condition": each.condition, "value": each.value} for each in self.because
            ]
        if self.error:
            hit["error"] = self.error
        return hit | ({"count": count} if (count := len(self.recipients)) > _NAMED_MAX else {})


class Deferral(Struct, frozen=True):
    """A rule defers the whole message: the client tries again later (RFC 3463 4.y.z)."""

    status: str
    text: str
    rule: str


class RateCharge(Struct, frozen=True):
    """What accepting the message counts against the limit of a `rate_limit` action."""

    rule: str  # each rule counts for itself
    per: str  # sender, login or client
    key: str  # whose limit it is: the address of one of these
    recipients: int  # that the rule matched, without those that are rejected
    allowed: int  # recipients
    period_s: float  # in which so many are allowed
    status: str  # of the deferral beyond it
    text: str  # of the deferral


class Verdict(Struct, frozen=True):
    """The whole decision. With `deferred`, nothing else in it counts."""

    recipients: tuple[RecipientVerdict, ...]  # in the order of ExaminedMessage.recipients
    additions: tuple[AddedRecipient, ...]  # each address once
    contents: tuple[ParsedContent, ...]  # that are used; the original is the first one
    hits: tuple[RuleHit, ...]  # in the order of the rules
    deferred: Deferral | None = None  # of the whole message
    charges: tuple[RateCharge, ...] = ()  # against limits, if it is accepted
    sender: str = ""  # the reverse-path in place of the message's, unless that is null; "": none
    mails: tuple[RuleMail, ...] = ()  # about the message, in the order of the rules

    def rule_of(self, address: str) -> str:
        """Return the rule that decided about a recipient, "" if none did."""
        return next((one.rule for one in self.recipients if one.address == address), "")
