"""`relay backup` and `relay restore`: everything of a service, in one directory.

Progress is on stderr if that is a terminal. Exit codes: 64 for a directory that is not empty, 65
for a backup that was cut short or changed, and for one that is complete but has a damaged file.
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
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options, user_name
from relay.cli.output import print_progress, printable
from relay.cli.reload import control_socket
from relay.client import ControlClient, ControlUnavailableError
from relay.journeys.wording import RELEASE_RESTORED
from relay.settings.document import SettingsError
from relay.settings.environment import read_environment
from relay.settings.reader import load
from relay.settings.tree import Settings

_PROGRESS_FILES = 10_000
_FAULTY = "relay backup: the backup has relay.toml as the running relay has read it before"


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
    from relay.commands.backup import NotEmptyError, back_up  # noqa: PLC0415 - is slow

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
            on_file=lambda number: _tell("backup", "copied", number),
            with_database=not no_database,
            text=text,
        )
    except NotEmptyError as error:
        raise CommandError(ExitCode.USAGE, f"relay backup: {error}") from None
    result: dict[str, Any] = msgspec.to_builtins(manifest)
    size = f"{counted(manifest.files, 'file')}, {manifest.bytes / 2**20:.1f} MiB"
    context.show(result, lambda: [f"backed up to {directory}: {size}"])
    if damaged := _damaged(result):
        raise CommandError(ExitCode.DATA, "\n".join(f"relay backup: {one}" for one in damaged))


def _in_force(context: CommandContext) -> tuple[Settings, str]:
    """Return the settings; of a faulty relay.toml those of the running service, with its text."""
    try:
        return context.settings(), ""
    except SettingsError as error:
        with suppress(ControlUnavailableError):
            text = str(ControlClient(control_socket(context)).get("/configuration")["text"])
            settings = load(context.config_file(), read_environment().variables, text=text)
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
    where that one says. state_dir and mailboxes.root must be empty (64). What the backup would make
    outside of these two and the directory of relay.toml is listed first, and needs --yes or your
    consent. What waits is held, and does not expire: see relay queue list --restored, then relay
    queue release --restored. At the end, everything is checked as by relay check.
    """
    from relay.cli.check import show_finding  # noqa: PLC0415 - is slow
    from relay.commands.backup import NotEmptyError  # noqa: PLC0415 - the same
    from relay.commands.check import check_file  # noqa: PLC0415 - the same
    from relay.commands.check_findings import CheckResult  # noqa: PLC0415 - the same
    from relay.commands.restore import (  # noqa: PLC0415 - the same
        DamagedBackupError,
        UnknownOwnerError,
        document,
    )
    from relay.commands.restore import restore as restored_from  # noqa: PLC0415 - the same

    def allow(outside: list[Path]) -> None:
        click.echo("relay restore: outside the directories of the service, it would make", err=True)
        for one in outside:
            click.echo(printable(f"  {one}"), err=True)
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
            on_file=lambda number: _tell("restore", "verified", number),
        )
    except NotEmptyError as error:
        raise CommandError(ExitCode.USAGE, f"relay restore: {error}") from None
    except DamagedBackupError as error:
        raise CommandError(ExitCode.DATA, f"relay restore: {error}") from None
    except UnknownOwnerError as error:
        text = f"relay restore: {error}, who does not exist here: create it before"
        raise CommandError(ExitCode.CONFIGURATION, text) from None
    result = document(restored)
    context.show(result, lambda: _lines(result))
    found = check_file(restored.config, environ, SystemClock())
    for one in found:
        if one.verdict is not CheckResult.OK:
            show_finding(one)
    if any(one.verdict is CheckResult.FAULT for one in found):
        text = "relay restore: everything is restored, and relay check finds these faults"
        raise CommandError(ExitCode.CONFIGURATION, text)


def _lines(result: dict[str, Any]) -> list[str]:
    held = result["held"]
    entries = counted(held["entries"], "entry")
    submissions = counted(held["submissions"], "submission")
    places = ", ".join((result["config"], result["state_dir"], result["root"]))
    return [
        f"restored {counted(result['files'], 'file')}, {result['bytes'] / 2**20:.1f} MiB: {places}",
        *(f"kept, and different from the backup: {one}" for one in result["kept"]),
        *_damaged(result),
        f"held: {entries} of the queue, {submissions}",
        RELEASE_RESTORED,
    ]


def _damaged(result: Mapping[str, Any]) -> list[str]:
    return [printable(f"damaged: {one['path']}: {one['found']}") for one in result["damaged"]]


def _tell(verb: str, done: str, number: int) -> None:
    if number % _PROGRESS_FILES == 0:
        print_progress(f"relay {verb}: {number} files {done}")
