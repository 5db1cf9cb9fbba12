"""What `relay policy check`, `test` and `try` print: lines for people, one document for programs.

On the path: the command line asks and prints; nothing here decides anything.
Holds: pure; lines and document say the same.
Fails: never.
Standards: none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from relay.message.content import in_sight
from relay.message.verdict import Fate, RecipientVerdict, Verdict
from relay.mime import headers
from relay.policy.engine import RuleSet
from relay.policy.rules import Mode
from relay.policy.testing import CaseResult, judgement_of
from relay.settings.faults import counted


@dataclass(frozen=True, slots=True)
class Report:
    """`document` is JSON-ready; `good` says whether the command succeeds."""

    lines: tuple[str, ...]
    document: dict[str, Any]
    good: bool = True


def of_check(rules: RuleSet) -> Report:
    """Say what a set that was loaded consists of: its tests have passed."""
    lines = [
        f"{rule.file.name:<24} {rule.mode:<8} {rule.name}: {rule.outcome}" for rule in rules.rules
    ]
    summary = (
        f"{counted(len(rules.rules), 'rule')} in {counted(len(rules.files), 'file')}, "
        f"{counted(len(rules.cases), 'test')} passed"
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
        "tests": len(rules.cases),
    }
    return Report((*lines, summary), document)


def of_tests(results: Sequence[CaseResult]) -> Report:
    """Say which tests passed and why the others failed."""
    lines = []
    for result in results:
        place = f"{result.case.file}:{result.case.line}"
        if not result.failures:
            lines.append(f'ok      test "{result.case.name}"')
        lines += [f'FAILED  {place}: test "{result.case.name}": {why}' for why in result.failures]
    failed = sum(1 for result in results if result.failures)
    tests = [
        {
            "name": result.case.name,
            "file": str(result.case.file),
            "line": result.case.line,
            "passed": not result.failures,
            "failures": list(result.failures),
        }
        for result in results
    ]
    total = counted(len(results), "test")
    summary = f"{total}, {len(results) - failed} passed, {failed} failed"
    return Report((*lines, summary), {"tests": tests, "failed": failed}, good=not failed)


def of_verdict(rules: RuleSet, verdict: Verdict) -> Report:
    """Say rule by rule what would happen to a message, and to each of its recipients."""
    hits = {hit.rule: hit for hit in verdict.hits}
    lines = []
    for rule in rules.rules:
        if rule.mode is Mode.OFF:
            lines.append(f"{rule.name}: off")
        elif rule.name not in hits:
            lines.append(f"{rule.name}: no match")
        else:
            would = "would " if rule.mode is Mode.AUDIT else ""
            people = ", ".join(hits[rule.name].recipients)
            lines.append(f"{rule.name}: match for {people} -> {would}{rule.outcome}")
    lines += [_fate_line(each.address, _fate(each), each.rule) for each in verdict.recipients]
    lines += [_fate_line(each.address, "gets a copy", each.rule) for each in verdict.additions]
    judged = judgement_of(verdict)
    document = {
        "verdict": str(judged),
        "rules": [hit.as_json() for hit in verdict.hits],
        "recipients": [
            {
                "address": each.address,
                "fate": str(each.fate),
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
        "subjects": [headers.decoded(in_sight(content), "Subject") for content in verdict.contents],
    }
    return Report((*lines, f"verdict: {judged}"), document)


def _fate_line(address: str, fate: str, rule: str) -> str:
    return f"{address}: {fate} ({rule})" if rule else f"{address}: {fate}"


def _fate(verdict: RecipientVerdict) -> str:
    match verdict.fate:
        case Fate.DELIVER:
            return "delivered"
        case Fate.REJECT:
            return f"rejected: {verdict.status} {verdict.text}"
        case Fate.DISCARD:
            return "discarded"
        case Fate.REDIRECT:
            return f"redirected to {', '.join(verdict.successors)}"
