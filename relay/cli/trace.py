"""`relay trace`: the journey of a message.

On the path: prints what app.commands.reading finds.
Holds: facts on stdout, everything else on stderr.
Fails: 65 for an unknown message.
Standards: docs/names.md (Commands).
"""

import click

from relay.app.commands.reading import Reading
from relay.cli.context import Given, Key, common_options, unknown_message
from relay.cli.output import print_json, print_lines
from relay.cli.show import journey_lines
from relay.clock import SystemClock


@click.command()
@click.argument("key", type=Key(), metavar="ID|ADDRESS|last")
@common_options
def trace(given: Given, key: str) -> None:
    """Show the journey of a message through the seven steps.

    ID is a Graph id, a submission id, a queue id or a Message-ID; an ADDRESS is that of the sender
    or of a recipient, and means the newest message.
    """
    reading = Reading(given.settings(), SystemClock())
    found = reading.journey(key)
    if found is None:
        raise unknown_message("trace", key, without_daemon=reading.without_daemon)
    if given.json:
        print_json(found)
    else:
        print_lines(journey_lines(found))
