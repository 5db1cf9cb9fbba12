"""`relay clock show` and `relay clock advance`: the time of the running development relay.

They exit 69 if no relay runs, or if it is a service, whose clock cannot be advanced; 75 if the
clock was not advanced as far as requested.
"""

from typing import Any

import click

from relay.base.clock import SystemClock
from relay.base.phrases import shown
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options
from relay.client import ControlError
from relay.commands.operator_client import OperatorClient
from relay.settings.values import parse_duration

_NOT_FOUND = 404


@click.group()
@common_options
def clock(_given: CommandContext) -> None:
    """Show and advance the clock of the development relay."""


@clock.command()
@common_options
def show(context: CommandContext) -> None:
    """Show the time of the relay, and how far it is ahead."""
    _show(context, 0.0)


@clock.command()
@click.argument("duration")
@common_options
def advance(context: CommandContext, duration: str) -> None:
    """Advance the clock by DURATION, such as 90s, 30m, 4h or 2d.

    The relay does everything that is due on the way, each at its time, and the command ends when it
    is done. The clock never goes back; all advances together are at most 400 days.
    """
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise click.UsageError(f"DURATION: found {shown(duration)}, expected {error}") from None
    if not seconds:
        raise click.UsageError(f"DURATION: found {shown(duration)}, expected more than 0")
    _show(context, seconds)


def _show(context: CommandContext, advance_s: float) -> None:
    client = OperatorClient(context.settings(), SystemClock())
    try:
        found = client.advance_clock(advance_s) if advance_s else client.clock_state()
    except ControlError as error:
        if error.status == _NOT_FOUND:
            text = "relay clock: the relay is a service; only the clock of `relay dev` advances"
            raise CommandError(ExitCode.UNAVAILABLE, text) from None
        raise
    context.show(found, lambda: [_line(found)])


def _line(found: dict[str, Any]) -> str:
    return f"{found['now']}  advanced by {found['advanced_s']:.15g} seconds"
