"""`relay reset`: delete everything that the development relay has stored.

Exits 64 for a service, which it never empties, and 69 without a relay.
"""

import click

from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options
from relay.commands.operator_client import OperatorClient


@click.command()
@common_options
def reset(context: CommandContext) -> None:
    """Delete everything that the development relay has stored.

    Queue, mailboxes, drafts, scheduled sends, histories and the accounts that were made. It does
    not ask. The relay goes on. A service is never emptied.
    """
    deleted = OperatorClient(context.settings(), SystemClock()).reset()
    if deleted is None:
        text = "relay reset: this relay is a service; only `relay dev` can be emptied"
        raise CommandError(ExitCode.USAGE, text)
    context.show(deleted, lambda: [f"deleted {counted(deleted['messages'], 'message')}"])
