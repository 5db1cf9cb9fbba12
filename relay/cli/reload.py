"""`relay reload`: have the running service read its configuration again, and wait for the outcome.

Exits 78 with the faults if nothing was reloaded, or not the rules of a tenant; 69 if no service
answers.
"""

from pathlib import Path
from typing import Any

import click

from relay.base.phrases import counted
from relay.cli.errors import CommandError, ExitCode
from relay.cli.options import CommandContext, common_options
from relay.client import ControlClient
from relay.settings.document import SettingsError, parse_document, read_text
from relay.settings.environment import read_environment
from relay.settings.reader import DocumentReader
from relay.settings.tree import Settings

_RELOAD_S_MAX = 120.0  # systemd sets no limit where the start has none


@click.command()
@common_options
def reload(context: CommandContext) -> None:
    """Have the running service read its configuration again, and wait for the outcome.

    Keys of relay.toml that need a restart are printed. If a file has a fault, nothing is reloaded,
    the previous configuration stays active, and the faults are printed: exit 78. If the rules of a
    tenant have one, all else is reloaded, and its rules in force stay: exit 78 too. Without a
    running service: exit 69.
    """
    client = ControlClient(control_socket(context), timeout_s=_RELOAD_S_MAX)
    result = client.post("/reload", {})
    context.show(result, lambda: _lines(result))
    if faults := result["faults"]:
        kept = "relay reload: nothing was reloaded: the previous configuration stays active"
        if result["reloaded"]:
            kept = "relay reload: reloaded, but not the rules of tenants that have these faults"
        raise CommandError(ExitCode.CONFIGURATION, "\n".join([*faults, kept]))


def control_socket(context: CommandContext) -> Path:
    """Return the socket of the service, which is to say itself what is wrong with its file: of a
    faulty one only `state_dir` is needed, which comes before the first table.
    """
    try:
        return context.settings().control_socket
    except SettingsError:
        file = context.found_config_file()
        top = parse_document(file, read_text(file).partition("\n[")[0])
        base, environ = file.absolute().parent, read_environment().variables
        found = DocumentReader(top, base=base, environ=environ).fields(Settings, top.table, ())
        if "state_dir" not in found:
            raise
        return Settings(hostname="", state_dir=found["state_dir"]).control_socket


def _lines(result: dict[str, Any]) -> list[str]:
    renewed = counted(result["new_certificates"], "new certificate")
    done = f"reloaded: {counted(result['rules'], 'rule')}, {renewed}"
    lines = [done] if result["reloaded"] else []
    for one in result["needs_restart"]:
        lines += [f"needs a restart: {one['key']}: {one['old']} -> {one['new']}"]
    return lines
