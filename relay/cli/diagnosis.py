"""Why a message is not there yet (pure).

On the path: `relay wait` tells it when the time is up.
Holds: it names the step at which the message stands, and for whom it waits and why.
Fails: never.
Standards: the steps of Graph's send-mail process.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from relay.cli.show import printable
from relay.message.lifecycle import FINAL
from relay.settings.document import counted

_WAITS_FOR = {
    1: "the draft is made, nobody was told to send it",
    2: "pickup has not converted it yet",
    3: "it is converted, but transport has not accepted it; pickup tries again",
    4: "accepted, not routed yet",
    5: "routed, delivery has not tried it yet",
    6: "delivery has tried it",
    7: "a report was sent",
}
_REASONS = {
    "queued": "is about to be tried",
    "deferred": "is tried again",
    "held": "is held until an operator acts",
    "captured": "is captured here by a route and is never sent",
}
_PEOPLE_MAX = 10


def diagnosis(found: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a message stands and what it waits for; `entries` are its own in the queue."""
    last = max(found["steps"], key=lambda step: int(step["step"]), default=None)
    lines = []
    if last is not None:
        lines.append(
            f"it stands at step {last['step']} ({last['name']}): {_WAITS_FOR[last['step']]}"
        )
    waiting = [one for one in found["recipients"] if one["state"] not in FINAL]
    due = {one["address"]: entry["due"] for entry in entries for one in entry["recipients"]}
    shown = waiting[:_PEOPLE_MAX]
    lines += [printable(_reason(one, due.get(one["address"]))) for one in shown]
    if len(waiting) > _PEOPLE_MAX:
        lines.append(f"and {counted(len(waiting) - _PEOPLE_MAX, 'more recipient')}")
    return lines


def _reason(recipient: Mapping[str, Any], due: str | None) -> str:
    state = str(recipient["state"])
    text = f"{recipient['address']} {_REASONS.get(state, f'is {state}')}"
    if state == "deferred" and due:
        text += f" at {due[11:19]}Z"
    if attempts := recipient["attempts"]:
        tries = "1 attempt" if len(attempts) == 1 else f"{len(attempts)} attempts"
        host = attempts[-1]["host"]
        text += f", {tries} so far" + (f", the last by {host}" if host else "")
    return f"{text}: {recipient['reply']}" if recipient["reply"] else text
