"""The part of relay.toml that verbs need to ask the running relay: state_dir, with its socket; and
the part that says where the accounts are.

A fault elsewhere is one line on stderr: the relay runs on with what it has read before. If none
runs, the files of the spool are opened, and a fault in the keys that say where they are ends the
verb with 78, as the default could be another spool. If relay.toml is no TOML, only a running relay
is asked.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from relay.base.clock import SystemClock
from relay.base.phrases import ahead_text, shown
from relay.base.running_relay import ControlClient, ControlError, ControlUnavailableError
from relay.base.settings.document import Fault, SettingsError
from relay.base.settings.environment import DEFAULT_CONFIG, read_environment
from relay.base.settings.reader import load_valid
from relay.base.settings.tree import MailboxSettings, Settings
from relay.operation.app.state_dir import owner_of
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.options import CommandContext
from relay.operation.commands.operator_client import OperatorClient

# keys that say where the files of a relay are, also with another name of the table; no key: the
# configuration is no TOML
_OF_FILES = re.compile(r': |spool\b|mailboxes(\.(root|store))?: |\w+: .*mean "(spool|mailboxes)"')
# the same for accounts.toml
_OF_ACCOUNTS = re.compile(r'(mailboxes(\.accounts)?)?: |[\w.]+: .*mean "(mailboxes|accounts)"')
_STATE_DIR = Path("/var/lib/relay")


def operator_client(context: CommandContext, *used: str) -> OperatorClient:
    """Return a client of the running relay, else of its files; see valid_settings()."""
    settings, of_files = valid_settings(context, *used)
    return OperatorClient(settings, SystemClock(), faults=of_files)


def valid_settings(
    context: CommandContext, *used: str, is_quiet: bool = False
) -> tuple[Settings, Sequence[Fault]]:
    """Return the settings without what has a fault, and the faults in the keys of the spool.

    Raises SettingsError for a fault in state_dir or a table in `used`; else as settings() does, and
    ControlUnavailableError if no relay runs at --state-dir.
    """
    if context.state_dir is not None:
        settings = Settings(hostname="", state_dir=context.state_dir)
        ControlClient(settings.control_socket).get("/pause")  # where its files are is not known
        return settings, ()
    try:
        settings, faults = load_valid(context.readable_file(), read_environment().variables)
    except SettingsError as error:
        settings, faults = Settings(hostname="", state_dir=_STATE_DIR), error.faults
        if context.names_config or owner_of(settings.run_dir) is None:
            raise
    needed = ("state_dir", *used, *([""] if used else []))
    if unusable := [fault for fault in faults if fault.key.partition(".")[0] in needed]:
        raise SettingsError(unusable)
    if faults and not is_quiet:
        click.echo(f"{SettingsError(faults).faults[0]} (see relay check)", err=True)
    return settings, _matching(_OF_FILES, faults)


def unknown_message(verb: str, key: str, client: OperatorClient) -> CommandError:
    """Return the error for an unknown message."""
    if key == "last" and not client.without_daemon:
        return CommandError(ExitCode.DATA, f"relay {verb}: {no_mail(client)}")
    reason = f"; {client.without_daemon}" if client.without_daemon else ""
    return CommandError(ExitCode.DATA, f"relay {verb}: unknown message {shown(key)}{reason}")


def no_mail(client: OperatorClient) -> str:
    """Return a sentence for a relay that has no mail, with the address for some."""
    smtp = [one.listen for one in client.settings.smtp if one.takes_programs]
    return "the relay has no mail yet" + (f"; it takes mail by SMTP at {smtp[0]}" if smtp else "")


def clock_ahead(client: ControlClient) -> str:
    """Return the ahead_text() of the relay that runs; "" if there is none."""
    try:
        clock = client.get("/dev/clock")
    except (ControlError, ControlUnavailableError):  # a service has none
        return ""
    return ahead_text(clock["now"], clock["advanced_s"])


def accounts_settings(context: CommandContext) -> Settings:
    """Return settings that say where the accounts are, whatever else has a fault. Raises
    SettingsError if they do not.
    """
    accounts = context.accounts
    if accounts is None:
        file, environ = context.readable_file(), read_environment().variables
        settings, faults = load_valid(file, environ, state_dir=_STATE_DIR)
        if not (of_accounts := _matching(_OF_ACCOUNTS, faults)):
            return settings
        if context.names_config or of_accounts[0].key:
            raise SettingsError(of_accounts)
        accounts = DEFAULT_CONFIG.with_name("accounts.toml")
    boxes = MailboxSettings(accounts=accounts)
    return Settings(hostname="", state_dir=_STATE_DIR, mailboxes=boxes)


def _matching(pattern: re.Pattern[str], faults: Sequence[Fault]) -> Sequence[Fault]:
    return [fault for fault in faults if pattern.match(f"{fault.key}: {fault.message}")]
