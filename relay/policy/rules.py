"""Rules and their tests as values.

On the path: loader makes them; engine and testing read them.
Holds: frozen; a rule's conditions are sorted by what they ask, so that few are asked per recipient.
Fails: never.
Standards: the vocabulary is Exchange's mail flow rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from relay.message.verdict import Examined, Source
from relay.policy.actions import Action
from relay.policy.conditions import Condition, MessageCondition, RecipientCondition
from relay.policy.view import View


class Mode(StrEnum):
    """Whether a rule acts."""

    ENFORCE = "enforce"
    AUDIT = "audit"  # matches and is recorded, and changes nothing
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Conditions:
    """The keys of one `when` or `unless`."""

    on_message: tuple[MessageCondition, ...] = ()
    on_recipient: tuple[RecipientCondition, ...] = ()

    @classmethod
    def of(cls, conditions: Sequence[Condition]) -> Self:
        """Sort conditions by what they ask; their order stays."""
        return cls(
            tuple(each for each in conditions if isinstance(each, MessageCondition)),
            tuple(each for each in conditions if isinstance(each, RecipientCondition)),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """One [[rule]]. `outcome` names what it does: a metric's label, and the word in the trace.

    All of `when` must hold; any single key of `unless` exempts, as an exception does in Exchange.
    """

    name: str
    mode: Mode
    when: Conditions
    unless: Conditions
    actions: tuple[Action, ...]
    outcome: str
    stop: bool
    file: Path
    line: int

    def concerns(self, view: View) -> bool:
        """Whether the rule can match this content, whoever the recipient is."""
        for each in self.when.on_message:  # a generator costs more than most conditions
            if not each.holds(view):
                return False
        unless = self.unless.on_message
        return not unless or not any(each.holds(view) for each in unless)

    def concerns_recipient(self, view: View, recipient: Examined) -> bool:
        """Whether a rule that concerns this content matches for this recipient."""
        for each in self.when.on_recipient:
            if not each.holds_for(view, recipient):
                return False
        unless = self.unless.on_recipient
        return not unless or not any(each.holds_for(view, recipient) for each in unless)


class Judgement(StrEnum):
    """A whole verdict in one word, as tests expect it."""

    ACCEPT = "accept"  # at least one recipient gets the message, or another in its place
    REJECT = "reject"  # nobody gets it, and at least one was rejected
    DISCARD = "discard"  # nobody gets it, and nobody is told


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a test expects; None where it says nothing.

    `rules` are those that match, in their order. Other files' rules that it does not name are not
    its business, so that a rule added beside does not break it.
    """

    verdict: Judgement
    rules: tuple[str, ...] | None = None
    added: frozenset[str] | None = None
    redirected: frozenset[str] | None = None
    rejected: frozenset[str] | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One [[test]]; `local` are the domains that count as ours, None for those configured."""

    name: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    source: Source
    local: frozenset[str] | None
    expect: Expectation
    file: Path
    line: int
