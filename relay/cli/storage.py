"""The commands `relay storage verify | backup | prune | recover | adopt`.

Results are printed on stdout, progress on stderr if that is a terminal. The exit status is 65 if a
fault remains that could not be repaired, for an unknown account, and if a directory cannot be used
for a backup. See docs/names.md (Commands).
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, older_than_s
from relay.cli.output import (
    print_json,
    print_lines,
    print_progress,
)
from relay.commands.operator_client import OperatorClient
from relay.commands.storage import (
    BackupRefusedError,
    NothingToRecoverError,
    UnknownAccountError,
    VerifyOptions,
    back_up,
    extent,
)
from relay.commands.storage import recover as recovered
from relay.commands.storage import verify as verified
from relay.journeys.wording import named
from relay.settings.environment import read_environment

_PROGRESS_MAILBOXES = 100
_PROGRESS_PAGES = 10_000


@click.group()
@common_options
def storage(_given: CommandContext) -> None:
    """Verify, back up, prune and recover the files of the relay; adopt another mail root."""


@storage.command()
@click.argument("accounts", nargs=-1, metavar="[ACCOUNT]...")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--full", is_flag=True, help="Read every octet.")
@click.option("--recount", is_flag=True, help="Cancel recipients without an entry; count again.")
@common_options
def verify(context: CommandContext, *, accounts: tuple[str, ...], **flags: bool) -> None:
    """Check and repair mailboxes, submissions and the spool.

    With ACCOUNTs, only their mailboxes and submissions are checked. Whatever can be derived from
    other files is repaired; an index that does not match them is removed, and built when it is
    needed. No mail is deleted: files that cannot be repaired are moved to corrupt/. The relay may
    run meanwhile; its spool is only read then. Exits 65 when a fault remains that the operator has
    to examine. --recount is for relay_queue_unaccounted, once you know why it was not 0: it ends
    recipients whose entry was lost as cancelled, and counts again.
    """
    if accounts and flags["recount"]:
        raise click.UsageError("--recount: the spool belongs to all accounts: expected no ACCOUNT")
    settings = context.settings()

    def progress(number: int) -> None:
        if number and number % _PROGRESS_MAILBOXES == 0:
            print_progress(f"relay storage verify: {number} mailboxes so far")

    try:
        result = verified(
            settings,
            VerifyOptions(accounts, **flags),
            environ=read_environment().variables,
            clock=SystemClock(),
            on_finding=(lambda _: None)
            if context.json
            else (lambda one: print_lines([_finding_line(one)])),
            on_mailbox=progress,
        )
    except UnknownAccountError as error:
        raise CommandError(ExitCode.DATA, f"relay storage verify: {error}") from None
    context.show(result.document, lambda: _verified_lines(result.document))
    if result.counts.remaining:
        raise CommandError(ExitCode.DATA)


@storage.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Only show how much would be copied.")
@common_options
def backup(context: CommandContext, directory: Path, *, dry_run: bool) -> None:
    """Copy the spool and the dead letters into DIRECTORY.

    The relay may run meanwhile. The copy is a consistent snapshot of the spool, and can replace it.
    DIRECTORY is created, or must be empty. Its SHA256SUMS are for sha256sum --check; its
    manifest.json is written last, when the copy is complete. Copy the pending submissions
    (.submissions) before it, and the mailboxes after it.
    """
    settings = context.settings()

    def progress(done: int, pages: int) -> None:
        if done != pages and done % _PROGRESS_PAGES == 0:
            print_progress(f"relay storage backup: {100 * done // pages} %")

    try:
        if dry_run:
            result = extent(settings)
        else:
            result = back_up(settings, directory, clock=SystemClock(), on_part=progress)
    except BackupRefusedError as error:
        raise CommandError(ExitCode.DATA, f"relay storage backup: {error}") from None
    context.show(result, lambda: _backup_lines(result, str(directory), dry_run=dry_run))


@storage.command()
@click.option("--older-than", default="", metavar="DURATION", help="Instead of spool.keep.")
@click.option("--dry-run", is_flag=True, help="Only show how much would be removed.")
@common_options
def prune(context: CommandContext, *, older_than: str, dry_run: bool) -> None:
    """Remove the history of finished messages now.

    Records of what was refused and expired submission keys are removed as well. The queue and the
    mailboxes do not change.
    """
    age_s = older_than_s(older_than)
    client = OperatorClient(context.settings(), SystemClock())
    result = client.prune(older_than_s=age_s, dry_run=dry_run)
    if context.json:
        print_json(result)
        return
    verb = "would remove" if dry_run else "removed"
    keys = counted(result["submissions"], "submission key")
    refused = counted(result["refused"], "refusal")
    click.echo(f"{verb} {counted(result['messages'], 'message')}, {keys}, {refused}")
    if kept := result["kept"]:
        why = "recipients in no final state, and no entry: see relay storage verify"
        click.echo(f"relay storage prune: kept {counted(kept, 'message')} with {why}", err=True)


@storage.command()
@common_options
def recover(context: CommandContext) -> None:
    """Copy the readable rows of a damaged spool into a new one.

    The damaged spool and its files are renamed and kept; nothing is deleted. Without damage nothing
    is done. No relay may run. Exits 65 when a part could not be read.
    """
    try:
        result = recovered(context.settings(), SystemClock())
    except NothingToRecoverError as error:
        raise CommandError(ExitCode.DATA, f"relay storage recover: {error}") from None
    context.show(result, lambda: recover_lines(result))
    if not result["whole"]:
        raise CommandError(ExitCode.DATA)


@storage.command()
@click.argument("root_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def adopt(context: CommandContext, root_id: str, *, yes: bool) -> None:
    """Accept the mail root that has this ID.

    A start exits with 78 if the directory of mailboxes.root is missing, or is not the one that mail
    was delivered to; it prints the ID. "new" accepts a directory without one. No relay may run.
    Exits 65 if the directory has another ID, and if you do not confirm.
    """
    from relay.commands.adopt import FoundRoot, NotAdoptedError  # noqa: PLC0415 - is slow
    from relay.commands.adopt import adopt as adopted  # noqa: PLC0415 - the same

    def confirm(found: FoundRoot) -> bool:
        click.echo(f"mail root  {found.path}", err=True)
        click.echo(f"its id     {found.id or 'none: it gets a new one'}", err=True)
        click.echo(f"known id   {found.known_id or 'none'}", err=True)
        return yes or click.confirm("Deliver local mail there from now on?", err=True)

    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("expected --yes, or a terminal to ask on")
    try:
        result = adopted(context.settings(), SystemClock(), root_id, confirm=confirm)
    except NotAdoptedError as error:
        raise CommandError(ExitCode.DATA, f"relay storage adopt: {error}") from None
    context.show(
        {"path": result.path, "id": result.id, "before": result.known_id},
        lambda: [f"adopted {result.path} with the id {result.id}"],
    )


def _finding_line(one: Mapping[str, Any]) -> str:
    """Return a finding of `relay storage verify`, and the action taken."""
    state = "repaired" if one["repaired"] else "REMAINS"
    action = f"; {one['action']}" if one["action"] else ""
    result = f"found {one['found']}, expected {one['expected']}{action}"
    return f"{state:<9} {one['kind']:<17} {one['where']}: {result}"


def _verified_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the counts of `relay storage verify`."""
    submissions = document["submissions"]
    checked = (
        counted(document["mailboxes"], "mailbox"),
        counted(document["messages"], "message"),
        counted(document["indexes"], "index"),
    )
    waiting = (
        f"{counted(submissions['ready'], 'submission')} ready, {submissions['scheduled']} scheduled"
    )
    lines = [f"{', '.join(checked)}; {waiting}"]
    for name, result in (
        ("without_draft", "the draft was removed, the submission is sent without it"),
        ("accepted", "accepted already, the next start removes the submission"),
        ("corrupt", "in corrupt/, to be examined"),
    ):
        if found := submissions[name]:
            lines.append(f"{result}: {named(found)}")
    if spool := document["spool"]:
        queue = f"{counted(spool['entries'], 'entry')} in the queue"
        contents = counted(spool["contents"], "content")
        lines.append(f"{counted(spool['messages'], 'message')} in the spool, {queue}, {contents}")
    repaired = counted(document["repaired"], "fault")
    lines.append(f"{repaired} repaired, {document['remaining']} remaining")
    return lines


