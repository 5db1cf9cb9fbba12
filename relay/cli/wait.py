"""`relay wait`: until a message is there, or why it is not.

On the path: asks the daemon, which wakes on changes.
Holds: facts on stdout, everything else on stderr.
Fails: 75 with a diagnosis when the time is up, 69 without a daemon.
Standards: CONTRACT, "Commands".
"""

import click

from relay.cli.context import Given, common_options, print_json
from relay.cli.exits import Ended, Exit
from relay.cli.show import journey_lines


@click.command()
@click.argument("key", metavar="ID")
@click.option("--state", default="final", show_default=True, help="The state to wait for.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(0), default=30.0, show_default=True,
              metavar="SECONDS")  # fmt: skip
@common_options
def wait(given: Given, key: str, *, state: str, timeout_s: float) -> None:
    """Wait until every recipient of a message is in a final state, or the message in --state.

    Exits 75 with a diagnosis when the time is up.
    """
    found = given.reading().wait(key, state=state, timeout_s=timeout_s)
    if found is None:
        text = f"relay wait: no message became known as {key!r} within {timeout_s:g} s"
        raise Ended(Exit.TRY_LATER, text)
    reached = found.pop("reached")
    if given.json:
        print_json(found)
    else:
        for line in journey_lines(found):
            click.echo(line)
    if not reached:
        text = f"relay wait: still {found['state']} after {timeout_s:g} s, expected {state}"
        raise Ended(Exit.TRY_LATER, text)
