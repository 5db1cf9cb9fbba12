"""The decision of the mail-flow rules: an action per recipient, and the changed contents.

Policy makes it, ingress carries it out, the spool stores the rule hits. There is one
RecipientVerdict for each examined recipient, in the same order; contents[0] is the original.
The vocabulary is that of Exchange's mail flow rules.
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct

from relay.message.envelope import Source
from relay.message.header import ParsedContent

_NAMED_MAX = 100  # recipients named per hit; a message may have many


class ExaminedMessage(Struct, frozen=True):
    """The message that the rules examine. `content` has CRLF line ends.

    `sender_local`: the domain of the reverse-path is local and the session was trusted.
    `recipients` are the addresses of valid recipients; `local` are those with a mailbox here.
    """

    reverse_path: str
    sender_local: bool
    recipients: tuple[str, ...]
    local: frozenset[str]
    content: ParsedContent
    source: Source


class VerdictAction(StrEnum):
    """The action for one recipient."""

    DELIVER = "deliver"
    REJECT = "reject"
    DISCARD = "discard"
    REDIRECT = "redirect"


class RecipientVerdict(Struct, frozen=True):
    """`status` and `text` for REJECT; `successors` for REDIRECT; `content` is an index
    into the verdict's contents; `rule` is the rule that decided ("" if none).
    """

    address: str
    action: VerdictAction = VerdictAction.DELIVER
    content: int = 0
    rule: str = ""
    status: str = ""
    text: str = ""
    successors: tuple[str, ...] = ()


class AddedRecipient(Struct, frozen=True):
    """A recipient that a rule added (cc, bcc, or the target of a redirect)."""

    address: str
    rule: str
    content: int = 0


class RuleHit(Struct, frozen=True):
    """A rule that matched. `outcome` is what it did, or would have done in audit mode; `because`
    has what each of its conditions found, for the first recipient.
    """

    rule: str
    mode: str
    outcome: str
    recipients: tuple[str, ...]
    because: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the hit for `relay trace`, with `count` if not all recipients are named."""
        hit: dict[str, Any] = {
            "rule": self.rule,
            "mode": self.mode,
            "outcome": self.outcome,
            "recipients": list(self.recipients[:_NAMED_MAX]),
        }
        if self.because:
            hit["because"] = list(self.because)
        return hit | ({"count": count} if (count := len(self.recipients)) > _NAMED_MAX else {})


class Verdict(Struct, frozen=True):
    """The whole decision."""

    recipients: tuple[RecipientVerdict, ...]
    additions: tuple[AddedRecipient, ...]
    contents: tuple[ParsedContent, ...]
    hits: tuple[RuleHit, ...]

    def rule_of(self, address: str) -> str:
        """Return the rule that decided about a recipient, "" if none did."""
        return next((one.rule for one in self.recipients if one.address == address), "")