def _backup_lines(result: Mapping[str, Any], directory: str, *, dry_run: bool) -> list[str]:
    """Return what `relay storage backup` has copied, or would copy."""
    database, contents = result["database"], result["contents"]
    size_mib = (database["bytes"] + contents["bytes"]) / 2**20
    files = counted(contents["files"], "content file")
    letters = counted(result["dead_letters"], "dead letter")
    lines = [f"{size_mib:.1f} MiB: the spool, {files}, {letters}"]
    if not dry_run:
        entries = counted(sum(result["entries"].values()), "entry")
        lines.append(f"in the queue: {entries}, {counted(result['recipients'], 'recipient')}")
        lines += [f"missing: {name}" for name in contents["missing"]]
        lines.append(f"copied to {directory}")
    return lines


def recover_lines(result: Mapping[str, Any]) -> list[str]:
    """Return what `relay storage recover` has copied and lost."""
    if not result["faults"]:
        return ["the spool is not damaged: nothing was done"]
    lines = [f"found: {fault}" for fault in result["faults"]]
    recovered = ", ".join(f"{n} {table}" for table, n in result["rows"].items())
    lines.append(f"recovered: {recovered or 'nothing'}")
    lines += [f"lost: {_hole(hole)}" for hole in result["holes"]]
    if result["log_damaged"]:
        lines.append(
            "the log is damaged: its readable part is recovered, the last changes may be lost"
        )
    if result["recipients_lost"] is None:
        lines.append("the number of lost recipients is unknown")
    elif result["recipients_lost"]:
        lines.append(f"lost from the queue: {counted(result['recipients_lost'], 'recipient')}")
    if result["without_content"]:
        lines.append(f"without their content: {counted(result['without_content'], 'entry')}")
    if result["without_recipients"]:
        held = counted(result["without_recipients"], "entry")
        lines.append(f"without their recipients, now held: {held}")
    lines.append(f"in the queue: {counted(result['entries_waiting'], 'entry')}")
    lines.append(f"the damaged spool is kept as {result['aside']}")
    return lines


def _hole(hole: Mapping[str, Any]) -> str:
    """Return the rows of a table between which rows are unreadable; without both ends, all."""
    ends = [
        f"{name} {' '.join(map(str, hole[name]))}"
        for name in ("after", "before")
        if hole[name] is not None
    ]
    return f"rows of {hole['table']}" + (f" {', '.join(ends)}" if ends else ": none could be read")
