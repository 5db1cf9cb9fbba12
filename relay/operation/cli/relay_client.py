"""The part of relay.toml that verbs need to ask the running relay: state_dir, with its socket.

A fault elsewhere is one line on stderr: the relay runs on with what it has read before. If none
runs, the files of the spool are opened, and a fault in the keys that say where they are ends the
verb with 78, as the default could be another spool.
"""

import re
from collections.abc import Sequence

import click

from relay.base.clock import SystemClock
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.environment import read_environment
from relay.base.settings.reader import load_valid
from relay.base.settings.tree import Settings
from relay.operation.cli.options import CommandContext
from relay.operation.commands.operator_client import OperatorClient

# keys that say where the files of a relay are, also with another name of the table
_OF_FILES = re.compile(r'spool\b|mailboxes(\.(root|store))?: |\w+: .*mean "(spool|mailboxes)"')


def operator_client(context: CommandContext, *used: str) -> OperatorClient:
    """Return a client of the running relay, else of its files; see valid_settings()."""
    settings, of_files = valid_settings(context, *used)
    return OperatorClient(settings, SystemClock(), faults=of_files)


def valid_settings(context: CommandContext, *used: str) -> tuple[Settings, Sequence[Fault]]:
    """Return the settings without what has a fault, and the faults in the keys of the spool.

    Raises SettingsError for a fault in state_dir or a table in `used`; else as settings() does.
    """
    settings, faults = load_valid(context.readable_file(), read_environment().variables)
    if needed := [fault for fault in faults if fault.key.partition(".")[0] in ("state_dir", *used)]:
        raise SettingsError(needed)
    if faults:
        click.echo(f"{SettingsError(faults).faults[0]} (see relay check)", err=True)
    return settings, [fault for fault in faults if _OF_FILES.match(f"{fault.key}: {fault.message}")]
