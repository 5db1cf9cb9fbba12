"""The rule engine: rules as values, and their evaluation for a message.

A pure function: every recipient gets exactly one action; no address gets two copies; a content is
copied only if an edit changes it; contents[0] stays the original. The semantics are those of
Exchange's mail flow rules.

Raises TooManyPartsError for a message with too many parts; OSError if the body of a large message
cannot be read.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from msgspec import Struct, structs

from relay.message.content import Content
from relay.message.envelope import Source
from relay.message.header import ParsedContent
from relay.message.verdict import (
    AddedRecipient,
    ExaminedMessage,
    Finding,
    RecipientVerdict,
    RuleHit,
    Verdict,
    VerdictAction,
)
from relay.policy.actions import (
    BccAction,
    CcAction,
    DiscardAction,
    HeaderEdit,
    RedirectAction,
    RejectAction,
    RuleAction,
)
from relay.policy.conditions import (
    Condition,
    MessageCondition,
    MessageView,
    RecipientCondition,
    cut_value,
    key_of,
)


class RuleMode(StrEnum):
    """The mode of a rule."""

    ENFORCE = "enforce"
    AUDIT = "audit"  # matches and is recorded, but changes nothing
    OFF = "off"


class ConditionSet(Struct, frozen=True):
    """The keys of one `when` or `unless`."""

    on_message: tuple[MessageCondition, ...] = ()
    on_recipient: tuple[RecipientCondition, ...] = ()

    @classmethod
    def of(cls, conditions: Sequence[Condition]) -> Self:
        """Separate message conditions from recipient conditions; the order is kept."""
        return cls(
            tuple(each for each in conditions if isinstance(each, MessageCondition)),
            tuple(each for each in conditions if isinstance(each, RecipientCondition)),
        )


class Rule(Struct, frozen=True):
    """One [[rule]]."""

    name: str  # unique in all files
    mode: RuleMode  # enforce, audit or off
    when: ConditionSet  # all of these conditions must match
    unless: ConditionSet  # any one of these exempts, as an exception in Exchange
    actions: tuple[RuleAction, ...]  # in the order of the file
    outcome: str  # names the actions, for the metric's label and the trace
    stop: bool  # no rule after it is evaluated if it matches
    file: Path  # for messages
    line: int  # for messages

    def matches_message(self, view: MessageView) -> bool:
        """Return whether the rule can match this content, for any recipient."""
        for each in self.when.on_message:  # faster than a generator
            if not each.matches(view):
                return False
        unless = self.unless.on_message
        return not unless or not any(each.matches(view) for each in unless)

    def matches_recipient(self, view: MessageView, recipient: str) -> bool:
        """Return whether a rule that matches this content also matches this recipient."""
        for each in self.when.on_recipient:
            if not each.matches_recipient(view, recipient):
                return False
        unless = self.unless.on_recipient
        return not unless or not any(each.matches_recipient(view, recipient) for each in unless)

    def found_in(self, view: MessageView, recipient: str) -> tuple[Finding, ...]:
        """Return what each condition of `when` found, in a message that the rule matches."""
        found = [(key_of(each), each.value_in(view)) for each in self.when.on_message]
        found += [
            (key_of(each), each.value_for(view, recipient)) for each in self.when.on_recipient
        ]
        return tuple([Finding(key, cut_value(value)) for key, value in found])


class OverallVerdict(StrEnum):
    """The verdict for the whole message, as rule tests expect it."""

    ACCEPT = "accept"  # at least one recipient gets the message, or is redirected
    REJECT = "reject"  # no recipient gets it, and at least one is rejected
    DISCARD = "discard"  # no recipient gets it, and none is rejected


class ExpectedResult(Struct, frozen=True):
    """What a rule test expects; None where it does not say.

    `rules` are those that match, in their order. Rules of other files count only if the test names
    them, so that a new rule file does not break it.
    """

    verdict: OverallVerdict
    rules: tuple[str, ...] | None = None
    added: frozenset[str] | None = None
    redirected: frozenset[str] | None = None
    rejected: frozenset[str] | None = None
    subject: str | None = None


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One [[test]] of the rules."""

    name: str  # for messages
    sender: str  # the reverse-path
    recipients: tuple[str, ...]  # their addresses
    content: Content = field(repr=False)  # the message
    source: Source  # how it arrives
    local: frozenset[str] | None  # the local domains; None for the configured ones
    expect: ExpectedResult  # what must come out
    file: Path  # for messages
    line: int  # for messages


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The active rules in their order, with their tests and their files."""

    rules: tuple[Rule, ...] = ()
    tests: tuple[RuleTest, ...] = field(default=(), repr=False)
    files: tuple[Path, ...] = ()

    def evaluate(self, message: ExaminedMessage) -> Verdict:
        """Apply the rules in their order; each sees the changes of those before it.

        Raises TooManyPartsError.
        """
        evaluation = Evaluation(message)
        for rule in self.rules:
            if rule.mode is not RuleMode.OFF:
                evaluation.apply(rule)
        return evaluation.verdict()


class Evaluation:
    """The state of one evaluation, as parallel lists with an item per recipient."""

    def __init__(self, message: ExaminedMessage) -> None:
        self._message = message
        self._views = [MessageView(message, message.content)]
        self._contents = [0] * len(message.recipients)
        self._decided: list[RecipientVerdict | None] = [None] * len(message.recipients)
        self._open = [True] * len(message.recipients)  # neither decided nor stopped
        self._additions: list[AddedRecipient] = []
        self._hits: list[RuleHit] = []

    def apply(self, rule: Rule) -> None:
        """Apply the rule to the recipients that it matches."""
        matched = self.matched(rule)
        if not matched:
            return
        addresses = tuple(self._message.recipients[each] for each in matched)
        because = rule.found_in(self._views[self._contents[matched[0]]], addresses[0])
        self._hits.append(RuleHit(rule.name, str(rule.mode), rule.outcome, addresses, because))
        if rule.mode is RuleMode.AUDIT:
            return
        self._edit(rule, matched)
        self._add(rule, self._contents[matched[0]])
        self._decide(rule, matched)
        if rule.stop:
            for each in matched:
                self._open[each] = False

    def verdict(self) -> Verdict:
        """Return the result, with only those contents that are used."""
        recipients = [
            decided or RecipientVerdict(recipient, content=content)
            for recipient, decided, content in zip(
                self._message.recipients, self._decided, self._contents, strict=True
            )
        ]
        additions = list(self._needed(recipients))
        used = sorted(
            {0} | {each.content for each in recipients} | {each.content for each in additions}
        )
        place = {old: new for new, old in enumerate(used)}
        if len(used) < len(self._views):
            recipients = [structs.replace(each, content=place[each.content]) for each in recipients]
            additions = [structs.replace(each, content=place[each.content]) for each in additions]
        contents = tuple(self._views[old].content for old in used)
        return Verdict(tuple(recipients), tuple(additions), contents, tuple(self._hits))

    def matched(self, rule: Rule) -> list[int]:
        """Return the places of the recipients that are open and that the rule matches."""
        concerned: dict[int, bool] = {}  # by content, so that its conditions are evaluated once
        matched = []
        for index, recipient in enumerate(self._message.recipients):
            if not self._open[index]:
                continue
            content = self._contents[index]
            view = self._views[content]
            if content not in concerned:
                concerned[content] = rule.matches_message(view)
            if concerned[content] and rule.matches_recipient(view, recipient):
                matched.append(index)
        return matched

    def _edit(self, rule: Rule, matched: list[int]) -> None:
        """Edit the header for the matched recipients."""
        edits = [action for action in rule.actions if isinstance(action, HeaderEdit)]
        if not edits:
            return
        changed: dict[int, int] = {}
        for old in {self._contents[each] for each in matched}:
            content = self._views[old].content
            new = _edited(content, edits, self._message)
            changed[old] = old if new is content else self._content(new)
        for each in matched:
            self._contents[each] = changed[self._contents[each]]

    def _content(self, content: ParsedContent) -> int:
        """Return the index of a content; equal contents have one index."""
        for index, view in enumerate(self._views):
            if view.content == content:
                return index
        self._views.append(MessageView(self._message, content))
        return len(self._views) - 1

    def _add(self, rule: Rule, content: int) -> None:
        """Add copies, with the content after this rule; later rules do not see them."""
        for action in rule.actions:
            if isinstance(action, CcAction | BccAction | RedirectAction):
                self._additions += [
                    AddedRecipient(each, rule.name, content) for each in action.addresses
                ]

    def _decide(self, rule: Rule, matched: list[int]) -> None:
        """Decide the matched recipients, if the rule's last action is final."""
        for index in matched if rule.actions else ():
            address = self._message.recipients[index]
            match rule.actions[-1]:
                case RejectAction(status, text):
                    decided = RecipientVerdict(
                        address, VerdictAction.REJECT, rule=rule.name, status=status, text=text
                    )
                case DiscardAction():
                    decided = RecipientVerdict(address, VerdictAction.DISCARD, rule=rule.name)
                case RedirectAction(addresses) if not _contains(addresses, address):
                    decided = RecipientVerdict(
                        address, VerdictAction.REDIRECT, rule=rule.name, successors=addresses
                    )
                case _:
                    continue  # also a redirect to the recipient itself, which stays
            self._decided[index] = decided
            self._open[index] = False

    def _needed(self, recipients: list[RecipientVerdict]) -> Iterable[AddedRecipient]:
        """Yield the additions, each address once, without those that get the message already.

        A recipient whose own copy was redirected or rejected may still be another rule's target:
        two recipients that are redirected to each other both get the message.
        """
        if not self._additions:
            return
        served = {
            each.address.casefold() for each in recipients if each.action is VerdictAction.DELIVER
        }
        for addition in self._additions:
            folded = addition.address.casefold()
            if folded not in served:
                served.add(folded)
                yield addition


def _edited(
    content: ParsedContent, edits: Sequence[HeaderEdit], message: ExaminedMessage
) -> ParsedContent:
    """Return the content with an edited header, or the same object if nothing changes."""
    header = content.header
    for action in edits:
        header = action.edit(header, message)
    return content if header == content.header else dataclasses.replace(content, header=header)


def _contains(addresses: tuple[str, ...], address: str) -> bool:
    return any(each.casefold() == address.casefold() for each in addresses)
