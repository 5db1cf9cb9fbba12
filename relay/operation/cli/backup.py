"""`relay backup` and `relay restore`: everything of a service, in one directory; `relay check`.

Progress is printed to stderr if it is a terminal. Backup and restore exit 64 for a directory that
is not empty. They exit 65 for a backup that was cut short or changed, for a complete backup with a
damaged file, and if mail was not restored. Check prints passed checks to stdout, and faults and
warnings to stderr as `file:line: key: text`. With --json everything is one document on stdout. It
exits 78 for faults, 69 if a needed service does not answer. The checks are in
relay/operation/commands/check.py.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from relay.base.clock import SystemClock
from relay.base.phrases import counted
from relay.base.running_relay import ControlClient, ControlUnavailableError
from relay.base.settings.document import SettingsError, parse_document
from relay.base.settings.environment import read_environment
from relay.base.settings.reader import load
from relay.base.settings.tree import NodeRole, Settings
from relay.operation.app.state_dir import become_process
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.options import CommandContext, common_options, role_option, user_name
from relay.operation.cli.output import print_json, print_progress, printable
from relay.operation.cli.relay_client import valid_settings
from relay.operation.commands.backup import NotEmptyError, back_up
from relay.operation.commands.check import check_file
from relay.operation.commands.check_network import CheckFinding, CheckResult
from relay.operation.commands.restore import DamagedBackupError, UnknownOwnerError, document
from relay.operation.commands.restore import restore as restored_from
from relay.store.journeys.wording import RELEASE_RESTORED

_PROGRESS_FILES = 10_000
_FAULTY = "relay backup: the backup has relay.toml as the running relay has read it before"


def _process_number(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise ValueError("the number of a process")
    return int(text)


@click.command()
@role_option
@click.option("--online", is_flag=True, help="Ask the token servers of [[oauth]] for tokens too.")
@click.option(
    "--as-process",
    type=Parsed("PID", _process_number),
    help="Check as the user of this process, with its environment for ${env:NAME}.",
)
@common_options
def check(context: CommandContext, role: NodeRole, *, online: bool, as_process: int | None) -> None:
    """Check configuration, accounts, policies with their tests, ports, certificates and DNS.

    Starts nothing and changes nothing. Exits 78 when `relay serve` would refuse to start or clients
    would reject its certificate, 69 when something it needs does not answer, 0 with warnings only.
    Run it as the user of the service, or as root, who checks as the owner of state_dir.
    """
    file = context.found_config_file()
    environ = become_process(as_process) if as_process else read_environment().variables
    findings = check_file(file, environ, SystemClock(), role=role, online=online)
    # `relay check`: `[{check, verdict, text, refuses_start}]`, `verdict` is `ok`, `warning`,
    # `fault` or `failed`; 69, 78
    if context.json:
        print_json(findings)
    else:
        for finding in findings:
            show_finding(finding)
    verdicts = {finding.verdict for finding in findings}
    if CheckResult.FAULT in verdicts:
        count = sum(1 for finding in findings if finding.verdict is CheckResult.FAULT)
        raise CommandError(ExitCode.CONFIGURATION, f"relay check: {counted(count, 'fault')}")
    if CheckResult.FAILED in verdicts:
        raise CommandError(
            ExitCode.UNAVAILABLE, "relay check: a service that it needs does not answer, or refuses"
        )


def show_finding(finding: CheckFinding) -> None:
    """Print a passed check on stdout, any other on stderr."""
    if finding.verdict is CheckResult.OK:
        click.echo(printable(f"{finding.what:<15} {finding.verdict:<8} {finding.text}"))
        return
    begin = {CheckResult.FAILED: f"{finding.what}: ", CheckResult.WARNING: "warning: "}
    click.echo(printable(begin.get(finding.verdict, "") + finding.text), err=True)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--no-database", is_flag=True, help="Leave out the spool on a server: another node saved it."
)
@common_options
def backup(context: CommandContext, directory: Path, *, no_database: bool) -> None:
    """Copy everything of a service into DIRECTORY, while it runs or not.

    That is the configuration with the files that it names, pending submissions, the spool, the
    mailboxes, and all else in state_dir. DIRECTORY is created, or must be empty; only its owner can
    read it. manifest.json is written last: without it a backup was cut short. A damaged
    relay-properties of a mailbox is copied as it is, and the command then exits with 65.
    """
    settings, text = _in_force(context)
    if no_database and settings.spool.is_file:
        raise click.UsageError("--no-database: the spool is a file of this service")
    try:
        manifest = back_up(
            settings,
            context.config_file(),
            directory,
            clock=SystemClock(),
            environ=read_environment().variables,
            on_file=lambda number: _show_progress("backup", "copied", number),
            with_database=not no_database,
            text=text,
        )
    except NotEmptyError as error:
        raise CommandError(ExitCode.USAGE, f"relay backup: {error}") from None
    result: dict[str, Any] = msgspec.to_builtins(manifest)
    size = f"{counted(manifest.files, 'file')}, {manifest.bytes / 2**20:.1f} MiB"
    # `relay backup DIRECTORY`: its `manifest.json`, `{made, hostname, files, bytes, spool, damaged,
    # …}`; `spool` is `{schema, messages, entries: {STATE: number}, recipients, submissions,
    # missing}` or `{}`; 65: files are damaged or left out
    context.show(result, lambda: [f"backed up to {directory}: {size}"])
    if damaged := _damaged(result):
        raise CommandError(ExitCode.DATA, "\n".join(f"relay backup: {line}" for line in damaged))


def _in_force(context: CommandContext) -> tuple[Settings, str]:
    """Return the settings. If relay.toml has a fault, return the settings of the running service,
    and the text that it has read.
    """
    try:
        return context.settings(), ""
    except SettingsError as error:
        with suppress(ControlUnavailableError):
            settings, _ = valid_settings(context, is_quiet=True)
            text = str(ControlClient(settings.control_socket).get("/configuration")["text"])
            document = parse_document(context.config_file(), text)
            settings = load(document, read_environment().variables)
            click.echo(f"{printable(str(error))}\n{_FAULTY}", err=True)
            return settings, text
        raise


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
def restore(context: CommandContext, directory: Path, *, yes: bool) -> None:
    """Restore the backup in DIRECTORY into an empty place.

    Everything goes where the backup's configuration says, which is restored as well; with --config
    where that one says, and the backup's configuration, with accounts, rules and keys, is not
    restored, nor mail of the drop directory (65). state_dir and mailboxes.root must be empty (64).
    What the backup would make outside of these two and the directory of relay.toml is listed first,
    and needs --yes or your consent. What waits is held, and does not expire: see relay queue list
    --restored, then relay queue release --restored. At the end, everything is checked as by relay
    check.
    """

    def allow(outside: list[Path]) -> None:
        click.echo("relay restore: outside the directories of the service, it would make", err=True)
        for path in outside:
            click.echo(printable(f"  {path}"), err=True)
        if not yes and (sys.stdin is None or not sys.stdin.isatty()):
            raise click.UsageError("expected --yes, or a terminal to ask on; nothing was written")
        if not yes and not click.confirm("Make them?", err=True):
            raise CommandError(ExitCode.USAGE, "relay restore: nothing was written")

    environ = read_environment().variables
    if not directory.is_dir():
        raise CommandError(ExitCode.NO_INPUT, f"relay restore: there is no directory {directory}")
    try:
        restored = restored_from(
            directory,
            context.named_config_file(),
            clock=SystemClock(),
            environ=environ,
            who=user_name(),
            allow=allow,
            on_file=lambda number: _show_progress("restore", "verified", number),
        )
    except NotEmptyError as error:
        raise CommandError(ExitCode.USAGE, f"relay restore: {error}") from None
    except DamagedBackupError as error:
        raise CommandError(ExitCode.DATA, f"relay restore: {error}") from None
    except UnknownOwnerError as error:
        text = f"relay restore: {error}, who does not exist here: create it before"
        raise CommandError(ExitCode.CONFIGURATION, text) from None
    result = document(restored)
    # `relay restore DIRECTORY`: `{made, config, state_dir, root, files, bytes, kept, replaced,
    # left, held: {entries, submissions}}`; 64: a place is not empty, 65: the backup is damaged, or
    # has mail that is `left`, 69: a node lives, 78: restored, but `relay check` finds a fault
    context.show(result, lambda: _lines(result))
    findings = check_file(restored.config, environ, SystemClock())
    for finding in findings:
        if finding.verdict is not CheckResult.OK:
            show_finding(finding)
    if result["left"]:
        text = "relay restore: not restored, mail of the drop directory"
        raise CommandError(ExitCode.DATA, "\n".join(f"{text}: {path}" for path in result["left"]))
    if any(finding.verdict is CheckResult.FAULT for finding in findings):
        text = "relay restore: the mail is restored, and relay check finds these faults"
        raise CommandError(ExitCode.CONFIGURATION, text)


def _lines(result: dict[str, Any]) -> list[str]:
    held = result["held"]
    entries = counted(held["entries"], "entry")
    submissions = counted(held["submissions"], "submission")
    places = ", ".join((result["config"], result["state_dir"], result["root"]))
    return [
        f"restored {counted(result['files'], 'file')}, {result['bytes'] / 2**20:.1f} MiB: {places}",
        *(f"renamed, as it was that of a new installation: {path}" for path in result["replaced"]),
        *(f"kept, and different from the backup: {path}" for path in result["kept"]),
        *_damaged(result),
        f"held: {entries} of the queue, {submissions}",
        RELEASE_RESTORED,
    ]


def _damaged(result: Mapping[str, Any]) -> list[str]:
    return [printable(f"damaged: {file['path']}: {file['found']}") for file in result["damaged"]]


def _show_progress(verb: str, done: str, number: int) -> None:
    if number % _PROGRESS_FILES == 0:
        print_progress(f"relay {verb}: {number} files {done}")
