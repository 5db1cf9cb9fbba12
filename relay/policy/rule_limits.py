"""How large a set of rules may be: the files of a tenant, and the number of its rules; in all sets
the mail that rules write about one message, and the faults that are reported.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from relay.policy.actions import JournalAction, NotifyAction
from relay.policy.rules import Rule
from relay.policy.table_reader import FAULTS_MAX
from relay.settings.document import Document, Fault

TENANT_BYTES_MAX = 2 * 1024 * 1024  # of rule files and groups, which are read at each start
TENANT_RULES_MAX = 1_000
# One transaction writes all mail about a message.
JOURNALS_MAX = 10  # addresses that get a copy
NOTICES_MAX = 50  # a rule's to an address


def too_large(directory: Path, files: Iterable[Path]) -> Iterator[Fault]:
    """Yield a fault if the files of a tenant, which are not read yet, are too large together."""
    octets = 0
    for file in files:
        with suppress(OSError):  # reading it has a better fault
            octets += file.stat().st_size
    if octets > TENANT_BYTES_MAX:
        text = f"found files of {octets} bytes, expected at most {TENANT_BYTES_MAX} together"
        yield Fault(directory, 0, "", f"{text}, with those of groups")


def too_many(document: Document, before: int) -> Iterator[Fault]:
    """Yield a fault if a tenant has too many rules with those in this file, which are not read yet.
    Files `before` have so many.
    """
    found, left = document.table.get("rule"), TENANT_RULES_MAX - before
    if isinstance(found, list) and len(found) > left:
        text = f"found more rules, expected at most {TENANT_RULES_MAX} of a tenant"
        yield document.fault(("rule", left), text)


def first_of(directory: Path, faults: list[Fault]) -> list[Fault]:
    """Return the faults that are reported."""
    if len(faults) < FAULTS_MAX:
        return faults
    text = f"found {FAULTS_MAX} faults or more, expected none; no more of them are listed"
    return [Fault(directory, 0, "", text), *faults[:FAULTS_MAX]]


def too_much_mail(rules: Iterable[Rule]) -> Iterator[Fault]:
    """Yield a fault at the first rule of each kind by which a message would cause too much mail."""
    journals: set[str] = set()
    notices = 0
    for rule in rules:
        before = len(journals), notices
        for action in rule.actions:
            if isinstance(action, JournalAction):
                journals.update(each.casefold() for each in action.addresses)
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
