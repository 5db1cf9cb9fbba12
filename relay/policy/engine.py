"""Apply the rules to a message: who gets it, who does not, and in which form.

On the path: ingress hands a message with examined recipients in before the spool commits it.
Holds: pure; every recipient gets exactly one fate; nobody gets two copies; a content is forked
       only where it really differs; contents[0] stays the original.
Fails: TooManyPartsError where a message hides its attachments among too many parts; OSError where
       a large one's body cannot be read.
Standards: none; the semantics are those of Exchange's mail flow rules.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from relay.message.content import Content, LargeContent, edited
from relay.message.verdict import (
    Addition,
    Examined,
    Fate,
    RecipientVerdict,
    RuleHit,
    Source,
    Subject,
    Verdict,
)
from relay.policy.actions import Action, Bcc, Cc, Discard, Edit, Redirect, Reject
from relay.policy.conditions import Condition, MessageCondition, RecipientCondition, View


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


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules in force, in their order, with their tests and the files they came from."""

    rules: tuple[Rule, ...] = ()
    cases: tuple[Case, ...] = field(default=(), repr=False)
    files: tuple[Path, ...] = ()

    def evaluate(self, subject: Subject) -> Verdict:
        """Apply the rules, one after the other; each sees what those before it made of the message.

        Raises TooManyPartsError.
        """
        evaluation = _Evaluation(subject)
        for rule in self.rules:
            if rule.mode is not Mode.OFF:
                evaluation.apply(rule)
        return evaluation.verdict()


class _Evaluation:
    """The state of one evaluation: parallel lists, an item for each recipient."""

    def __init__(self, mail: Subject) -> None:
        self._mail = mail
        self._views = [View(mail, mail.content)]
        self._contents = [0] * len(mail.recipients)
        self._decided: list[RecipientVerdict | None] = [None] * len(mail.recipients)
        self._open = [True] * len(mail.recipients)  # neither decided nor stopped
        self._additions: list[Addition] = []
        self._hits: list[RuleHit] = []

    def apply(self, rule: Rule) -> None:
        """Match the rule and do what it says for the recipients that it matches."""
        matched = self._matched(rule)
        if not matched:
            return
        addresses = tuple(self._mail.recipients[each].address for each in matched)
        self._hits.append(RuleHit(rule.name, str(rule.mode), rule.outcome, addresses))
        if rule.mode is Mode.AUDIT:
            return
        self._edit(rule, matched)
        self._add(rule, self._contents[matched[0]])
        self._decide(rule, matched)
        if rule.stop:
            for each in matched:
                self._open[each] = False

    def verdict(self) -> Verdict:
        """Put the result together, with only those contents that somebody gets."""
        recipients = [
            decided or RecipientVerdict(recipient.address, content=content)
            for recipient, decided, content in zip(
                self._mail.recipients, self._decided, self._contents, strict=True
            )
        ]
        additions = list(self._needed(recipients))
        if len(self._views) == 1:
            return self._verdict(recipients, additions, (self._mail.content,))
        used = sorted(
            {0} | {each.content for each in recipients} | {each.content for each in additions}
        )
        place = {old: new for new, old in enumerate(used)}
        if len(used) < len(self._views):
            recipients = [_moved(each, place) for each in recipients]
            additions = [
                Addition(each.address, each.rule, place[each.content]) for each in additions
            ]
        return self._verdict(recipients, additions, tuple(self._views[old].content for old in used))

    def _verdict(
        self,
        recipients: list[RecipientVerdict],
        additions: list[Addition],
        contents: tuple[Content, ...],
    ) -> Verdict:
        return Verdict(tuple(recipients), tuple(additions), contents, tuple(self._hits))

    def _matched(self, rule: Rule) -> list[int]:
        concerned: dict[int, bool] = {}  # by content, so that its conditions are asked once
        matched = []
        for index, recipient in enumerate(self._mail.recipients):
            if not self._open[index]:
                continue
            content = self._contents[index]
            view = self._views[content]
            if content not in concerned:
                concerned[content] = rule.concerns(view)
            if concerned[content] and rule.concerns_recipient(view, recipient):
                matched.append(index)
        return matched

    def _edit(self, rule: Rule, matched: list[int]) -> None:
        """Change the header for the matched recipients; the body is joined on once, at the end."""
        edits = [action for action in rule.actions if isinstance(action, Edit)]
        if not edits:
            return
        changed: dict[int, int] = {}
        for old in {self._contents[each] for each in matched}:
            content = self._views[old].content
            new = _edited(content, edits, self._mail)
            changed[old] = old if new is content else self._content(new)
        for each in matched:
            self._contents[each] = changed[self._contents[each]]

    def _content(self, content: Content) -> int:
        """Return the index of a content; equal ones are one."""
        for index, view in enumerate(self._views):
            if view.content == content:
                return index
        self._views.append(View(self._mail, content))
        return len(self._views) - 1

    def _add(self, rule: Rule, content: int) -> None:
        """Note copies: they have the form that this rule leaves, and no later rule sees them."""
        for action in rule.actions:
            if isinstance(action, Cc | Bcc | Redirect):
                self._additions += [Addition(each, rule.name, content) for each in action.addresses]

    def _decide(self, rule: Rule, matched: list[int]) -> None:
        """End the processing of the matched recipients, if the rule's last action does that."""
        for index in matched if rule.actions else ():
            address = self._mail.recipients[index].address
            match rule.actions[-1]:
                case Reject(status, text):
                    decided = RecipientVerdict(
                        address, Fate.REJECT, rule=rule.name, status=status, text=text
                    )
                case Discard():
                    decided = RecipientVerdict(address, Fate.DISCARD, rule=rule.name)
                case Redirect(addresses) if not _contains(addresses, address):
                    decided = RecipientVerdict(
                        address, Fate.REDIRECT, rule=rule.name, successors=addresses
                    )
                case _:
                    continue  # also a redirect to the recipient itself: it stays one
            self._decided[index] = decided
            self._open[index] = False

    def _needed(self, recipients: list[RecipientVerdict]) -> Iterable[Addition]:
        """Yield the additions, each address once, without those who get the message anyhow.

        A recipient whose own copy was redirected or refused may still be another rule's target: two
        recipients redirected to each other both get the message.
        """
        if not self._additions:
            return
        served = {each.address.casefold() for each in recipients if each.fate is Fate.DELIVER}
        for addition in self._additions:
            folded = addition.address.casefold()
            if folded not in served:
                served.add(folded)
                yield addition


def _edited(content: Content, edits: Sequence[Edit], mail: Subject) -> Content:
    """Return a content with its header edited; the same one if that changes nothing."""

    def edit(head: bytes) -> bytes:
        for action in edits:
            head = action.edit(head, mail)
        return head

    if isinstance(content, LargeContent):
        new = edited(content, edit)
        return content if new == content else new
    end = _header_end(content)
    old_head = content[:end]
    head = edit(old_head)
    return content if head == old_head else head + content[end:]


def _header_end(content: bytes) -> int:
    """Return where the body starts, so that all edits happen in front of it."""
    if content.startswith(b"\r\n"):
        return 2
    blank = content.find(b"\r\n\r\n")
    return len(content) if blank < 0 else blank + 4


def _contains(addresses: tuple[str, ...], address: str) -> bool:
    return any(each.casefold() == address.casefold() for each in addresses)


def _moved(verdict: RecipientVerdict, place: dict[int, int]) -> RecipientVerdict:
    if verdict.content == place[verdict.content]:
        return verdict
    return RecipientVerdict(
        verdict.address, verdict.fate, content=place[verdict.content], rule=verdict.rule
    )
