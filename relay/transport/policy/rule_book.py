"""The rules in force: the operator's rules for all mail, and each tenant's rules for its mail.

First run the rules in the operator's files whose names sort before "50-", then the rules of the
sender's tenant, then the rules of each recipient's tenant, and last those in the operator's other
files. docs/policy-tenants.md says who may do what.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from relay.base.message.envelope import domain_of
from relay.base.message.verdict import RULES_UNAVAILABLE, Deferral, ExaminedMessage
from relay.store.journeys.details import UsedRules
from relay.transport.policy.engine import SKIPPED, Evaluation, RuleScope, RuleSet

DEFERRED = "defer"  # the outcome of a rule whose rate limit is exceeded
LATE = "50-"  # the operator's files from here on run after the rules of tenants


class TenantRules(Struct, frozen=True):
    """A tenant, with its rules."""

    name: str
    # as A-labels: the domains that relay.toml names, and domains that are aliases of them
    domains: frozenset[str]
    rules: RuleSet | None  # None: its rules cannot be used, and its mail waits

    def usable_for(self, domain: str) -> RuleSet | Deferral:
        """Return the rules, or the deferral of mail from or to this domain without rules."""
        return self.rules or Deferral("4.3.0", unavailable(domain), f"{self.name}/*")


def unavailable(domain: str) -> str:
    """Return the text of the reply to mail of a tenant without rules."""
    return f"{RULES_UNAVAILABLE} {domain} are not available, try again later"


@dataclass(frozen=True, slots=True)
class RuleBook:
    """All rules in force, of the operator and of tenants."""

    operator: RuleSet = field(default_factory=RuleSet)  # for all mail
    tenants: Mapping[str, TenantRules] = field(default_factory=dict)  # by name
    # tenants by domain, and the operator's rules before and after theirs
    _by_domain: Mapping[str, TenantRules] = field(init=False, repr=False, compare=False)
    _early: RuleSet = field(init=False, repr=False, compare=False)
    _late: RuleSet = field(init=False, repr=False, compare=False)
    reads_auth: bool = field(init=False, repr=False, compare=False)  # a rule has the condition

    def __post_init__(self) -> None:
        by_domain = {
            domain: tenant for tenant in self.tenants.values() for domain in tenant.domains
        }
        object.__setattr__(self, "_by_domain", by_domain)
        operator, early, late = self.operator, self.operator, RuleSet()
        if self.tenants:
            late_rules = tuple(rule for rule in operator.rules if rule.file.name >= LATE)
            early_rules = tuple(rule for rule in operator.rules if rule.file.name < LATE)
            early = dataclasses.replace(operator, rules=early_rules)
            late = dataclasses.replace(operator, rules=late_rules)
        object.__setattr__(self, "_early", early)
        object.__setattr__(self, "_late", late)
        object.__setattr__(self, "reads_auth", any(rules.reads_auth for rules in self._rule_sets))

    def tenant_of(self, domain: str) -> TenantRules | None:
        """Return the tenant whose domain (A-labels) this is."""
        return self._by_domain.get(domain)

    @property
    def _rule_sets(self) -> Sequence[RuleSet]:
        tenants = (tenant.rules for tenant in self.tenants.values() if tenant.rules)
        return (self.operator, *tenants)

    @property
    def rule_count(self) -> int:
        """How many rules there are."""
        return sum(len(rule_set.rules) for rule_set in self._rule_sets)

    def outcomes(self) -> set[tuple[str, str]]:
        """Return the labels of the metric of rules: pairs of a name and an outcome."""
        return {
            (rule.name, outcome)
            for rule_set in self._rule_sets
            for rule in rule_set.rules
            for outcome in (rule.outcome, DEFERRED, SKIPPED)
        }

    @property
    def digest(self) -> str:
        """A digest of all files, "" without any."""
        digests = [self.operator.digest]
        for tenant in sorted(self.tenants.values(), key=lambda tenant: tenant.name):
            digests += [tenant.name, tenant.rules.digest if tenant.rules else ""]
        return " ".join(digests)

    def identity(self, tenants: Iterable[str], account: str) -> UsedRules | None:
        """Return which rules ran on a message of these tenants, for journeys; None without rules.

        `account` is the owner of the message.
        """
        operator_rules = self.operator.identity
        sets = {name: self.tenants[name].rules for name in tenants}
        if hashes := {name: rules.digest for name, rules in sets.items() if rules}:
            tenant = self.tenant_of(domain_of(account))
            used = operator_rules or UsedRules("", "")
            return replace(used, tenants=hashes, own=tenant.name if tenant else "")
        return operator_rules

    def begin(self, message: ExaminedMessage) -> Evaluation:
        """Return an evaluation that has not run yet."""
        return Evaluation(self.scopes(message), message)

    def scopes(self, message: ExaminedMessage) -> Sequence[RuleScope]:
        """Return the sets of rules that the message concerns, in their order."""
        everybody = range(len(message.recipients))
        scopes = [RuleScope(self._early, message, everybody)]
        if not self.tenants:
            return scopes
        sender = self._sender_domain(message)
        sending = self.tenant_of(sender)
        if sending is not None:
            seen = _seen_by(sending, message)
            scopes.append(RuleScope(sending.usable_for(sender), seen, everybody, sending.name))
        by_tenant: dict[str, list[int]] = {}
        for place, recipient in enumerate(message.recipients):
            tenant = self.tenant_of(domain_of(recipient))
            if tenant is not None and tenant is not sending:
                by_tenant.setdefault(tenant.name, []).append(place)
        for name, places in by_tenant.items():
            tenant = self.tenants[name]
            recipients = tuple(message.recipients[place] for place in places)
            own = replace(message, recipients=recipients, recipient_count=len(places))
            rules = tenant.usable_for(domain_of(recipients[0]))
            scopes.append(RuleScope(rules, _seen_by(tenant, own), places, name, is_whole=False))
        scopes.append(RuleScope(self._late, message, everybody))
        return scopes

    def _sender_domain(self, message: ExaminedMessage) -> str:
        """Return the domain of the sender, by which its tenant is found.

        It is the domain of the reverse-path if the client may use that and a tenant has the domain,
        else the domain of the login.
        """
        domain = domain_of(message.reverse_path) if message.sender_local else ""
        return domain if self.tenant_of(domain) else domain_of(message.login)


def _seen_by(tenant: TenantRules, message: ExaminedMessage) -> ExaminedMessage:
    """Return the message with the tenant's domains as the only own ones."""
    return replace(
        message,
        local=frozenset(
            recipient
            for recipient in message.recipients
            if recipient in message.local and domain_of(recipient) in tenant.domains
        ),
        sender_local=message.sender_local and domain_of(message.reverse_path) in tenant.domains,
        is_own=tenant.domains.__contains__,
    )
