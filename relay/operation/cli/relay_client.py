"""What verbs that ask the running relay take from relay.toml: state_dir, where its socket is.

A fault elsewhere is one line on stderr: the relay runs on with what it has read before. If none
runs, the files of the spool are opened, and a fault in the keys that say where they are ends the
verb with 78, as the default could be another spool.
"""

from collections.abc import Iterable, Sequence

import click

from relay.base.clock import SystemClock
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.tree import Settings
from relay.operation.cli.options import CommandContext
from relay.operation.cli.output import printable
from relay.operation.commands.operator_client import OperatorClient

_OF_FILES = ("spool", "mailboxes.root", "mailboxes.store")


def operator_client(context: CommandContext, *used: str) -> OperatorClient:
    """Return a client of the running relay, else of its files; see valid_settings()."""
    settings, of_files = valid_settings(context, *used)
    return OperatorClient(settings, SystemClock(), faults=of_files)


def valid_settings(context: CommandContext, *used: str) -> tuple[Settings, Sequence[Fault]]:
    """Return the settings without what has a fault, and the faults in the keys of the spool.

    Raises SettingsError for a fault in state_dir or a table in `used`; else as settings() does.
    """
    settings, faults = context.valid_settings()
    if needed := _within(faults, ("state_dir", *used)):
        raise SettingsError(needed)
    if faults:
        first, *others = SettingsError(faults).faults
        more = f" (and {len(others)} more, see relay check)" if others else ""
        click.echo(printable(f"{first}{more}"), err=True)
    return settings, _within(faults, _OF_FILES)


def _within(faults: Iterable[Fault], keys: Sequence[str]) -> list[Fault]:
    """Return the faults of these keys, of what is in them, and of the tables that they are in."""
    return [
        fault
        for fault in faults
        if any(
            f"{fault.key}.".startswith(f"{key}.") or key.startswith(f"{fault.key}.") for key in keys
        )
    ]
