"""What policy decided about a message: per recipient, with the contents that its rules made.

On the path: policy makes it, ingress fans out by it, the spool keeps its trace.
Holds: one RecipientVerdict for each examined recipient, in their order; contents[0] is the
    original.
Fails: never.
Standards: none; the vocabulary is Exchange's mail flow rules.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from relay.message.content import Content

_NAMED_MAX = 100  # recipients of a hit, of which a message may have many


class Source(StrEnum):
    """How a message came in: the `source` condition and the `via` label of metrics."""

    GRAPH = "graph"
    SMTP = "smtp"
    SENDMAIL = "sendmail"
    REPORT = "report"


@dataclass(frozen=True, slots=True)
class Examined:
    """A recipient that routing has examined."""

    address: str
    local: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """What the rules look at. `content` has CRLF line ends; `sender_local`: the reverse-path's
    domain is ours and the session was trusted.
    """

    reverse_path: str
    sender_local: bool
    recipients: tuple[Examined, ...]
    content: Content
    source: Source


class Fate(StrEnum):
    """What becomes of one recipient."""

    DELIVER = "deliver"
    REJECT = "reject"
    DISCARD = "discard"
    REDIRECT = "redirect"


@dataclass(frozen=True, slots=True)
class RecipientVerdict:
    """`status` and `text` for REJECT; `successors` for REDIRECT; `content` is an index;
    `rule` decided it ("" if none).
    """

    address: str
    fate: Fate = Fate.DELIVER
    content: int = 0
    rule: str = ""
    status: str = ""
    text: str = ""
    successors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Addition:
    """A recipient that a rule added (cc, bcc, or the target of a redirect)."""

    address: str
    rule: str
    content: int = 0


@dataclass(frozen=True, slots=True)
class RuleHit:
    """One rule that matched: `outcome` is what it did, or would have done in audit mode."""

    rule: str
    mode: str
    outcome: str
    recipients: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The hit as `relay trace` shows it; `count` where it does not name all recipients."""
        hit = {
            "rule": self.rule,
            "mode": self.mode,
            "outcome": self.outcome,
            "recipients": list(self.recipients[:_NAMED_MAX]),
        }
        return hit | ({"count": count} if (count := len(self.recipients)) > _NAMED_MAX else {})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole decision."""

    recipients: tuple[RecipientVerdict, ...]
    additions: tuple[Addition, ...]
    contents: tuple[Content, ...]
    hits: tuple[RuleHit, ...]
