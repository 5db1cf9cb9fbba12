"""`relay pause` and `relay resume`: what this node does not do until an operator or a time ends it.

They exit 69 if no relay runs.
"""

from http import HTTPStatus
from typing import Any

import click

from relay.base.pauses import Paused
from relay.cli.options import CommandContext, common_options, once, user_name
from relay.cli.queue import pause_lines, with_option
from relay.client import ControlClient, ControlError


@click.command()
@click.argument("what", type=click.Choice([one.value for one in Paused]))
@once("--until", metavar="TIME|DURATION", help="When it ends automatically.")
@common_options
def pause(context: CommandContext, *, what: str, until: str) -> None:
    """Stop "delivery" or "accept" on this node, over restarts.

    Without delivery, mail is accepted and waits in the queue, local mail too; it still expires.
    Without accept, SMTP clients get 421 and the Graph API sends nothing (503); what was accepted is
    delivered. An example of a TIME is 2027-01-31T09:00:00Z.
    """
    _change(context, "pause", {"what": what, "until": until})


@click.command()
@click.argument("what", type=click.Choice([one.value for one in Paused]), required=False)
@common_options
def resume(context: CommandContext, *, what: str | None) -> None:
    """End what `relay pause` has stopped: delivery, accept, or without WHAT both."""
    _change(context, "resume", {"what": what})


def _change(context: CommandContext, verb: str, body: dict[str, Any]) -> None:
    client = ControlClient(context.settings().control_socket)
    try:
        found = client.post(f"/{verb}", body | {"who": user_name()})
    except ControlError as error:
        if error.status == HTTPStatus.BAD_REQUEST:
            raise click.UsageError(with_option(str(error))) from None
        raise
    context.show(found, lambda: pause_lines(found) or ["nothing is paused"])
