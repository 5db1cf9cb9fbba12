"""`relay pause` and `relay resume`: what this node does not do until an operator or a time ends it.

Without a running relay they are for its next start.
"""

from http import HTTPStatus
from typing import Any

import click
import msgspec

from relay.app.state_dir import AlreadyRunningError
from relay.base.clock import SystemClock
from relay.base.pauses import Paused
from relay.cli.options import CommandContext, common_options, once, user_name
from relay.cli.queue import pause_lines, with_option
from relay.client import (
    ControlClient,
    ControlError,
    ControlForbiddenError,
    ControlUnavailableError,
)
from relay.settings.tree import Settings


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
    _change(context, "resume", {"what": what, "until": None})


def _change(context: CommandContext, verb: str, order: dict[str, str | None]) -> None:
    try:
        found = _asked(context.settings(), verb, order | {"who": user_name()})
    except ControlError as error:
        if error.status == HTTPStatus.BAD_REQUEST:
            raise click.UsageError(with_option(str(error))) from None
        raise
    context.show(found, lambda: pause_lines(found) or ["nothing is paused"])


def _asked(settings: Settings, verb: str, order: dict[str, Any]) -> dict[str, Any]:
    """Return what is paused after the order, from the relay or from its file."""
    given = {name: one for name, one in order.items() if one is not None}
    try:
        return ControlClient(settings.control_socket).post(f"/{verb}", given)
    except ControlForbiddenError:
        raise
    except ControlUnavailableError as error:
        silent = str(error)
    from relay.commands.offline import change_pauses  # noqa: PLC0415 - slow

    try:
        left = change_pauses(settings, SystemClock(), **order)
    except AlreadyRunningError as running:
        raise ControlUnavailableError(f"{silent}, but {running}") from None
    return {what: msgspec.to_builtins(left.get(what)) for what in Paused}
