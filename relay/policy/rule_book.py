"""The rules in force: those of the operator, and those of each tenant for its own mail.

The operator's files whose names sort before "50-" run first, then the rules of the sender's tenant,
those of each recipient's tenant, and the operator's other files. docs/policy-tenants.md says who
may do what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from relay.message.verdict import ExaminedMessage, Verdict
from relay.policy.engine import Evaluation, RuleSet


class TenantRules(Struct, frozen=True):
    """A tenant, with its rules."""

    name: str
    domains: frozenset[str]  # that are its own, as A-labels
    rules: RuleSet | None  # None: there is no set that could be used, and its mail waits


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All rules in force, and whose they are."""

    operator: RuleSet = field(default_factory=RuleSet)  # for all mail
    tenants: Mapping[str, TenantRules] = field(default_factory=dict)  # by name
    # by domain
    _by_domain: Mapping[str, TenantRules] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = {domain: each for each in self.tenants.values() for domain in each.domains}
        object.__setattr__(self, "_by_domain", found)

    def tenant_of(self, domain: str) -> TenantRules | None:
        """Return the tenant whose domain (A-labels) this is."""
        return self._by_domain.get(domain)

    @property
    def rule_count(self) -> int:
        """How many rules there are."""
        sets = (self.operator, *(each.rules for each in self.tenants.values() if each.rules))
        return sum(len(each.rules) for each in sets)

    @property
    def digest(self) -> str:
        """A digest of all files, "" without any."""
        found = [self.operator.digest]
        for each in sorted(self.tenants.values(), key=lambda one: one.name):
            found += [each.name, each.rules.digest if each.rules else ""]
        return " ".join(found)

    @property
    def identity(self) -> Mapping[str, str] | None:
        """Which rules these are, for journeys; None without files."""
        return self.operator.identity

    def evaluate(self, message: ExaminedMessage) -> Verdict:
        """Apply the rules in their order; each sees the changes of those before it.

        Raises TooManyPartsError, OSError.
        """
        evaluation = self.begin(message)
        evaluation.run(in_thread=True)
        return evaluation.verdict()

    def begin(self, message: ExaminedMessage) -> Evaluation:
        """Return an evaluation that has not run yet."""
        return self.operator.begin(message)
