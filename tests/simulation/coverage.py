"""What ought to come to pass in two hundred worlds: what never does is a hole in the simulation.

The names are made of the code's own words, so that a new one is missed at once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from relay.base.message.lifecycle import FINAL, RecipientState
from relay.base.message.outcome import DeferralClass
from relay.base.message.status import SUPPRESSED
from relay.base.pressure import PressureLevel
from relay.store.journeys.events import Step
from relay.store.spool.queue_commands import CommandResult, Operation
from relay.store.spool.types import PriorityLevel
from tests.simulation.rows import Message
from tests.simulation.sites import BOXED, CROWDED, MANNERS, REFUSING_LOGINS

_UNREACHABLE = {DeferralClass.INTERNAL}  # nothing of ours breaks down
_ALWAYS_DONE = (Operation.CANCEL, CommandResult.UNCHANGED)  # whatever lives can be cancelled
_NEVER_ORDERED = Operation.RELEASE  # what is held is not attempted
_PARTS_OF_LIFE = ("starting", "working", "stopping", "an order", "maintenance", "a report")
WANTED = (
    *(f"site: {manner.name}" for manner in (*MANNERS, REFUSING_LOGINS, *CROWDED, *BOXED)),
    "connected: next to slow transactions",
    "in memory: for two logins of a host",
    "in memory: for two TLS policies",
    "strict: verified",
    "strict: by DANE",
    "strict: its policy is over",
    "strict: as it says without TLS",
    "policy: sts-policy-fetch-error",
    *(f"deferred: {kind}" for kind in DeferralClass if kind not in _UNREACHABLE),
    *(f"outcome: {name}" for name in ("delivered", "relayed", "failed", "indeterminate")),
    *(f"state: {state}" for state in sorted(FINAL)),
    *(f"lane: {level.name}" for level in PriorityLevel),
    *(f"look: {kind}" for kind in ("onward", "next hop", "sender")),
    *(
        f"operation: {one}, {result}"
        for one in Operation
        for result in CommandResult
        if (one, result) not in (_ALWAYS_DONE, (_NEVER_ORDERED, CommandResult.ORDERED))
    ),
    *(f"expired: {state}" for state in ("deferred", "held", "captured")),
    *(f"held by a rule: {word}" for word in ("relayed", "delivered", "expired", "cancelled")),
    *(
        f"held by its route: {word}"
        for word in ("relayed", "expired", "cancelled", "released, and routed anew")
    ),
    *(f"death: {part}" for part in _PARTS_OF_LIFE),
    *(
        f"report: {kind}"
        for kind in ("failure", "dead-letter", "delayed", "held", "delivered", "relayed")
    ),
    *(f"pressure: {level.name}" for level in PressureLevel),
    *(f"disk: {word}" for word in ("full", "a sync failed", "reserve file released")),
    *(f"answer: {word}" for word in ("250", "4yz", "5yz", "none")),
    "accepted: as no claim",
    "accepted: in a file",
    "accepted: in two versions",
    "accepted: large",
    "accepted: repeated",
    "accepted: repeated, behind its history",
    "accepted: repeated, with an old key",
    "added by a rule",
    "clock: jumped",
    "clock: wrong",
    "clock: a doubtful gap",
    "history: pruned",
    "mailbox: full",
    "power: lost",
    "released as before: queued, due now",
    "released as before: deferred, due now",
    "released as before: deferred, due later",
    "reported in flight: relayed",
    "reported in flight: not relayed",
    "rate: waited",
    "routed anew: its route has changed",
    "released by its time",
    "released by its time: as answered",
    "settled: fenced",
    "settled: some",
    "on the list of dead addresses",
    "silent: NOTIFY=NEVER",
    "silent: null reverse-path",
    "not told: a stranger",
)


def of_messages(messages: Mapping[str, Message]) -> Counter[str]:
    """What is to be seen in what was left."""
    return Counter(word for message in messages.values() for word in _of_message(message))


def _of_message(message: Message) -> Iterator[str]:
    failed = False
    yield from map("held by its route: {}".format, _held(message, "route "))
    yield from map("held by a rule: {}".format, _held(message, "rule "))
    for one in message.recipients:
        yield f"state: {one.state}"
        if one.added_by:
            yield "added by a rule"
        if not one.entry and one.reply.startswith(SUPPRESSED):
            yield "on the list of dead addresses"
        if one.state in (RecipientState.FAILED, RecipientState.EXPIRED) and not one.added_by:
            failed = failed or one.notify != "NEVER"
            if one.notify == "NEVER":
                yield "silent: NOTIFY=NEVER"
    if failed and not message.trusted:
        yield "not told: a stranger"
    elif failed and not message.reverse_path and message.source != "report":
        yield "silent: null reverse-path"
    for _, step, detail in message.events:
        if step == Step.REPORT and "kind" in detail:
            yield f"report: {detail['kind']}"
        if detail.get("who") == "its time":
            yield "released by its time"


def _held(message: Message, by: str) -> Iterator[str]:
    """What became of those whose mail a route or a rule has held from its acceptance."""
    held = {
        address
        for _, step, detail in message.events
        if step == Step.POLICY_AND_ROUTING
        for reason, addresses in detail.get("held", {}).items()
        if reason.startswith(by)
        for address in addresses
    }
    anew = {
        entry
        for _, _, detail in message.events
        if detail.get("operation") == "reroute" and detail["who"] == "relay"
        for entry in detail["entries"]
    }
    for one in message.recipients:
        if one.address in held:
            yield one.state
            if one.entry in anew:
                yield "released, and routed anew"


def never(reached: Counter[str]) -> list[str]:
    """What did not come to pass."""
    return [word for word in WANTED if not reached[word]]
