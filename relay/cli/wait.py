"""`relay wait`: until a message is there, or why it is not.

On the path: asks the daemon, which wakes on changes.
Holds: facts on stdout, everything else on stderr.
Fails: 75 with a diagnosis when the time is up, 69 without a daemon.
Standards: docs/names.md (Commands).
"""

import math

import click

from relay.app.commands.reading import Reading
from relay.cli.context import Given, Key, common_options
from relay.cli.diagnosis import diagnosis
from relay.cli.exits import Ended, Exit
from relay.cli.output import flush, print_json, print_lines
from relay.cli.show import journey_lines
from relay.clock import SystemClock
from relay.journeys.journey import is_final
from relay.message.lifecycle import State
from relay.settings.document import shown

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
def wait(given: Given, key: str, *, state: str, timeout_s: float) -> None:
    """Wait until a message is where it should be, then show its journey.

    A message that is not known yet is waited for as well. Exits 75 when the time is up, or the
    message has ended otherwise, and says at which step it stands and why.
    """
    if not math.isfinite(timeout_s):
        raise click.UsageError("--timeout: expected a number of seconds")
    reading = Reading(given.settings(), SystemClock())
    found = reading.wait(key, state=state, timeout_s=timeout_s)
    if found is None:
        text = f"relay wait: no message became known as {shown(key)} within {timeout_s:g} s"
        raise Ended(Exit.TRY_LATER, text)
    reached = found.pop("reached")
    if given.json:
        print_json(found)
    else:
        print_lines(journey_lines(found))
    if not reached:
        flush()  # the journey first
        entries = reading.entries_of(found["id"]) if found["id"] else []
        so_far = "for good" if is_final(found) else f"after {timeout_s:g} s"
        text = f"relay wait: {found['state']} {so_far}, expected {state}"
        raise Ended(Exit.TRY_LATER, "\n  ".join([text, *diagnosis(found, entries)]))
