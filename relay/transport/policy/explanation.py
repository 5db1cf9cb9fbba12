"""Explain the rules: the verdict about a message, and what each rule compared.

explain() is an Evaluation with findings. It applies the rules by the same code, and records
what each condition of a rule compared and whether it holds. Without a message, the result of a
condition on the content is unknown. A rule whose result is unknown is not applied.

explain() is a pure function, and raises what Evaluation.run() raises.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from relay.base.message.verdict import Deferral, ExaminedMessage, Verdict
from relay.formats import headers
from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.conditions import (
    Condition,
    ContentCondition,
    RecipientCondition,
    cut_value,
    key_of,
)
from relay.transport.policy.engine import Evaluation, RuleScope, RuleSet, places_of
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_index import RulePlan
from relay.transport.policy.rule_tests import overall_verdict
from relay.transport.policy.rules import ConditionSet, NestedKey, Rule

_UNLESS = "unless "
_ACTION_KEYS = {kind: key for key, kind in ACTIONS.items()}


class ConditionFinding(Struct, frozen=True):
    """What a condition compared. A condition of `unless` is named "unless KEY".

    `holds` is None if the condition needs a message and there is none.
    """

    condition: str
    value: str
    holds: bool | None

    def is_below(self, prefix: str) -> bool:
        """Return whether it is a key of the table `prefix`, and not of a table inside it."""
        return "[" not in self.condition.removeprefix(prefix)


class RuleFinding(Struct, frozen=True):
    """A rule for the recipients that it could still match, in the order of the rules."""

    rule: str  # its name
    mode: str  # enforce, audit or off
    matched: bool | None  # None: the result depends on a message, and there is none
    recipients: tuple[str, ...]  # the recipients that it matches
    conditions: tuple[ConditionFinding, ...]  # for the first recipient in `recipients`, or of all
    actions: tuple[dict[str, Any], ...]  # what it does if it matches
    outcome: str  # the keys of the actions
    skipped: str  # why it was not evaluated, "" if it was
    file: str  # the file of the rule
    line: int  # the line where it begins


class RulesExplained(Struct, frozen=True):
    """The verdict, and every rule."""

    verdict: Verdict
    rules: tuple[RuleFinding, ...]


def explain(
    book: RuleBook, message: ExaminedMessage, *, has_content: bool = True
) -> RulesExplained:
    """Apply the rules as an Evaluation does. Without content, `message.content` is empty.

    Raises TooManyPartsError; OSError for a large body that cannot be read.
    """
    evaluation = _Explaining(book.scopes(message), message, has_content=has_content)
    findings = tuple(evaluation.findings())
    return RulesExplained(evaluation.verdict(), findings)


def verdict_document(explained: RulesExplained) -> dict[str, Any]:
    """Return what the rules would do with a message, for `relay policy try`."""
    verdict = explained.verdict
    return {
        "rules": msgspec.to_builtins(explained.rules),
        "verdict": str(overall_verdict(verdict)),
        "deferred": msgspec.to_builtins(verdict.deferred),
        "sender": verdict.sender,
        "recipients": [
            {
                "address": recipient.address,
                "fate": str(recipient.action),
                "rule": recipient.rule,
                "status": recipient.status,
                "text": recipient.text,
                "successors": list(recipient.successors),
                "hold": msgspec.to_builtins(recipient.hold),
                "next_hop": recipient.next_hop,
                "quarantined": recipient.quarantined,
                "content": recipient.content,
            }
            for recipient in verdict.recipients
        ],
        "added": msgspec.to_builtins(verdict.added),
        "mails": [{"kind": mail.kind, **msgspec.to_builtins(mail)} for mail in verdict.mails],
        "charges": msgspec.to_builtins(verdict.charges),
        "subjects": [headers.decoded(content.header, "Subject") for content in verdict.contents],
    }


class _Explaining(Evaluation):
    """An evaluation that keeps what the conditions of the rule in progress compared."""

    def __init__(
        self, scopes: Sequence[RuleScope], message: ExaminedMessage, *, has_content: bool
    ) -> None:
        super().__init__(scopes, message)
        self._in_thread = True
        self._has_content = has_content
        self._compared: dict[int, tuple[ConditionFinding, ...]] = {}  # by place of the recipient
        self._last = ""  # the rule after which no recipient was open
        self._all = scopes

    def findings(self) -> Iterator[RuleFinding]:
        """Apply all rules, and yield what each of them found."""
        for scope in self._all:
            rules = scope.rules
            if isinstance(rules, Deferral):
                self._last = rules.rule
                rules = RuleSet()
            plans = {plan.rule.name: plan for plan in rules.index.plans}
            is_next = self._scope is scope
            yield from [
                self._finding(rule, plans.get(rule.name), is_open=is_next) for rule in rules.rules
            ]
            if is_next:
                self._enter_next()

    def _finding(self, rule: Rule, plan: RulePlan | None, *, is_open: bool) -> RuleFinding:
        """Apply a rule and return what it found; `plan` is None if the rule is off."""
        if plan is None:
            return _finding(rule, skipped="its mode is off")
        if why := rule.outside_dates(self._message.time_us):
            return _finding(rule, skipped=why)
        if not (is_open and self._open):
            return _finding(rule, skipped=f'rule "{self._last}" was the last one')
        self._compared, self._last = {}, rule.name
        self.apply(plan)
        results = {place: _matches(findings) for place, findings in self._compared.items()}
        matched = [place for place, result in results.items() if result]
        place = matched[0] if matched else min(results)
        unknown = None in results.values()
        return _finding(
            rule,
            matched=bool(matched) or (None if unknown else False),
            recipients=tuple(self._message.recipients[place] for place in matched),
            conditions=self._compared[place],
        )

    def matched(self, plan: RulePlan) -> int:
        """See Evaluation; every condition is evaluated."""
        matched = 0
        for place in places_of(self._open):
            view, recipient = self._views[self._content_of(place)], self._message.recipients[place]
            self._compared[place] = (
                *self._all_examined(plan.rule.when, view, recipient, prefix=""),
                *self._all_examined(plan.rule.unless, view, recipient, prefix=_UNLESS),
            )
            matched |= bool(_matches(self._compared[place])) << place
        return matched

    def _all_examined(
        self, conditions: ConditionSet, view: MessageView, recipient: str, *, prefix: str
    ) -> Iterator[ConditionFinding]:
        """Yield what each condition compared; after an `all` or `any`, what its tables compared."""
        for condition in (*conditions.on_message, *conditions.on_recipient):
            yield self._examined(condition, view, recipient, prefix=prefix)
        for nested in conditions.nested:
            name = f"{prefix}{nested.key}"
            tables = [
                tuple(self._all_examined(table, view, recipient, prefix=f"{name}[{place}]."))
                for place, table in sorted(nested.tables, key=itemgetter(0))
            ]
            results = [
                _combined(
                    finding.holds for finding in table if finding.is_below(f"{name}[{place}].")
                )
                for place, table in enumerate(tables)
            ]
            is_all = nested.key is NestedKey.ALL
            holds = _combined(results, of_all=is_all)
            yield ConditionFinding(name, f"{results.count(True)} of {len(results)}", holds)
            yield from chain.from_iterable(tables)

    def _examined(
        self, condition: Condition, view: MessageView, recipient: str, *, prefix: str
    ) -> ConditionFinding:
        name = prefix + key_of(condition)
        if isinstance(condition, RecipientCondition):
            value = condition.value_for(view, recipient)
            holds = condition.matches_recipient(view, recipient)
        elif isinstance(condition, ContentCondition) and not self._has_content:
            return ConditionFinding(name, "", None)
        else:
            value, holds = condition.value_in(view), condition.matches(view)
        return ConditionFinding(name, cut_value(value), holds)


def _matches(findings: tuple[ConditionFinding, ...]) -> bool | None:
    """Return whether all conditions of `when` hold and none of `unless`; None if unknown."""
    return _combined(
        finding.holds
        if finding.holds is None
        else finding.holds != finding.condition.startswith(_UNLESS)
        for finding in findings
        if finding.is_below("")
    )


def _combined(results: Iterable[bool | None], *, of_all: bool = True) -> bool | None:
    """Return whether all results, or one of them, are true; None if unknown."""
    known = set(results)
    if (not of_all) in known:
        return not of_all
    return None if None in known else of_all


def _finding(
    rule: Rule,
    *,
    matched: bool | None = False,
    recipients: tuple[str, ...] = (),
    conditions: tuple[ConditionFinding, ...] = (),
    skipped: str = "",
) -> RuleFinding:
    return RuleFinding(
        rule=rule.name,
        mode=str(rule.mode),
        matched=matched,
        recipients=recipients,
        conditions=conditions,
        actions=tuple(
            {_ACTION_KEYS[type(action)]: msgspec.to_builtins(action)} for action in rule.actions
        ),
        outcome=rule.outcome,
        skipped=skipped,
        file=str(rule.file),
        line=rule.line,
    )
