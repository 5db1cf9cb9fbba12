"""`relay config show | diff`: the keys of relay.toml with their values, and what has changed in the
file since the running service read it (69 if none runs). No secret is printed.
"""

import json

import click

from relay.base.running_relay import ControlClient
from relay.base.settings.document import read_text
from relay.base.settings.environment import read_environment
from relay.base.settings.listed_keys import DEFAULT, ListedKey, in_order, list_keys
from relay.base.settings.reloadable_keys import apply_reloadable
from relay.operation.cli.options import CommandContext, common_options


@click.group()
@common_options
def config(_given: CommandContext) -> None:
    """Show the configuration, and compare it with that of the running service."""


@config.command()
@click.option("--origin", is_flag=True, help='Add the line of each key, or "default".')
@click.option("--changed", is_flag=True, help="Only the keys that the file has.")
@common_options
def show(context: CommandContext, *, origin: bool, changed: bool) -> None:
    """Print all keys of relay.toml that have a value, defaults too.

    Secrets are hidden, and parts of URLs: the login in spool.url and delivery.proxy, what follows
    the host in the URL of a webhook. ${env:NAME} and ${file:PATH} are hidden in these parts;
    elsewhere they are printed as they are written.
    """
    context.settings()  # says where it has looked for the file
    file = context.found_config_file()
    _, keys = list_keys(file, read_text(file), read_environment().variables)
    keys = [key for key in keys if not changed or key.origin != DEFAULT]
    # `relay config show`: `[{key, value, origin}]`, `origin` is `FILE:LINE` or `default`
    context.show(
        [{"key": key.key, "value": key.value, "origin": key.origin} for key in keys],
        lambda: [_line(key) + (f"  # {key.origin}" if origin else "") for key in keys],
    )


@config.command()
@common_options
def diff(context: CommandContext) -> None:
    """Print what has changed since the running service read the file.

    What begins with - was read, what begins with + is in the file. The keys that need a restart
    follow, also those of earlier reloads; relay reload applies the others.
    """
    answer = ControlClient(context.settings().control_socket).get("/configuration")
    file, environ = context.found_config_file(), read_environment().variables
    text = read_text(file)
    read = answer["text"] or text  # a development relay has none
    started, _ = list_keys(file, answer.get("text_at_start", read), environ)
    _, old = list_keys(file, read, environ)
    written, new = list_keys(file, text, environ)
    before, after = ({key.key: key.parsed for key in keys} for keys in (old, new))
    changes = [("-", key) for key in old if after.get(key.key, key) != key.parsed]
    changes += [("+", key) for key in new if before.get(key.key, key) != key.parsed]
    changes.sort(key=lambda change: in_order(change[1]))
    restart = apply_reloadable(started, written)[1]
    rows = [(sign, key.key, key.value) for sign, key in changes]
    # `relay config diff`: `{changes: [[sign, key, value]], needs_restart: [key]}`, `-` was read,
    # `+` is written
    context.show(
        {"changes": rows, "needs_restart": restart},
        lambda: [
            *(f"{sign} {_line(key)}" for sign, key in changes),
            *(f"needs a restart: {key}" for key in restart),
        ],
    )


def _line(key: ListedKey) -> str:
    return f"{key.key} = {json.dumps(key.value, ensure_ascii=False)}"
