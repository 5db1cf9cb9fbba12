"""Rules and their tests as values, as `rule_files` reads them, and the limits of a set of rules.

A tenant has limits for the size of its files and the number of its rules. All sets have limits for
the mail that rules write about one message, and for the faults that are reported.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

from msgspec import Struct

from relay.base.clock import rfc3339
from relay.base.message.address import own_mailbox
from relay.base.message.authentication_results import AuthResult
from relay.base.message.content import Content
from relay.base.message.envelope import Source
from relay.base.message.verdict import Finding
from relay.base.settings.document import Document, Fault
from relay.transport.policy.actions import RuleAction
from relay.transport.policy.conditions import (
    Condition,
    MessageCondition,
    RecipientAddressCondition,
    RecipientCondition,
    SenderCondition,
    cut_value,
    key_of,
)
from relay.transport.policy.message_view import MessageView
from relay.transport.policy.patterns import Pattern
from relay.transport.policy.recipient_actions import JournalAction, NotifyAction
from relay.transport.policy.table_reader import FAULTS_MAX


class RuleMode(StrEnum):
    """The mode of a rule."""

    ENFORCE = "enforce"
    AUDIT = "audit"  # matches and is recorded, but changes nothing
    OFF = "off"


class OnError(StrEnum):
    """What happens to a message when a rule cannot be applied to it."""

    DEFER = "defer"  # the client tries again later
    IGNORE = "ignore"  # the rule is skipped, and counted


class NestedKey(StrEnum):
    """The keys with tables of conditions."""

    ALL = "all"  # each table must match
    ANY = "any"  # at least one


class NestedConditions(Struct, frozen=True):
    """An `all` or `any`: tables of conditions; one of them matches if all its keys do."""

    key: NestedKey
    tables: tuple[tuple[int, "ConditionSet"], ...]  # with their places in the file; deep ones last

    def holds(self, view: MessageView, recipient: str) -> bool:
        """Return whether it matches. Raises what conditions raise."""
        results = (table.holds(view, recipient) for _, table in self.tables)
        return all(results) if self.key is NestedKey.ALL else any(results)

    def found_in(self, view: MessageView, recipient: str) -> Iterator[tuple[str, str]]:
        """Yield what ConditionSet.found_in() yields, for the tables that made this match."""
        for place, table in self.tables:
            if self.key is NestedKey.ALL or table.holds(view, recipient):
                for key, value in table.found_in(view, recipient):
                    yield f"{self.key}[{place}].{key}", value
                if self.key is NestedKey.ANY:
                    return


class ConditionSet(Struct, frozen=True):
    """The keys of one `when` or `unless`, or of a table below it."""

    on_message: tuple[MessageCondition, ...] = ()
    on_recipient: tuple[RecipientCondition, ...] = ()
    nested: tuple[NestedConditions, ...] = ()

    @classmethod
    def of(cls, conditions: Sequence[Condition], nested: Iterable[NestedConditions] = ()) -> Self:
        """Separate message conditions from recipient conditions; the order is kept."""
        return cls(
            tuple(condition for condition in conditions if isinstance(condition, MessageCondition)),
            tuple(
                condition for condition in conditions if isinstance(condition, RecipientCondition)
            ),
            tuple(nested),
        )

    @property
    def is_deep(self) -> bool:
        """Whether one of the conditions may take long, at any depth."""
        return any(condition.is_deep for condition in self.all_on_message())

    def all_on_message(self) -> Iterator[MessageCondition]:
        """Yield the conditions on the message, at any depth."""
        yield from self.on_message
        for nested in self.nested:
            for _, table in nested.tables:
                yield from table.all_on_message()

    def holds(self, view: MessageView, recipient: str) -> bool:
        """Return whether all keys match. The order is that of the evaluation, whose results are
        known already.
        """
        return (
            all(condition.matches_recipient(view, recipient) for condition in self.on_recipient)
            and all(
                condition.matches(view) for condition in self.on_message if not condition.is_deep
            )
            and all(nested.holds(view, recipient) for nested in self.nested)
            and all(condition.matches(view) for condition in self.on_message if condition.is_deep)
        )

    def found_in(self, view: MessageView, recipient: str) -> Iterator[tuple[str, str]]:
        """Yield each key and what its condition found, in a message that matches."""
        for condition in self.on_message:
            yield key_of(condition), condition.value_in(view)
        for recipient_condition in self.on_recipient:
            yield key_of(recipient_condition), recipient_condition.value_for(view, recipient)
        for nested in self.nested:
            yield from nested.found_in(view, recipient)


class Rule(Struct, frozen=True):
    """One [[rule]]."""

    name: str  # unique in all files
    mode: RuleMode  # enforce, audit or off
    when: ConditionSet  # all of these conditions must match
    unless: ConditionSet  # the rule does not match if one of these does, as in Exchange
    actions: tuple[RuleAction, ...]  # in the order of the file
    outcome: str  # names the actions, for the metric's label and the trace
    stop: bool  # if it matches, no rule after it is evaluated
    on_error: OnError  # if it cannot be applied
    file: Path  # for messages
    line: int  # for messages
    starts: str = ""  # the first day (UTC, ISO 8601) on which it is used, "" for any
    ends: str = ""  # the last one

    @property
    def takes_all(self) -> bool:
        """Whether no condition leaves out any mail."""
        when = self.when
        return self.unless == ConditionSet() == ConditionSet(nested=when.nested) and all(
            isinstance(condition, SenderCondition | RecipientAddressCondition)
            and condition.globs.matches_all
            for condition in (*when.on_message, *when.on_recipient)
        )

    def outside_dates(self, time_us: int | None) -> str:
        """Return why the rule is not used on this day; "" if it is used, or without a time."""
        today = rfc3339(time_us)[: len("YYYY-MM-DD")] if time_us is not None else ""
        if today and today < self.starts:
            return f"not before {self.starts}"
        return f"not after {self.ends}" if today > self.ends > "" else ""

    def patterns(self) -> Iterator[tuple[str, Pattern]]:
        """Yield the patterns of the conditions, each with its field."""
        for conditions in (self.when, self.unless):
            for condition in conditions.all_on_message():
                yield from condition.patterns()

    def found_in(self, view: MessageView, recipient: str) -> tuple[Finding, ...]:
        """Return what each condition of `when` found, in a message that the rule matches."""
        pairs = self.when.found_in(view, recipient)
        return tuple([Finding(key, cut_value(value)) for key, value in pairs])


class OverallVerdict(StrEnum):
    """The verdict for the whole message, as rule tests expect it."""

    ACCEPT = "accept"  # at least one recipient gets the message, also another one or in Junk Email
    REJECT = "reject"  # no recipient gets it, and at least one is rejected
    DISCARD = "discard"  # no recipient gets it, and none is rejected
    HOLD = "hold"  # no recipient gets it now, and at least one when it is released
    DEFER = "defer"  # no recipient gets it: the client tries again later


class ExpectedResult(Struct, frozen=True):
    """What a rule test expects; a key that is not given is not checked.

    Rules of other files count only if the test names them, so that a new rule file does not break
    the test. A copy that is held counts as delivered.
    """

    verdict: OverallVerdict  # required, for the whole message
    rules: tuple[str, ...] | None = None  # the rules that match, in their order
    added: frozenset[str] | None = None  # addresses; in this and the next five, case is ignored
    redirected: frozenset[str] | None = None  # recipients
    journaled: frozenset[str] | None = None  # addresses that get a journal report
    notified: frozenset[str] | None = None  # addresses that get a notice
    rejected: frozenset[str] | None = None  # recipients
    quarantined: frozenset[str] | None = None  # recipients
    subject: str | None = None  # of all delivered copies
    next_hop: str | None = None  # where rules send all copies: "route:NAME" or a URL; "": none
    reason: str | None = None  # of all holds
    # of a copy: { "X-Tag" = "yes", "X-Old" = false }, where false is no such field
    headers: tuple[tuple[str, str | None], ...] = ()
    body: tuple[str, ...] = ()  # texts, each of which a copy has


@dataclass(frozen=True, slots=True)
class RuleTest:
    """One [[test]] of the rules."""

    name: str  # for messages
    sender: str  # the reverse-path
    recipients: tuple[str, ...]  # their addresses
    recipient_count: int  # how many recipients the client names
    content: Content = field(repr=False)  # the message
    source: Source  # how it arrives
    client: str  # the IP address of a stranger, or of a client that has logged in; "" for none
    login: str  # its account, "" for none
    results: tuple[AuthResult, ...]  # the results of a milter
    local: frozenset[str] | None  # the local domains; None for the configured ones
    enforced: frozenset[str]  # rules that it tests as if their mode was enforce
    is_alone: bool  # only the rules in the file of the test apply
    expect: ExpectedResult  # the expected verdict
    file: Path  # for messages
    line: int  # for messages


TENANT_BYTES_MAX = 2 * 1024 * 1024  # of rule files and groups, which are read at each start
TENANT_RULES_MAX = 1_000
# One transaction writes all mail about a message.
JOURNALS_MAX = 10  # addresses that get a copy
NOTICES_MAX = 50  # a rule's to an address


def too_large(directory: Path, files: Iterable[Path]) -> Iterator[Fault]:
    """Yield a fault if the files of a tenant are too large together, before they are read."""
    octets = 0
    for file in files:
        with suppress(OSError):  # reading it has a better fault
            octets += file.stat().st_size
    if octets > TENANT_BYTES_MAX:
        text = f"found files of {octets} bytes, expected at most {TENANT_BYTES_MAX} together"
        yield Fault(directory, 0, "", f"{text}, with those of groups")


def too_many(document: Document, before: int) -> Iterator[Fault]:
    """Yield a fault if the rules in this file are too many for a tenant, before they are read.

    `before` is the number of rules in the files before it.
    """
    rules, left = document.table.get("rule"), TENANT_RULES_MAX - before
    if isinstance(rules, list) and len(rules) > left:
        text = f"found more rules, expected at most {TENANT_RULES_MAX} of a tenant"
        yield document.fault(("rule", left), text)


def first_of(directory: Path, faults: list[Fault]) -> list[Fault]:
    """Return the faults that are reported."""
    if len(faults) < FAULTS_MAX:
        return faults
    text = f"found {FAULTS_MAX} faults or more, expected none; no more of them are listed"
    return [Fault(directory, 0, "", text), *faults[:FAULTS_MAX]]


def too_much_mail(rules: Iterable[Rule]) -> Iterator[Fault]:
    """Yield a fault at the first journal and at the first notice that exceeds the limit."""
    journals: set[str] = set()
    notices = 0
    for rule in rules:
        before = len(journals), notices
        for action in rule.actions:
            if isinstance(action, JournalAction):
                journals.update(map(own_mailbox, action.addresses))
            elif isinstance(action, NotifyAction):
                notices += len(action.addresses)
        if before[0] <= JOURNALS_MAX < len(journals):
            text = f"at most {JOURNALS_MAX} in all rules of a directory"
            yield _fault(rule, "journal", f"found one address more, expected {text}")
        if before[1] <= NOTICES_MAX < notices:
            text = f"at most {NOTICES_MAX} of these in all rules of a directory"
            yield _fault(rule, "notify", f"found {notices} addresses up to here, expected {text}")


def _fault(rule: Rule, key: str, text: str) -> Fault:
    return Fault(rule.file, rule.line, f'rule "{rule.name}": {key}', text)
