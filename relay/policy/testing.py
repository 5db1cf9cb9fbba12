"""Run the tests that stand in the rule files, against the whole set of rules.

On the path: loader runs them before a set is used; `relay policy test` shows them.
Holds: a test sees what ingress would see; the rules are those that would be in force.
Fails: never; a failing test is a result with its reasons.
Standards: none.
"""

from collections.abc import Collection
from dataclasses import dataclass

from relay.message.content import in_sight
from relay.message.envelope import domain_of
from relay.message.verdict import Examined, Fate, Source, Subject, Verdict
from relay.mime import headers
from relay.policy.attachments import TooManyPartsError
from relay.policy.engine import RuleSet
from relay.policy.rules import Case, Judgement


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
