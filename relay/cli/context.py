"""What every verb shares: --config, --json, the settings they name, and JSON on stdout.

On the path: each verb takes a Given.
Holds: an option behind the verb wins over the same option in front of it.
Fails: SettingsError for a configuration with faults.
Standards: CONTRACT, "Commands".
"""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from relay.app.development import running_config
from relay.app.reading import Reading
from relay.clock import SystemClock
from relay.settings import Settings, load, read_environment

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Given:
    """The common options as given."""

    config: Path | None = None
    json: bool = False

    def config_file(self) -> Path:
        """--config, else RELAY_CONFIG, else /etc/relay/relay.toml,
        else that of a running `relay dev`.
        """
        environment = read_environment()
        file = environment.config_file(self.config)
        named = self.config is not None or "RELAY_CONFIG" in environment.variables
        if named or file.exists():
            return file
        return running_config(Path(tempfile.gettempdir())) or file

    def settings(self) -> Settings:
        """Raises SettingsError."""
        return load(self.config_file(), read_environment().variables)

    def reading(self) -> Reading:
        """The daemon's facts, or the files'."""
        return Reading(self.settings(), SystemClock())


def common_options(command: F) -> F:
    """Give a command --config and --json as one argument, `given`."""

    @click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The configuration file. [default: $RELAY_CONFIG or /etc/relay/relay.toml]",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
    @click.pass_context
    @functools.wraps(command)
    def with_given(
        context: click.Context, /, *args: Any, config: Path | None, as_json: bool, **kwargs: Any
    ) -> Any:
        before = context.find_object(Given) or Given()
        given = Given(config or before.config, as_json or before.json)
        return context.invoke(command, *args, given=given, **kwargs)

    return with_given  # type: ignore[return-value]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
