"""Run the tests that stand in the rule files, against the whole set of rules.

On the path: loader runs them before a set is used; `relay policy test` shows them.
Holds: a test sees what ingress would see; the rules are those that would be in force.
Fails: never; a failing test is a result with its reasons.
Standards: none.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from relay.message.content import in_sight
from relay.message.envelope import domain_of
from relay.message.verdict import Examined, Fate, RecipientVerdict, Source, Subject, Verdict
from relay.mime import headers
from relay.policy.attachments import TooManyPartsError
from relay.policy.engine import Case, Judgement, Mode, RuleSet
from relay.settings.document import counted


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One test and why it failed; it passed if there are no `failures`."""

    case: Case
    failures: tuple[str, ...]


def run_tests(rules: RuleSet, *, local_domains: Collection[str] = ()) -> tuple[CaseResult, ...]:
    """Run all tests; `local_domains` are the configured ones, for tests that name no others."""
    return tuple(_run(rules, case, local_domains) for case in rules.cases)


def make_subject(
    sender: str,
    recipients: Collection[str],
    content: bytes,
    *,
    source: Source,
    local_domains: Collection[str],
) -> Subject:
    """Return what ingress would hand to evaluate()."""
    return Subject(
        reverse_path=sender,
        sender_local=domain_of(sender) in local_domains,
        recipients=tuple(Examined(each, domain_of(each) in local_domains) for each in recipients),
        content=content,
        source=source,
    )


def judgement_of(verdict: Verdict) -> Judgement:
    """Return the verdict in one word."""
    fates = {each.fate for each in verdict.recipients}
    if fates & {Fate.DELIVER, Fate.REDIRECT}:
        return Judgement.ACCEPT
    return Judgement.REJECT if Fate.REJECT in fates else Judgement.DISCARD


def _run(rules: RuleSet, case: Case, local_domains: Collection[str]) -> CaseResult:
    local = local_domains if case.local is None else case.local
    subject = make_subject(
        case.sender, case.recipients, case.content, source=case.source, local_domains=local
    )
    try:
        verdict = rules.evaluate(subject)
    except TooManyPartsError as error:
        return CaseResult(case, (f"the rules could not be applied: {error}",))
    return CaseResult(case, tuple(_failures(rules, case, verdict)))


def _failures(rules: RuleSet, case: Case, verdict: Verdict) -> list[str]:
    expect, failures = case.expect, []
    matched = [hit.rule for hit in verdict.hits]
    judged = judgement_of(verdict)
    if judged is not expect.verdict:
        failures.append(f"found verdict {judged} ({_told(matched)}), expected {expect.verdict}")
    if expect.rules is not None:
        concerned = {rule.name for rule in rules.rules if rule.file == case.file}
        concerned |= set(expect.rules)
        found = [each for each in matched if each in concerned]
        if tuple(found) != expect.rules:
            failures.append(f"found rules {_told(found)}, expected {_told(expect.rules)}")
    for word, expected, people in (
        ("added", expect.added, [each.address for each in verdict.additions]),
        ("redirected", expect.redirected, _with_fate(verdict, Fate.REDIRECT)),
        ("rejected", expect.rejected, _with_fate(verdict, Fate.REJECT)),
    ):
        folded = {each.casefold() for each in people}
        if expected is not None and folded != expected:
            failures.append(f"found {word} {_told(folded)}, expected {_told(expected)}")
    subjects = _subjects(verdict)
    if expect.subject is not None and subjects != {expect.subject}:
        failures.append(f"found subject {_told(subjects)}, expected {_told([expect.subject])}")
    return failures


def _with_fate(verdict: Verdict, fate: Fate) -> list[str]:
    return [each.address for each in verdict.recipients if each.fate is fate]


def _subjects(verdict: Verdict) -> set[str]:
    """Return the subjects of what is delivered; several where contents differ."""
    used = {each.content for each in verdict.recipients if each.fate is Fate.DELIVER}
    used |= {each.content for each in verdict.additions}
    return {headers.decoded(in_sight(verdict.contents[each]), "Subject") for each in used}


def _told(names: Collection[str]) -> str:
    ordered = sorted(names) if isinstance(names, set | frozenset) else names
    return ", ".join(f'"{each}"' for each in ordered) or "none"


@dataclass(frozen=True, slots=True)
class Report:
    """`document` is JSON-ready; `good` says whether the command succeeds."""

    lines: tuple[str, ...]
    document: dict[str, Any]
    good: bool = True


def format_check(rules: RuleSet) -> Report:
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


def format_test_results(results: Sequence[CaseResult]) -> Report:
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


def format_verdict(rules: RuleSet, verdict: Verdict) -> Report:
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
