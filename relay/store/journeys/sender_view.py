"""What the account of a sender sees of a journey: nothing of a quarantine, of the rules of
other tenants, nor of the mail that rules send to others about its message.

Pure functions. Roles that see all messages get the journey as it is.
"""

from collections.abc import Collection, Mapping
from typing import Any

from msgspec.structs import replace

from relay.base.message.lifecycle import hold_text
from relay.base.message.verdict import tenant_of_rule
from relay.store.journeys.details import AttemptDetail, Detail, RoutedDetail, UsedRules
from relay.store.journeys.document import Journey, details_in

_QUARANTINE = "quarantine"  # the action, in the outcome of a rule
_MAILS = frozenset({"journal", "notify"})  # these actions send mail to others
_NO_RULES = UsedRules("", "")


def sender_detail(known: Detail, stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the stored detail of an event as the sender's account sees it.

    `known` is the part of the detail that this relay knows. If nothing is hidden, return the same
    object.
    """
    match known:
        case AttemptDetail(silent=True):  # a hold that the sender does not see
            return _without(stored, "rule", "silent")
        case RoutedDetail(used=None) if "set" in stored:  # the owners of the rules are unknown
            return _without(stored, "set", "rules", "mails", "quarantined", "held")
        case RoutedDetail() as detail:
            hidden = _hidden(detail)
            seen = _without_mails(_without_sets(stored, detail), detail, hidden)
            if not hidden:
                return seen
            reasons = tuple(hold_text("", rule) for rule in hidden)
            left = {key: names for key, names in detail.held.items() if not key.startswith(reasons)}
            return _without(seen, "quarantined", "held") | ({"held": left} if left else {})
    return stored


def sender_journey(journey: Journey) -> Journey:
    """Return a journey as the account of its sender sees it."""
    steps = tuple(
        replace(step, detail=dict(sender_detail(step.read(), step.detail)))
        for step in journey.steps
    )
    hidden = {
        rule for routed in details_in(journey.steps, RoutedDetail) for rule in _hidden(routed)
    }
    if not hidden:
        return replace(journey, steps=steps)
    by = tuple([f'{before}rule "{rule}"' for rule in hidden for before in ("", "quarantined by ")])
    recipients = tuple(
        replace(recipient, reason=None) if (recipient.reason or "").startswith(by) else recipient
        for recipient in journey.recipients
    )
    return replace(journey, steps=steps, recipients=recipients)


def _hidden(detail: RoutedDetail) -> set[str]:
    """Return the rules that quarantine, also those that only would, and those of other tenants."""
    return {
        hit.rule
        for hit in detail.rules
        if _QUARANTINE in hit.outcome.split(",") or _is_foreign(hit.rule, detail.used or _NO_RULES)
    }


def _is_foreign(rule: str, used: UsedRules) -> bool:
    tenant = tenant_of_rule(rule)  # an operator's rule may have a / in its name too
    is_tenant = tenant in used.tenants or rule.endswith("/*")
    return is_tenant and tenant != used.own


def _without(stored: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in stored.items() if name not in names}


def _without_sets(stored: Mapping[str, Any], detail: RoutedDetail) -> Mapping[str, Any]:
    """Return the detail without the hashes of the rules of other tenants."""
    used = detail.used or _NO_RULES
    if not used.tenants.keys() - {used.own}:
        return stored
    left = {name: digest for name, digest in used.tenants.items() if name == used.own}
    rest = _without(stored["set"], "tenants")
    return {**stored, "set": rest | ({"tenants": left} if left else {})}


def _without_mails(
    stored: Mapping[str, Any], detail: RoutedDetail, hidden: Collection[str]
) -> Mapping[str, Any]:
    """Return the detail without hidden rules, journal reports, notices and rules that do nothing
    else.
    """
    seen, hits = [], stored["rules"] if detail.rules else ()
    for hit, known in zip(hits, detail.rules, strict=True):
        actions = known.outcome.split(",")
        left = [action for action in actions if action not in _MAILS]
        if left and known.rule not in hidden:
            seen.append(hit if left == actions else {**hit, "outcome": ",".join(left)})
    if seen == stored.get("rules", []):
        return stored
    return _without(stored, "mails") | {"rules": seen}
