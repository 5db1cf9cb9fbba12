"""`relay trace`: the journey of a message.

On the path: prints what app.commands.reading finds. Holds: facts on stdout, everything else on
stderr. Fails: 65 for an unknown message. Standards: docs/names.md (Commands).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import click

from relay.app.commands.control import OperatorClient
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, Key, common_options, unknown_message
from relay.cli.output import flush, journey_lines, print_json, print_lines, printable
from relay.clock import SystemClock
from relay.journeys.journey import is_final
from relay.message.lifecycle import FINAL, State
from relay.settings.document import counted, shown


@click.command()
@click.argument("key", type=Key(), metavar="ID|ADDRESS|last")
@common_options
def trace(context: CommandContext, key: str) -> None:
    """Show the journey of a message through the seven steps.

    ID is a Graph id, a submission id, a queue id or a Message-ID; an ADDRESS is that of the sender
    or of a recipient, and means the newest message.
    """
    reading = OperatorClient(context.settings(), SystemClock())
    found = reading.journey(key)
    if found is None:
        raise unknown_message("trace", key, without_daemon=reading.without_daemon)
    if context.json:
        print_json(found)
    else:
        print_lines(journey_lines(found))


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


_STATES = ["final", *(str(state) for state in State)]


@click.command()
@click.argument("key", type=Key(), metavar="ID")
@click.option(
    "--state",
    default="final",
    show_default=True,
    type=click.Choice(_STATES),
    metavar="STATE",
    help="The state to wait for: final (no recipient is under way any more), or that of the "
    "message as a whole.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
@common_options
def wait(context: CommandContext, key: str, *, state: str, timeout_s: float) -> None:
    """Wait until a message is where it should be, then show its journey.

    A message that is not known yet is waited for as well. Exits 75 when the time is up, or the
    message has ended otherwise, and says at which step it stands and why.
    """
    if not math.isfinite(timeout_s):
        raise click.UsageError("--timeout: expected a number of seconds")
    reading = OperatorClient(context.settings(), SystemClock())
    found = reading.wait(key, state=state, timeout_s=timeout_s)
    if found is None:
        text = f"relay wait: no message became known as {shown(key)} within {timeout_s:g} s"
        raise CommandError(ExitCode.TRY_LATER, text)
    reached = found.pop("reached")
    if context.json:
        print_json(found)
    else:
        print_lines(journey_lines(found))
    if not reached:
        flush()  # the journey first
        entries = reading.entries_of(found["id"]) if found["id"] else []
        so_far = "for good" if is_final(found) else f"after {timeout_s:g} s"
        text = f"relay wait: {found['state']} {so_far}, expected {state}"
        raise CommandError(ExitCode.TRY_LATER, "\n  ".join([text, *diagnosis(found, entries)]))
