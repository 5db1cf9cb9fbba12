"""Run the [[test]] tables of the rule files, and format the results of `relay policy`.

A rule test evaluates the whole rule set for the message that ingress would pass to it. load_rules
runs all tests before a rule set is used; `relay policy test` shows them. `relay policy try`
simulates the rules for a given message. Each result has lines for the terminal and the same data
for --json.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from relay.message.content import Content
from relay.message.envelope import Source, domain_of
from relay.message.header import ParsedContent
from relay.message.verdict import (
    ExaminedMessage,
    RecipientVerdict,
    Verdict,
    VerdictAction,
)
from relay.mime import headers
from relay.phrases import counted
from relay.policy.attachment_names import TooManyPartsError
from relay.policy.engine import RuleSet
from relay.policy.explanation import RulesExplained
from relay.policy.rules import OverallVerdict, RuleMode, RuleTest

_GOING = (VerdictAction.DELIVER, VerdictAction.REDIRECT)


class RuleTestResult(Struct, frozen=True):
    """One test and its `failures`; without any it has passed."""

    test: RuleTest
    failures: tuple[str, ...]


def run_tests(rules: RuleSet, *, local_domains: Collection[str] = ()) -> tuple[RuleTestResult, ...]:
    """Run all tests; `local_domains` are for tests that do not name their own."""
    return tuple(_run(rules, test, local_domains) for test in rules.tests)


def examined_message(
    sender: str,
    recipients: Collection[str],
    content: Content,
    *,
    source: Source,
    local_domains: Collection[str],
    client: str = "",
    login: str = "",
) -> ExaminedMessage:
    """Return what ingress would pass to evaluate()."""
    return ExaminedMessage(
        reverse_path=sender,
        sender_local=domain_of(sender) in local_domains,
        recipients=tuple(recipients),
        local=frozenset(each for each in recipients if domain_of(each) in local_domains),
        content=ParsedContent.of(content),
        source=source,
        client=client,
        login=login,
        recipient_count=len(recipients),
    )


def overall_verdict(verdict: Verdict) -> OverallVerdict:
    """Return the verdict for the whole message."""
    if verdict.deferred:
        return OverallVerdict.DEFER
    fates = {each.action for each in verdict.recipients}
    going = [one for one in verdict.recipients if one.action in _GOING]
    if going:
        is_held = all(one.hold for one in going)
        return OverallVerdict.HOLD if is_held else OverallVerdict.ACCEPT
    return OverallVerdict.REJECT if VerdictAction.REJECT in fates else OverallVerdict.DISCARD


def _run(rules: RuleSet, test: RuleTest, local_domains: Collection[str]) -> RuleTestResult:
    local = local_domains if test.local is None else test.local
    subject = examined_message(
        test.sender, test.recipients, test.content, source=test.source, local_domains=local
    )
    try:
        verdict = rules.evaluate(subject)
    except TooManyPartsError as error:
        return RuleTestResult(test, (f"the rules could not be applied: {error}",))
    return RuleTestResult(test, tuple(_failures(rules, test, verdict)))


def _failures(rules: RuleSet, test: RuleTest, verdict: Verdict) -> list[str]:
    expect, failures = test.expect, []
    matched = [hit.rule for hit in verdict.hits]
    overall = overall_verdict(verdict)
    if overall is not expect.verdict:
        failures.append(f"found verdict {overall} ({_quoted(matched)}), expected {expect.verdict}")
    if expect.rules is not None:
        concerned = {rule.name for rule in rules.rules if rule.file == test.file}
        concerned |= set(expect.rules)
        found = [each for each in matched if each in concerned]
        if tuple(found) != expect.rules:
            failures.append(f"found rules {_quoted(found)}, expected {_quoted(expect.rules)}")
    for word, expected, addresses in (
        ("added", expect.added, [each.address for each in verdict.additions]),
        ("redirected", expect.redirected, _with_fate(verdict, VerdictAction.REDIRECT)),
        ("rejected", expect.rejected, _with_fate(verdict, VerdictAction.REJECT)),
    ):
        folded = {each.casefold() for each in addresses}
        if expected is not None and folded != expected:
            failures.append(f"found {word} {_quoted(folded)}, expected {_quoted(expected)}")
    subjects = _subjects(verdict)
    if expect.subject is not None and subjects != {expect.subject}:
        failures.append(f"found subject {_quoted(subjects)}, expected {_quoted([expect.subject])}")
    return failures


def _with_fate(verdict: Verdict, fate: VerdictAction) -> list[str]:
    return [each.address for each in verdict.recipients if each.action is fate]


def _subjects(verdict: Verdict) -> set[str]:
    """Return the subjects of the delivered copies."""
    used = {each.content for each in verdict.recipients if each.action is VerdictAction.DELIVER}
    used |= {each.content for each in verdict.additions}
    return {headers.decoded(verdict.contents[each].header, "Subject") for each in used}


def _quoted(names: Collection[str]) -> str:
    ordered = sorted(names) if isinstance(names, set | frozenset) else names
    return ", ".join(f'"{each}"' for each in ordered) or "none"


class PolicyReport(Struct, frozen=True):
    """`document` is for JSON; `good`: whether the command succeeds."""

    lines: tuple[str, ...]
    document: dict[str, Any]
    good: bool = True


def format_check(rules: RuleSet) -> PolicyReport:
    """List the rules of a rule set whose tests have passed."""
    lines = [
        f"{rule.file.name:<24} {rule.mode:<8} {rule.name}: {rule.outcome}" for rule in rules.rules
    ]
    summary = (
        f"{counted(len(rules.rules), 'rule')} in {counted(len(rules.files), 'file')}, "
        f"{counted(len(rules.tests), 'test')} passed"
    )
    document = {
        "files": [str(file) for file in rules.files],
        "rules": [
            {
                "name": rule.name,
                "mode": str(rule.mode),
                "outcome": rule.outcome,
                "file": str(rule.file),
                "line": rule.line,
            }
            for rule in rules.rules
        ],
        "tests": len(rules.tests),
    }
    return PolicyReport((*lines, summary), document)


def format_test_results(results: Sequence[RuleTestResult]) -> PolicyReport:
    """List the tests that passed, and the others with their failures."""
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
    total = counted(len(results), "test")
    summary = f"{total}, {len(results) - failed} passed, {failed} failed"
    return PolicyReport((*lines, summary), {"tests": tests, "failed": failed}, good=not failed)


def format_verdict(explained: RulesExplained) -> PolicyReport:
    """List what each rule would do with a message, and the result per recipient."""
    verdict, lines = explained.verdict, []
    for rule in explained.rules:
        if rule.mode == RuleMode.OFF:
            lines.append(f"{rule.rule}: off")
        elif not rule.matched:
            lines.append(f"{rule.rule}: no match")
        else:
            would = "would " if rule.mode == RuleMode.AUDIT else ""
            lines.append(
                f"{rule.rule}: match for {', '.join(rule.recipients)} -> {would}{rule.outcome}"
            )
    lines += [_fate_line(each.address, _fate(each), each.rule) for each in verdict.recipients]
    lines += [_fate_line(each.address, "gets a copy", each.rule) for each in verdict.additions]
    overall = overall_verdict(verdict)
    document = {
        "verdict": str(overall),
        "rules": msgspec.to_builtins(explained.rules),
        "recipients": [
            {
                "address": each.address,
                "fate": str(each.action),
                "rule": each.rule,
                "status": each.status,
                "text": each.text,
                "successors": list(each.successors),
                "content": each.content,
            }
            for each in verdict.recipients
        ],
        "added": [
            {"address": each.address, "rule": each.rule, "content": each.content}
            for each in verdict.additions
        ],
        "subjects": [headers.decoded(content.header, "Subject") for content in verdict.contents],
    }
    return PolicyReport((*lines, f"verdict: {overall}"), document)


def _fate_line(address: str, fate: str, rule: str) -> str:
    return f"{address}: {fate} ({rule})" if rule else f"{address}: {fate}"


def _fate(verdict: RecipientVerdict) -> str:
    match verdict.action:
        case VerdictAction.DELIVER:
            return "delivered"
        case VerdictAction.REJECT:
            return f"rejected: {verdict.status} {verdict.text}"
        case VerdictAction.DISCARD:
            return "discarded"
        case VerdictAction.REDIRECT:
            return f"redirected to {', '.join(verdict.successors)}"
