"""Find the rules that can match a message, without evaluating all of them.

Each rule is indexed by one of its `when` conditions, the one that the fewest messages match. The
globs of this condition are in an index of the values of one field, in which the values of a message
are looked up. So the cost of a large rule set depends on the rules that nearly match. Rules without
such a condition are evaluated for every message.

Equal conditions have one number, so that an evaluation evaluates each of them once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from msgspec import Struct

from relay.transport.policy.conditions import MessageCondition, RecipientCondition
from relay.transport.policy.globs import FieldGlobs, Globs
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.patterns import Pattern, PatternSet, PatternSets
from relay.transport.policy.rules import ConditionSet, NestedConditions, NestedKey, Rule, RuleMode

T = TypeVar("T")


# For the number of a condition: whether it matches, or which recipients it matches.
HoldsFor = Callable[[int], bool]
RecipientsFor = Callable[[int], int]


class NestedPlan(Struct, frozen=True):
    """An `all` or `any`. Sets of recipients are integers, with one bit for each."""

    is_all: bool  # else any
    exempts: bool  # it is in `unless`
    tables: tuple["TablePlan", ...]  # in the order of evaluation

    def among(self, recipients: int, holds: HoldsFor, matching: RecipientsFor) -> int:
        """Return which of the recipients match."""
        matched = 0
        for table in self.tables:
            if self.is_all:
                matched = recipients = table.among(recipients, holds, matching)
                if not matched:
                    break
            else:
                matched |= table.among(recipients & ~matched, holds, matching)
                if matched == recipients:
                    break
        return matched


class TablePlan(Struct, frozen=True):
    """A table of `all` or `any`, with its conditions as numbers: all of them must match."""

    on_recipient: tuple[int, ...]
    quick: tuple[int, ...]
    nested: tuple[NestedPlan, ...]
    deep: tuple[int, ...]

    def among(self, recipients: int, holds: HoldsFor, matching: RecipientsFor) -> int:
        """Return which of the recipients match."""
        for number in self.on_recipient:
            recipients &= matching(number)
        if not recipients or not all(map(holds, self.quick)):
            return 0
        for nested in self.nested:
            recipients = nested.among(recipients, holds, matching)
            if not recipients:
                return 0
        return recipients if all(map(holds, self.deep)) else 0


class RulePlan(Struct, frozen=True):
    """A rule, and its conditions as numbers, in the order of evaluation."""

    rule: Rule  # with the conditions as they are read
    on_recipient: tuple[int, ...]  # must match
    exempt_recipients: tuple[int, ...]  # must not
    quick: tuple[int, ...]  # on the message, must match
    quick_exempt: tuple[int, ...]  # must not
    nested: tuple[NestedPlan, ...]  # on both, those of `unless` too
    deep: tuple[int, ...]  # on the message, must match; they are evaluated in a thread
    deep_exempt: tuple[int, ...]  # must not; the same


class _Numbered(dict[T, int]):
    """Conditions, each with a number: its place in the order of insertion."""

    def of(self, conditions: Iterable[T]) -> tuple[int, ...]:
        """Return the numbers of the conditions; a new condition gets a new number."""
        return tuple([self.setdefault(condition, len(self)) for condition in conditions])


def _plan(
    rule: Rule, on_message: _Numbered[MessageCondition], on_recipient: _Numbered[RecipientCondition]
) -> RulePlan:
    when, unless = rule.when, rule.unless
    return RulePlan(
        rule,
        on_recipient.of(when.on_recipient),
        on_recipient.of(unless.on_recipient),
        on_message.of(condition for condition in when.on_message if not condition.is_deep),
        on_message.of(condition for condition in unless.on_message if not condition.is_deep),
        (
            *_nested(when, on_message, on_recipient),
            *_nested(unless, on_message, on_recipient, exempts=True),
        ),
        on_message.of(condition for condition in when.on_message if condition.is_deep),
        on_message.of(condition for condition in unless.on_message if condition.is_deep),
    )


def _nested(
    conditions: ConditionSet,
    on_message: _Numbered[MessageCondition],
    on_recipient: _Numbered[RecipientCondition],
    *,
    exempts: bool = False,
) -> tuple[NestedPlan, ...]:
    def planned(table: ConditionSet) -> TablePlan:
        return TablePlan(
            on_recipient.of(table.on_recipient),
            on_message.of(condition for condition in table.on_message if not condition.is_deep),
            _nested(table, on_message, on_recipient),
            on_message.of(condition for condition in table.on_message if condition.is_deep),
        )

    return tuple(
        NestedPlan(
            nested.key is NestedKey.ALL,
            exempts,
            tuple([planned(table) for _, table in nested.tables]),
        )
        for nested in conditions.nested
    )


class GlobIndex:
    """Globs for the values of one field. Whole values, beginnings and endings are looked up."""

    def __init__(self) -> None:
        self._any: list[int] = []
        self._whole: dict[str, list[int]] = {}
        self._domains: dict[str, list[int]] = {}
        self._beginnings: dict[int, dict[str, list[int]]] = {}  # by their length
        self._endings: dict[int, dict[str, list[int]]] = {}  # by their length
        self._contained: dict[str, list[int]] = {}
        self._patterns: dict[re.Pattern[str], list[int]] = {}

    def add(self, globs: Globs | None, number: int) -> None:
        """Add `number` for each of the globs; None stands for any value."""
        if globs is None:
            self._any.append(number)
            return
        for text in globs.whole:
            self._whole.setdefault(text, []).append(number)
        for text in globs.domains:
            self._domains.setdefault(text, []).append(number)
        for text in globs.beginnings:
            self._beginnings.setdefault(len(text), {}).setdefault(text, []).append(number)
        for text in globs.endings:
            self._endings.setdefault(len(text), {}).setdefault(text, []).append(number)
        for text in globs.contained:
            self._contained.setdefault(text, []).append(number)
        for pattern in globs.others:
            self._patterns.setdefault(pattern, []).append(number)

    def numbers(self, value: str) -> Iterator[list[int]]:
        """Yield the numbers of the globs that match a value."""
        folded = Globs.folded(value)
        if self._any:
            yield self._any
        if numbers := self._whole.get(folded):
            yield numbers
        if self._domains and (numbers := self._domains.get(folded.rpartition("@")[2])):
            yield numbers
        for length, beginnings in self._beginnings.items():
            if numbers := beginnings.get(folded[:length]):
                yield numbers
        for length, endings in self._endings.items():
            if numbers := endings.get(folded[-length:] if length else ""):
                yield numbers
        for text, numbers in self._contained.items():
            if text in folded:
                yield numbers
        for pattern, numbers in self._patterns.items():
            if pattern.match(folded):
                yield numbers


class RuleIndex:
    """The rules of a set that are not off, ready for evaluations."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Raise PatternError if the patterns for a field are too many."""
        active = [rule for rule in rules if rule.mode is not RuleMode.OFF]
        on_message, on_recipient = _Numbered[MessageCondition](), _Numbered[RecipientCondition]()
        self.plans = tuple([_plan(rule, on_message, on_recipient) for rule in active])
        self.message_conditions = tuple(on_message)  # by their numbers
        self.recipient_conditions = tuple(on_recipient)  # by their numbers
        self.pattern_sets = _pattern_sets(on_message)
        self._fields: dict[str, GlobIndex] = {}
        self._headers: dict[str, GlobIndex] = {}  # by the field's name in lower case
        self._always = bytearray(len(active))
        self._dated = [place for place, rule in enumerate(active) if rule.starts or rule.ends]
        for place, rule in enumerate(active):
            self._file(rule, place)

    def candidates(self, view: MessageView) -> bytearray:
        """Return a flag for each plan: 1 if the rule has to be evaluated for this content."""
        flags = self._always[:]
        for field, index in self._fields.items():
            for value in view.values_of(field):
                for places in index.numbers(value):
                    for place in places:
                        flags[place] = 1
        if self._headers:
            for name in view.content.header.names():
                if (header_index := self._headers.get(name)) is None:
                    continue
                for value in view.header(name):
                    for places in header_index.numbers(value):
                        for place in places:
                            flags[place] = 1
        for place in self._dated:
            if self.plans[place].rule.outside_dates(view.message.time_us):
                flags[place] = 0
        return flags

    def _file(self, rule: Rule, place: int) -> None:
        """Index a rule by the condition that the fewest messages match."""
        terms = _terms(rule.when)
        if not terms:
            self._always[place] = 1
        for field, globs in terms:
            kind, _, name = field.partition(" ")
            indices, key = (self._headers, name) if name else (self._fields, kind)
            indices.setdefault(key, GlobIndex()).add(globs, place)


