"""Read a folder of rule files into one set, or say everything that is wrong with it.

On the path: app at start, `relay check` and `relay policy` read; ingress evaluates what comes out.
Holds: atomic: one fault or one failing test, and there is no set at all.
Fails: PolicyError with all faults, each with file and line.
Standards: docs/policy.md.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from relay.policy.casefile import read_case
from relay.policy.engine import RuleSet
from relay.policy.reading import array
from relay.policy.rulefile import read_rule
from relay.policy.rules import Case, Rule
from relay.policy.testing import run_tests
from relay.settings.document import read_document
from relay.settings.faults import Fault, SettingsError, unknown_key

FILES_MAX = 500


class PolicyError(SettingsError):
    """The rules cannot be used: faults in the files, or tests that fail."""


def load(directory: Path, *, local_domains: Collection[str] = ()) -> RuleSet:
    """Return the rules of `directory`, all of whose tests pass; an empty folder is a valid set.

    `local_domains` are the configured ones, for tests that name no others.
    Raises PolicyError.
    """
    rules = read(directory)
    failed = [each for each in run_tests(rules, local_domains=local_domains) if each.failures]
    if failed:
        raise PolicyError(
            Fault(each.case.file, each.case.line, f'test "{each.case.name}"', failure)
            for each in failed
            for failure in each.failures
        )
    return rules


def read(directory: Path) -> RuleSet:
    """Return the rules of `directory` without running their tests. Raises PolicyError."""
    faults: list[Fault] = []
    rules: list[Rule] = []
    cases: list[Case] = []
    files = _files(directory)
    for file in files:
        try:
            document = read_document(file)
        except SettingsError as error:
            faults += error.faults
            continue
        for key in document.table:
            if key not in ("rule", "test"):
                faults.append(document.fault((key,), unknown_key(key, ("rule", "test"))))
        for path, raw in array(document, "rule", faults):
            rule = read_rule(document, path, raw, faults=faults)
            rules += [rule] if rule else []
        for path, raw in array(document, "test", faults):
            case = read_case(document, path, raw, faults=faults)
            cases += [case] if case else []
    faults += _doubles(rules)
    if faults:
        raise PolicyError(faults)
    return RuleSet(tuple(rules), tuple(cases), files)


def _files(directory: Path) -> tuple[Path, ...]:
    """Return the rule files in the order of their names; hidden ones and folders are none."""
    try:
        names = sorted(
            each
            for each in directory.iterdir()
            if each.suffix == ".toml" and not each.name.startswith(".")
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        message = f"found no folder of rules ({reason}), expected one; it may be empty"
        raise PolicyError([Fault(directory, 0, "policy.directory", message)]) from None
    if len(names) > FILES_MAX:
        message = f"found {len(names)} files, expected at most {FILES_MAX}"
        raise PolicyError([Fault(directory, 0, "policy.directory", message)])
    return tuple(names)


def _doubles(rules: Iterable[Rule]) -> list[Fault]:
    """A name stands for its rule in traces and metrics, so no two rules may share it."""
    first: dict[str, Rule] = {}
    faults = []
    for rule in rules:
        other = first.setdefault(rule.name, rule)
        if other is not rule:
            message = f"found the name of the rule at {other.file}:{other.line}, expected its own"
            faults.append(Fault(rule.file, rule.line, f'rule "{rule.name}": name', message))
    return faults
