"""`relay storage verify`: the store's files.

On the path: prints what app.storage finds.
Holds: facts on stdout, how far it is on stderr where somebody sits there.
Fails: 65 where something remains that could not be mended, and for an unknown account.
Standards: docs/names.md (Commands).
"""

import sys

import click

from relay.app.storage import UnknownAccountError, Wishes
from relay.app.storage import verify as verified
from relay.cli.context import Given, common_options, group_options
from relay.cli.exits import Ended, Exit
from relay.cli.output import print_json
from relay.cli.show import finding_line, verified_lines
from relay.clock import SystemClock
from relay.settings import read_environment

_PROGRESS_EVERY = 100


@click.group()
@group_options
def storage(_given: Given) -> None:
    """Look after mailboxes and notes."""


@storage.command()
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--full", is_flag=True, help="Read every octet, and every message's header.")
@common_options
def verify(given: Given, *, accounts: tuple[str, ...], dry_run: bool, full: bool) -> None:
    """Check mailboxes and notes, and mend them.

    What follows from other files is mended, indexes as well. No mail is deleted: what nothing can
    be done with is put aside, and where is said. The relay may run meanwhile. Exits 65 when
    something remains that somebody has to look at.
    """
    settings = given.settings()
    is_watched = sys.stderr is not None and sys.stderr.isatty()

    def progress(number: int) -> None:
        if is_watched and number and number % _PROGRESS_EVERY == 0:
            click.echo(f"relay storage verify: {number} mailboxes so far", err=True)

    try:
        result = verified(
            settings,
            Wishes(accounts, dry_run=dry_run, full=full),
            environ=read_environment().variables,
            clock=SystemClock(),
            on_finding=(lambda _: None) if given.json else (lambda x: click.echo(finding_line(x))),
            on_mailbox=progress,
        )
    except UnknownAccountError as error:
        raise Ended(Exit.DATA, f"relay storage verify: {error}") from None
    if given.json:
        print_json(result.document)
    else:
        for line in verified_lines(result.document):
            click.echo(line)
    if result.tally.remaining:
        raise Ended(Exit.DATA)
