"""The verbs clock and reset, which only the development relay obeys.

`relay clock` exits 69 for a service, whose clock cannot be advanced, and 75 if the clock was not
advanced as far as requested. `relay reset` exits 64 for a service, which it never empties. Both
exit 69 if no relay runs.
"""

import click

from relay.base.phrases import counted, shown
from relay.base.running_relay import ControlClient, ControlError
from relay.base.settings.values import parse_duration
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options
from relay.operation.cli.relay_client import clock_ahead

_SHORT_S_MAX = 30.0
_LONG_S_MAX = 3600.0  # for an advance of the clock, and for a reset
_NOT_FOUND, _NOT_ALLOWED = 404, 405


@click.group()
@common_options
def clock(_given: CommandContext) -> None:
    """Show and advance the clock of the development relay."""


@clock.command()
@common_options
def show(context: CommandContext) -> None:
    """Show the time of the relay, and how far it is ahead."""
    _show_clock(context, 0.0)


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
    _show_clock(context, seconds)


def _show_clock(context: CommandContext, advance_s: float) -> None:
    path = "/dev/clock"
    client = _client(context, _LONG_S_MAX if advance_s else _SHORT_S_MAX)
    try:
        clock = client.post(path, {"advance_s": advance_s}) if advance_s else client.get(path)
    except ControlError as error:
        if error.status == _NOT_FOUND:
            text = "relay clock: the relay is a service; only the clock of `relay dev` advances"
            raise CommandError(ExitCode.UNAVAILABLE, text) from None
        raise
    line = f"{clock['now']}  advanced by {clock['advanced_s']:.15g} seconds"
    # `relay clock show`, `advance`: `{now, advanced_s}`; 69: no `relay dev` runs
    context.show(clock, lambda: [line])


@click.command()
@common_options
def reset(context: CommandContext) -> None:
    """Delete everything that the development relay has stored.

    Queue, mailboxes, drafts, scheduled sends, histories and the accounts that were made. It does
    not ask. The relay goes on. A service is never emptied.
    """
    try:
        client = _client(context, _LONG_S_MAX)
        deleted, ahead = client.delete("/messages"), clock_ahead(client)
    except ControlError as error:
        if error.status in (_NOT_FOUND, _NOT_ALLOWED):
            text = "relay reset: this relay is a service; only `relay dev` can be emptied"
            raise CommandError(ExitCode.USAGE, text) from None
        raise
    # `relay reset`: `{messages}`; 64 for a service, which is never emptied
    context.show(deleted, lambda: [f"deleted {counted(deleted['messages'], 'message')}{ahead}"])


def _client(context: CommandContext, timeout_s: float) -> ControlClient:
    return ControlClient(context.settings().control_socket, timeout_s=timeout_s)
