"""The commands `relay storage verify | backup | prune | adopt`.

The exit status is 65 if there is a fault, and if a directory cannot be used for a backup. See
docs/names.md (Commands).
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import click

from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext, common_options, older_than_s
from relay.operation.cli.output import print_json, print_lines
from relay.operation.cli.relay_client import operator_client
from relay.operation.commands.storage import BackupRefusedError, FoundRoot, NotAdoptedError, back_up
from relay.operation.commands.storage import adopt as adopted
from relay.operation.commands.storage import verify as verified
from relay.store.spool.engine import SpoolFinding


@click.group()
@common_options
def storage(_given: CommandContext) -> None:
    """Verify, back up and prune the spool; adopt another mail root."""


@storage.command()
@click.option("--full", is_flag=True, help="Read every octet.")
@click.option("--recount", is_flag=True, help="Count again.")
@click.option("--log", type=click.File("rb"), help="Compare with the nodes' logs; - is stdin.")
@common_options
def verify(context: CommandContext, *, full: bool, recount: bool, log: BinaryIO | None) -> None:
    """Check the spool: its pages, references, contents and counters.

    Nothing is repaired. Prints a line for each fault, and exits 65 if there is one. The relay may
    run meanwhile. --recount is for relay_queue_unaccounted, once you know why it was not 0, and
    while no relay runs.
    """

    def on_finding(finding: SpoolFinding) -> None:
        if not context.json:
            print_lines([_finding_line(finding)])

    result = verified(
        context.settings(),
        full=full,
        recount=recount,
        log=log,
        clock=SystemClock(),
        on_finding=on_finding,
    )
    # `relay storage verify`: `{submissions: {ready, scheduled}, spool: {messages, entries,
    # contents, submissions, unaccounted} or null, remaining, findings: [{kind, where, found,
    # expected, repaired, action}]}`; 65: `remaining` is not 0
    context.show(result, lambda: _verified_lines(result))
    if result["remaining"]:
        raise CommandError(ExitCode.DATA)


@storage.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@common_options
def backup(context: CommandContext, directory: Path) -> None:
    """Copy the spool and the dead letters into DIRECTORY.

    The relay may run meanwhile. The copy is a consistent snapshot of the spool, and can replace it.
    DIRECTORY is created, or must be empty. Its SHA256SUMS are for sha256sum --check; its
    manifest.json is written last, when the copy is complete. Copy the pending submissions
    (.submissions) before it, and the mailboxes after it.
    """
    try:
        result = back_up(context.settings(), directory, clock=SystemClock())
    except BackupRefusedError as error:
        raise CommandError(ExitCode.DATA, f"relay storage backup: {error}") from None
    # `relay storage backup`: `{made, hostname, database: {file, bytes}, contents: {files, bytes,
    # missing}, dead_letters, schema, messages, entries, recipients, submissions}`
    context.show(result, lambda: _backup_lines(result, str(directory)))


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
    client = operator_client(context)
    result = client.prune(older_than_s=age_s, dry_run=dry_run)
    # `relay storage prune`: `{messages, submissions, refused, dry_run}`
    if context.json:
        print_json(result)
        return
    verb = "would remove" if dry_run else "removed"
    keys = counted(result["submissions"], "submission key")
    refused = counted(result["refused"], "refusal")
    click.echo(f"{verb} {counted(result['messages'], 'message')}, {keys}, {refused}")


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

    def confirm(root: FoundRoot) -> bool:
        click.echo(f"mail root  {root.path}", err=True)
        click.echo(f"its id     {root.id or 'none: it gets a new one'}", err=True)
        click.echo(f"known id   {root.known_id or 'none'}", err=True)
        return yes or click.confirm("Deliver local mail there from now on?", err=True)

    if not yes and (sys.stdin is None or not sys.stdin.isatty()):
        raise click.UsageError("expected --yes, or a terminal to ask on")
    try:
        result = adopted(context.settings(), SystemClock(), root_id, confirm=confirm)
    except NotAdoptedError as error:
        raise CommandError(ExitCode.DATA, f"relay storage adopt: {error}") from None
    # `relay storage adopt ID`: `{path, id, before}`
    context.show(
        {"path": result.path, "id": result.id, "before": result.known_id},
        lambda: [f"adopted {result.path} with the id {result.id}"],
    )


def _finding_line(finding: SpoolFinding) -> str:
    """Return a finding of `relay storage verify`, and the action that was or can be taken."""
    action = f"; {finding.action}" if finding.action else ""
    fault = f"found {finding.found}, expected {finding.expected}"
    return f"{finding.kind:<17} {finding.where}: {fault}{action}"


def _verified_lines(document: Mapping[str, Any]) -> list[str]:
    """Return the counts of `relay storage verify`."""
    submissions = document["submissions"]
    ready = counted(submissions["ready"], "submission")
    lines = [f"{ready} ready, {submissions['scheduled']} scheduled"]
    if spool := document["spool"]:
        queue = f"{counted(spool['entries'], 'entry')} in the queue"
        contents = counted(spool["contents"], "content")
        lines.append(f"{counted(spool['messages'], 'message')} in the spool, {queue}, {contents}")
    lines.append(counted(document["remaining"], "fault"))
    return lines


def _backup_lines(result: Mapping[str, Any], directory: str) -> list[str]:
    """Return what `relay storage backup` has copied."""
    database, contents = result["database"], result["contents"]
    size_mib = (database["bytes"] + contents["bytes"]) / 2**20
    files = counted(contents["files"], "content file")
    letters = counted(result["dead_letters"], "dead letter")
    entries = counted(sum(result["entries"].values()), "entry")
    return [
        f"{size_mib:.1f} MiB: the spool, {files}, {letters}",
        f"in the queue: {entries}, {counted(result['recipients'], 'recipient')}",
        *(f"missing: {name}" for name in contents["missing"]),
        f"copied to {directory}",
    ]
