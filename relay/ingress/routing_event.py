"""The event of step 5: what the rules and the routes made of a message."""

from typing import Any

from relay.ingress.fanout import FanOut
from relay.journeys.events import Event, Step
from relay.message.envelope import Client
from relay.message.lifecycle import hold_text
from relay.message.verdict import Verdict
from relay.policy.engine import RuleSet
from relay.signing.signer import SignedContents

_NAMED_MAX = 100  # addresses per next hop in an event, to bound its size


def routing_event(
    verdict: Verdict,
    fan: FanOut,
    at_us: int,
    *,
    client: Client | None,
    rules: RuleSet,
    signed: SignedContents,
) -> Event:
    """Return the event of step 5, without recipients that rules added.

    If a list of addresses is cut, `counts` has its full length. `client` is None for mail from
    pickup, whose client is in step 2.
    """
    next_hops: dict[str, list[str]] = {}
    routes: dict[str, list[str]] = {}  # that chose a next hop
    for entry in fan.entries:
        addresses = [each.path.address for each in entry.recipients if not each.added_by]
        if addresses:
            next_hops.setdefault(str(entry.next_hop), []).extend(addresses)
            names = routes.setdefault(str(entry.next_hop), [])
            if (name := entry.next_hop.route) and name not in names:
                names.append(name)
    held: dict[str, list[str]] = {}  # by the reason
    for entry in fan.entries:
        if entry.extra.reason:
            addresses = [each.path.address for each in entry.recipients if not each.added_by]
            by = hold_text(entry.extra.reason, entry.extra.rule)
            held.setdefault(by, []).extend(addresses)
    rejected = [each for each in fan.rejected if not each.added_by]
    aliases = [each for each in fan.aliases if each.successors]
    detail: dict[str, Any] = {
        "rules": [hit.as_json() for hit in verdict.hits],
        "next_hops": {hop: addresses[:_NAMED_MAX] for hop, addresses in next_hops.items()},
        **signed.as_json(),
    }
    if rules.identity is not None:
        detail["set"] = rules.identity
    if any(routes.values()):
        detail["routes"] = {hop: names for hop, names in routes.items() if names}
    if any(held.values()):
        detail["held"] = {reason: names[:_NAMED_MAX] for reason, names in held.items() if names}
    if client is not None:
        detail["client"] = client.as_json()
    if aliases:
        detail["aliases"] = [each.path.address for each in aliases[:_NAMED_MAX]]
    extras = [each.extra for each in fan.entries if each.extra.sender]
    if extras:
        detail["senders"] = {each.delivered_to: each.sender for each in extras[:_NAMED_MAX]}
    if rejected:
        detail["refused"] = [
            {"address": each.path.address, "reply": each.reply} for each in rejected[:_NAMED_MAX]
        ]
    sizes = {hop: len(addresses) for hop, addresses in next_hops.items()} | {
        "aliases": len(aliases),
        "refused": len(rejected),
    }
    if counts := {name: size for name, size in sizes.items() if size > _NAMED_MAX}:
        detail["counts"] = counts
    return Event(Step.POLICY_AND_ROUTING, at_us, detail)
