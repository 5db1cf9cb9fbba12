"""Run the [[test]] tables of the rule files, and format the results of `relay policy`.

A rule test evaluates the whole rule set for the message that ingress would pass to it. load_rules
runs all tests before a rule set is used; `relay policy test` shows them. Each result has lines for
the terminal and the same data for --json.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from relay.base.message.address import own_mailbox
from relay.base.message.content import Content
from relay.base.message.envelope import Source, domain_of
from relay.base.message.header import ParsedContent
from relay.base.message.verdict import ExaminedMessage, Hold, Verdict, VerdictAction
from relay.base.phrases import counted
from relay.formats import headers
from relay.transport.policy.body_text import body_text
from relay.transport.policy.conditions import cut_value
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.folding import folded
from relay.transport.policy.message_parts import TooManyPartsError, message_parts
from relay.transport.policy.message_view import UndecidedError
from relay.transport.policy.rules import ExpectedResult, OverallVerdict, Rule, RuleMode, RuleTest

_GOING = (VerdictAction.DELIVER, VerdictAction.REDIRECT, VerdictAction.QUARANTINE)


class RuleTestResult(Struct, frozen=True):
    """One test and its `failures`; without any it has passed."""

    test: RuleTest
    failures: tuple[str, ...]


def run_tests(rules: RuleSet, *, local_domains: Collection[str] = ()) -> Iterator[RuleTestResult]:
    """Run the tests, one after the other; `local_domains` are for tests that do not name any."""

    @cache
    def rules_for(names: frozenset[str], file: Path | None) -> RuleSet:
        if not names and file is None:  # nearly always
            return rules
        enforced = [
            structs.replace(rule, mode=RuleMode.ENFORCE) if rule.name in names else rule
            for rule in rules.rules
            if file in (None, rule.file)
        ]
        return dataclasses.replace(rules, rules=tuple(enforced))

    for test in rules.tests:
        own = rules_for(test.enforced, test.file if test.is_alone else None)
        yield _run(own, test, local_domains)


def untested(rules: RuleSet) -> tuple[Rule, ...]:
    """Return the rules that no test names among those that match."""
    named = {name for test in rules.tests for name in test.expect.rules or ()}
    return tuple(rule for rule in rules.rules if rule.name not in named)


def examined_message(
    sender: str,
    recipients: Collection[str],
    content: Content,
    *,
    source: Source,
    local_domains: Collection[str],
    client: str = "",
    login: str = "",
    is_trusted: bool = True,
) -> ExaminedMessage:
    """Return what ingress would pass to evaluate(), but without a time: dates are ignored."""
    return ExaminedMessage(
        reverse_path=sender,
        sender_local=is_trusted and domain_of(sender) in local_domains,
        recipients=tuple(recipients),
        local=frozenset(
            recipient for recipient in recipients if domain_of(recipient) in local_domains
        ),
        content=ParsedContent.of(content),
        source=source,
        client=client,
        login=login,
        recipient_count=len(recipients),
        is_own=local_domains.__contains__,
    )


def overall_verdict(verdict: Verdict) -> OverallVerdict:
    """Return the verdict for the whole message."""
    if verdict.deferred:
        return OverallVerdict.DEFER
    fates = {recipient.action for recipient in verdict.recipients}
    going = [recipient for recipient in verdict.recipients if recipient.action in _GOING]
    if going:
        is_held = all(recipient.hold for recipient in going)
        return OverallVerdict.HOLD if is_held else OverallVerdict.ACCEPT
    return OverallVerdict.REJECT if VerdictAction.REJECT in fates else OverallVerdict.DISCARD


def _run(rules: RuleSet, test: RuleTest, local_domains: Collection[str]) -> RuleTestResult:
    subject = examined_message(
        test.sender,
        test.recipients,
        test.content,
        source=test.source,
        local_domains=local_domains if test.local is None else test.local,
        client=test.client,
        login=test.login,
        is_trusted=not test.client or bool(test.login),
    )
    subject = structs.replace(subject, recipient_count=test.recipient_count, results=test.results)
    try:
        return RuleTestResult(test, tuple(_failures(rules, test, rules.evaluate(subject))))
    except (TooManyPartsError, UndecidedError) as error:
        return RuleTestResult(test, (f"the rules could not be applied: {error}",))


def _failures(rules: RuleSet, test: RuleTest, verdict: Verdict) -> Iterator[str]:
    expect = test.expect
    matched = [hit.rule for hit in verdict.hits]
    overall = overall_verdict(verdict)
    if overall is not expect.verdict:
        yield f"found verdict {overall} ({_quoted(matched)}), expected {expect.verdict}"
    if expect.rules is not None:
        concerned = {rule.name for rule in rules.rules if rule.file == test.file}
        concerned |= set(expect.rules)
        relevant = [name for name in matched if name in concerned]
        if tuple(relevant) != expect.rules:
            yield f"found rules {_quoted(relevant)}, expected {_quoted(expect.rules)}"
    if verdict.deferred:  # the rest of the verdict is ignored
        verdict = Verdict((), (), (), verdict.hits)
    for word, expected, addresses in (
        ("added", expect.added, [added.address for added in verdict.added]),
        ("redirected", expect.redirected, _with_fate(verdict, VerdictAction.REDIRECT)),
        ("rejected", expect.rejected, _with_fate(verdict, VerdictAction.REJECT)),
        (
            "quarantined",
            expect.quarantined,
            [recipient.address for recipient in verdict.recipients if recipient.quarantined],
        ),
        ("journaled", expect.journaled, [mail.to for mail in verdict.mails if not mail.text]),
        ("notified", expect.notified, [mail.to for mail in verdict.mails if mail.text]),
    ):
        present = set(map(own_mailbox, addresses))
        if expected is not None and present != expected:
            yield f"found {word} {_quoted(present)}, expected {_quoted(expected)}"
    yield from _failures_of_copies(expect, verdict)


def _failures_of_copies(expect: ExpectedResult, verdict: Verdict) -> Iterator[str]:
    """Yield the failures of copies that are delivered or held."""
    delivered = [
        recipient for recipient in verdict.recipients if recipient.action is VerdictAction.DELIVER
    ]
    used = {recipient.content for recipient in delivered} | {
        added.content for added in verdict.added
    }
    copies = [verdict.contents[index] for index in sorted(used)]
    for word, expected, values in (
        ("subject", expect.subject, {headers.decoded(copy.header, "Subject") for copy in copies}),
        ("next_hop", expect.next_hop, {recipient.next_hop for recipient in delivered}),
        ("reason", expect.reason, {hold.reason for hold in holds_of(verdict)}),
    ):
        if expected is not None and values != {expected}:
            yield f"found {word} {_quoted(values)}, expected {_quoted([expected])}"
    for name, value in expect.headers:
        fields = {field for copy in copies for field in headers.decoded_values(copy.header, name)}
        if value is None and fields:
            yield f"found {name} {_quoted(fields)}, expected none"
        elif value is not None and value not in fields:
            yield f"found {name} {_quoted(fields)}, expected {_quoted([value])}"
    if expect.body:
        texts = [body_text(copy, message_parts(copy)) for copy in copies]
        excerpts = [cut_value(text) for text in texts]
        for expected in expect.body:
            if not any(folded(expected) in text for text in texts):
                yield f"found body {_quoted(excerpts)}, expected {_quoted([expected])} in it"


def holds_of(verdict: Verdict) -> tuple[Hold, ...]:
    """Return the holds of all copies that wait."""
    holds = [recipient.hold for recipient in verdict.recipients] + [
        added.hold for added in verdict.added
    ]
    return tuple(filter(None, holds))


def _with_fate(verdict: Verdict, fate: VerdictAction) -> list[str]:
    return [recipient.address for recipient in verdict.recipients if recipient.action is fate]


def _quoted(names: Collection[str]) -> str:
    ordered = sorted(names) if isinstance(names, set | frozenset) else names
    return ", ".join(f'"{name}"' for name in ordered) or "none"


class PolicyReport(Struct, frozen=True):
    """`document` is for JSON; `good`: whether the command succeeds."""

    lines: tuple[str, ...]
    document: dict[str, Any]
    good: bool = True


def format_check(
    sets: Sequence[RuleSet], warnings: Sequence[str] = (), *, time_us: int | None = None
) -> PolicyReport:
    """List the rules of rule sets whose tests have passed, and the warnings about them. `time_us`
    is now, for their dates.
    """
    rules = [rule for rule_set in sets for rule in rule_set.rules]
    files = [file for rule_set in sets for file in rule_set.files]
    lines = [
        f"{rule.file.name:<24} {rule.mode:<8} {rule.name}: {rule.outcome}"
        + (f" ({why})" if (why := rule.outside_dates(time_us)) else "")
        for rule in rules
    ]
    lacking = [rule for rule_set in sets for rule in untested(rule_set)]
    tests = sum(len(rule_set.tests) for rule_set in sets)
    summary = (
        f"{counted(len(rules), 'rule')} in {counted(len(files), 'file')}, "
        f"{counted(tests, 'test')} passed"
    ) + (f", {counted(len(lacking), 'rule')} without a test" if lacking else "")
    document = {
        "files": [str(file) for file in files],
        "rules": [
            {
                "name": rule.name,
                "mode": str(rule.mode),
                "outcome": rule.outcome,
                "from": rule.starts or None,
                "until": rule.ends or None,
                "file": str(rule.file),
                "line": rule.line,
            }
            for rule in rules
        ],
        "tests": tests,
        "untested": [rule.name for rule in lacking],
        "warnings": list(warnings),
    }
    lines += [f"warning: {warning}" for warning in warnings]
    return PolicyReport((*lines, summary), document)


def format_test_results(sets: Sequence[RuleSet], results: Sequence[RuleTestResult]) -> PolicyReport:
    """List the tests that passed, the others with their failures, and the rules without a test."""
    lines = []
    for result in results:
        place = f"{result.test.file}:{result.test.line}"
        if not result.failures:
            lines.append(f'ok      test "{result.test.name}"')
        lines += [f'FAILED  {place}: test "{result.test.name}": {why}' for why in result.failures]
    failed = sum(1 for result in results if result.failures)
    tests = [
        {
            "name": result.test.name,
            "file": str(result.test.file),
            "line": result.test.line,
            "passed": not result.failures,
            "failures": list(result.failures),
        }
        for result in results
    ]
    lacking = [rule for rule_set in sets for rule in untested(rule_set)]
    lines += [f'no test {rule.file}:{rule.line}: rule "{rule.name}"' for rule in lacking]
    total = counted(len(results), "test")
    summary = f"{total}, {len(results) - failed} passed, {failed} failed"
    if lacking:
        summary += f"; {counted(len(lacking), 'rule')} without a test"
    document = {"tests": tests, "failed": failed, "untested": [rule.name for rule in lacking]}
    return PolicyReport((*lines, summary), document, good=not failed)
