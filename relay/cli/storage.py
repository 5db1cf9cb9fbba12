"""`relay storage verify | backup | prune | recover`: what is on the disk.

On the path: prints what app.commands and the spool's recovery finds.
Holds: facts on stdout, how far it is on stderr where somebody sits there.
Fails: 65 where something remains that could not be repaired, for an unknown account, and where a
    directory cannot be used for a backup.
Standards: docs/names.md (Commands).
"""

import sys
from pathlib import Path

import click

from relay.app.commands.storage import UnknownAccountError, VerifyOptions
from relay.app.commands.storage import prune as pruned
from relay.app.commands.storage import verify as verified
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, group_options
from relay.cli.output import (
    backup_lines,
    finding_line,
    print_json,
    print_lines,
    recover_lines,
    verified_lines,
)
from relay.clock import SystemClock
from relay.settings import read_environment
from relay.settings.document import counted, shown
from relay.settings.values import parse_duration

_PROGRESS_EVERY = 100
_PAGES_TOLD = 10_000


@click.group()
@group_options
def storage(_given: CommandContext) -> None:
    """Look after what is on the disk."""


@storage.command()
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--full", is_flag=True, help="Read every octet, and every message's header.")
@click.option("--recount", is_flag=True, help="Cancel recipients without an entry; count anew.")
@common_options
def verify(context: CommandContext, *, accounts: tuple[str, ...], **wishes: bool) -> None:
    """Check mailboxes, notes and the spool, and mend them.

    Where accounts are named, only what is theirs. What follows from other files is repaired,
    indexes as well. No mail is deleted: what cannot be repaired is moved to corrupt/. The
    relay may run meanwhile; its spool is only read then. Exits 65 when something remains that
    somebody has to look at. --recount is for relay_queue_unaccounted, once you know why it was not
    0: it ends recipients whose entry was lost as cancelled, and counts anew.
    """
    if accounts and wishes["recount"]:
        raise click.UsageError("--recount: the spool is not one account's: name none")
    settings = context.settings()
    is_watched = _is_watched()

    def progress(number: int) -> None:
        if is_watched and number and number % _PROGRESS_EVERY == 0:
            click.echo(f"relay storage verify: {number} mailboxes so far", err=True)

    try:
        result = verified(
            settings,
            VerifyOptions(accounts, **wishes),
            environ=read_environment().variables,
            clock=SystemClock(),
            on_finding=(lambda _: None)
            if context.json
            else (lambda x: click.echo(finding_line(x))),
            on_mailbox=progress,
        )
    except UnknownAccountError as error:
        raise CommandError(ExitCode.DATA, f"relay storage verify: {error}") from None
    if context.json:
        print_json(result.document)
    else:
        for line in verified_lines(result.document):
            click.echo(line)
    if result.tally.remaining:
        raise CommandError(ExitCode.DATA)


@storage.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Only say how much would be copied.")
@common_options
def backup(context: CommandContext, directory: Path, *, dry_run: bool) -> None:
    """Copy the spool into DIRECTORY, also beside a running relay.

    The dead letters go with it. The copy is one moment of the spool, and can take its place.
    DIRECTORY is made, or empty; its SHA256SUMS are for sha256sum --check, and its manifest.json
    says that it is whole. Copy the notes (.submissions) before it, and the mailboxes after it.
    """
    from relay.app.commands.storage import (  # noqa: PLC0415 - is slow
        BackupRefusedError,
        back_up,
        extent,
    )

    settings = context.settings()

    def progress(done: int, pages: int) -> None:
        if _is_watched() and done != pages and done % _PAGES_TOLD == 0:
            click.echo(f"relay storage backup: {100 * done // pages} %", err=True)

    try:
        if dry_run:
            told = extent(settings)
        else:
            told = back_up(settings, directory, clock=SystemClock(), on_part=progress)
    except BackupRefusedError as error:
        raise CommandError(ExitCode.DATA, f"relay storage backup: {error}") from None
    if context.json:
        print_json(told)
    else:
        print_lines(backup_lines(told, str(directory), dry_run=dry_run))


@storage.command()
@click.option("--older-than", default="", metavar="DURATION", help="In place of spool.keep.")
@click.option("--dry-run", is_flag=True, help="Only say how much would be removed.")
@common_options
def prune(context: CommandContext, *, older_than: str, dry_run: bool) -> None:
    """Remove the history of finished messages now.

    Submission keys go when their own time is over. What is in the queue stays, and so do the
    mailboxes.
    """
    try:
        older_than_s = parse_duration(older_than) if older_than else None
    except ValueError as error:
        text = f"--older-than: found {shown(older_than)}, expected {error}"
        raise click.UsageError(text) from None
    told = pruned(context.settings(), SystemClock(), older_than_s=older_than_s, dry_run=dry_run)
    if context.json:
        print_json(told)
        return
    verb = "would remove" if dry_run else "removed"
    keys = counted(told["submissions"], "submission key")
    click.echo(f"{verb} {counted(told['messages'], 'message')}, {keys}")
    if kept := told["kept"]:
        why = "recipients in no final state, and no entry: see relay storage verify"
        click.echo(f"relay storage prune: kept {counted(kept, 'message')} with {why}", err=True)


@storage.command()
@common_options
def recover(context: CommandContext) -> None:
    """Bring what can be read of a damaged spool into a new one.

    The damaged one is put aside with all that belongs to it; nothing is deleted. Without damage
    nothing is done. No relay may run. Exits 65 when something could not be read.
    """
    from relay.app.commands.storage import NothingToRecoverError  # noqa: PLC0415 - is slow
    from relay.app.commands.storage import recover as recovered  # noqa: PLC0415 - the same

    try:
        told = recovered(context.settings(), SystemClock())
    except NothingToRecoverError as error:
        raise CommandError(ExitCode.DATA, f"relay storage recover: {error}") from None
    if context.json:
        print_json(told)
    else:
        print_lines(recover_lines(told))
    if not told["whole"]:
        raise CommandError(ExitCode.DATA)


def _is_watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
