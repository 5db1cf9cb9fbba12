"""What every verb shares: --config and --json, and the settings they name.

On the path: each verb takes a CommandContext. Holds: both options may stand behind each word of
the command; the last one wins. Fails: SettingsError for a configuration with faults,
PermissionError for one that is not ours. Standards: docs/names.md (Commands).
"""

import functools
import getpass
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from relay.app.development_folder import running_config
from relay.cli.errors import CommandError, ExitCode
from relay.files import check_readable
from relay.settings import Settings, load, read_environment
from relay.settings.document import shown

F = TypeVar("F", bound=Callable[..., Any])
_KEY_CHARACTERS_MAX = 1000  # a Message-ID is a line at most


@dataclass(frozen=True, slots=True)
class CommandContext:
    """The common options as given."""

    config: Path | None = None
    json: bool = False

    def config_file(self) -> Path:
        """Return the file of --config, else of RELAY_CONFIG, else /etc/relay/relay.toml."""
        return read_environment().config_file(self.config)

    def found_config_file(self) -> Path:
        """Return config_file(), or where nothing names it and it does not exist, the file of this
        user's running `relay dev`.
        """
        file = self.config_file()
        if self.config is not None or read_environment().names_config or file.exists():
            return file
        return running_config(Path(tempfile.gettempdir())) or file

    def settings(self) -> Settings:
        """Load found_config_file().

        Raises SettingsError, PermissionError, and CommandError (69) if no file is named or found.
        """
        file = self.found_config_file()
        if self.config is None and not read_environment().names_config and not file.exists():
            text = f"no relay is running: there is no {file}, and `relay dev` does not run"
            raise CommandError(
                ExitCode.UNAVAILABLE, f"relay: {text}; --config names a configuration"
            )
        check_readable(file)
        return load(file, read_environment().variables)


def common_options(command: F) -> F:
    """Give a verb --config and --json as one argument, `given`."""
    return _with_context(command, keep=False)


def group_options(command: F) -> F:
    """Give a group --config and --json for the verbs below it."""
    return _with_context(command, keep=True)


class Key(click.ParamType[str]):
    """A name of a message: an id of any kind, an address, or "last"."""

    name = "key"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what no message can be called."""
        text = str(value)
        if not (text and len(text) <= _KEY_CHARACTERS_MAX and text.isprintable()):
            self.fail(f'expected an id, an address or "last", found {shown(text)}', param, ctx)
        return text


def unknown_message(verb: str, key: str, *, without_daemon: str) -> CommandError:
    """Return the end of a verb that found no message; `without_daemon` says why files were read."""
    reason = f"; {without_daemon}" if without_daemon else ""
    return CommandError(ExitCode.DATA, f"relay {verb}: no message is known as {shown(key)}{reason}")


def user_name() -> str:
    """Who runs this; the number where the user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _with_context(command: F, *, keep: bool) -> F:
    @click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False, readable=False),
        help="The configuration file. [default: $RELAY_CONFIG or /etc/relay/relay.toml]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
    @click.pass_context
    @functools.wraps(command)
    def with_context(
        click_context: click.Context,
        /,
        *args: Any,
        config: Path | None,
        as_json: bool,
        **kwargs: Any,
    ) -> Any:
        before = click_context.find_object(CommandContext) or CommandContext()
        context = CommandContext(config or before.config, as_json or before.json)
        if keep:
            click_context.obj = context
            return click_context.invoke(command, context, *args, **kwargs)
        return click_context.invoke(command, *args, context=context, **kwargs)

    return with_context  # type: ignore[return-value]
