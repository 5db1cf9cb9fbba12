"""What the account of a sender sees of a journey: nothing of a quarantine, of the rules of
other tenants, nor of the mail that rules send to others about its message.

Pure functions. Roles that see all messages get the journey as it is.
"""

import operator
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from relay.base.message.lifecycle import hold_text
from relay.base.message.verdict import tenant_of_rule
from relay.store.journeys.document import Journey
from relay.store.journeys.events import Step

_QUARANTINE = "quarantine"  # the action, in the outcome of a rule
_MAILS = frozenset({"journal", "notify"})  # the same


def sender_detail(step: int, detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the detail of an event without these: the same object if nothing is hidden."""
    if step == Step.DELIVERY and detail.get("silent"):  # a hold of which the sender does not hear
        return {key: value for key, value in detail.items() if key not in ("rule", "silent")}
    if step != Step.POLICY_AND_ROUTING:
        return detail
    hidden = _hidden(detail)
    detail = _without_sets(_without_mails(detail))
    if not hidden:
        return detail
    seen = {key: value for key, value in detail.items() if key not in ("quarantined", "held")}
    seen["rules"] = [hit for hit in detail["rules"] if hit["rule"] not in hidden]
    reasons = [hold_text("", rule) for rule in hidden]
    held = detail.get("held", {}).items()
    left = {key: names for key, names in held if not key.startswith(tuple(reasons))}
    return seen | ({"held": left} if left else {})


def sender_journey(journey: Journey) -> Journey:
    """Return a journey as the account of its sender sees it."""
    steps = tuple(
        replace(one, detail=dict(sender_detail(one.step, one.detail))) for one in journey.steps
    )
    hidden = {
        rule
        for one in journey.steps
        if one.step == Step.POLICY_AND_ROUTING
        for rule in _hidden(one.detail)
    }
    if not hidden:
        return replace(journey, steps=steps)
    by = tuple([f'{before}rule "{rule}"' for rule in hidden for before in ("", "quarantined by ")])
    recipients = tuple(
        replace(one, reason=None) if (one.reason or "").startswith(by) else one
        for one in journey.recipients
    )
    return replace(journey, steps=steps, recipients=recipients)


def _hidden(detail: Mapping[str, Any]) -> set[str]:
    """Return the rules that quarantine, also those that only would, and those of other tenants."""
    return {
        hit["rule"]
        for hit in detail.get("rules", ())
        if _QUARANTINE in str(hit["outcome"]).split(",")
        or _is_foreign(hit["rule"], detail.get("set", {}))
    }


def _is_foreign(rule: str, used: Mapping[str, Any]) -> bool:
    tenant = tenant_of_rule(rule)  # of a rule of the operator, a / may be in the name too
    is_tenant = tenant in used.get("tenants", ()) or rule.endswith("/*")
    return is_tenant and tenant != used.get("own")


def _without_sets(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the detail without the hashes of the rules of other tenants."""
    used = detail.get("set", {})
    tenants, own = used.get("tenants", {}), used.get("own")
    if not tenants.keys() - {own}:
        return detail
    left = {name: digest for name, digest in tenants.items() if name == own}
    rest = {key: value for key, value in used.items() if key != "tenants"}
    return {**detail, "set": rest | ({"tenants": left} if left else {})}


def _without_mails(detail: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the detail without journal reports, notices and rules that do nothing else."""
    hits, shown = detail.get("rules", ()), []
    for hit in hits:
        actions = str(hit["outcome"]).split(",")
        if left := [one for one in actions if one not in _MAILS]:
            shown.append(hit if left == actions else {**hit, "outcome": ",".join(left)})
    if len(shown) == len(hits) and all(map(operator.is_, shown, hits)):
        return detail
    return {name: value for name, value in detail.items() if name != "mails"} | {"rules": shown}