def _terms(conditions: ConditionSet) -> Sequence[FieldGlobs]:
    """Return the terms() of the condition that the fewest messages match, or ()."""
    options = [
        condition.terms() for condition in (*conditions.on_message, *conditions.on_recipient)
    ]
    for nested in conditions.nested:
        options += _nested_terms(nested)
    return min(filter(None, options), key=_cost, default=())


def _nested_terms(nested: NestedConditions) -> Sequence[Sequence[FieldGlobs]]:
    """Return the terms of each table of an `all`. For an `any`, join the terms of its tables, and
    return none if a table has none.
    """
    by_table = [_terms(table) for _, table in nested.tables]
    if nested.key is NestedKey.ALL:
        return by_table
    return [[term for terms in by_table for term in terms]] if all(by_table) else []


def _pattern_sets(conditions: Iterable[MessageCondition]) -> PatternSets:
    """Return a set of all patterns for each field."""
    patterns: dict[str, list[Pattern]] = {}
    for condition in conditions:
        for field, pattern in condition.patterns():
            patterns.setdefault(field, []).append(pattern)
    return {field: PatternSet(members) for field, members in patterns.items()}


def _cost(terms: Sequence[FieldGlobs]) -> int:
    """Return a rank of a condition: the lower, the fewer messages match, at a lower cost."""
    return max([_cost_of(globs) for _, globs in terms])


def _cost_of(globs: Globs | None) -> int:
    if globs is None or globs.matches_all:
        return 3
    return 2 if globs.contained or globs.others else 1
