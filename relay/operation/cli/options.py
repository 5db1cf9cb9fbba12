"""The options that all verbs share, --config and --json, and the settings that they select;
--state-dir and --accounts of some verbs, for a configuration that is no TOML.

An option may stand at each level of the command; the last one counts.
"""

import errno
import functools
import getpass
import io
import os
import shlex
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec import Struct
from msgspec.structs import replace

from relay.base.files import check_readable
from relay.base.phrases import shown
from relay.base.settings.environment import is_image, read_environment
from relay.base.settings.reader import load, load_valid
from relay.base.settings.tree import NodeRole, Settings
from relay.base.settings.values import parse_domain, parse_duration
from relay.operation.app.development_folder import running_configs
from relay.operation.cli.errors import CommandError, ExitCode
from relay.operation.cli.option_types import Parsed
from relay.operation.cli.output import print_json, print_lines
from relay.transport.ingress.local_users import LocalUsers

F = TypeVar("F", bound=Callable[..., Any])
INPUT_BYTES_MAX = 256 * 1024 * 1024  # of one file, which is read as a whole
_NO_SUCH_FILE = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
_CHARACTERS_MAX = 1000  # of a condition
_KEY_CHARACTERS_MAX = 1000  # RFC 5322 limits the line of a Message-ID


class CommandContext(Struct, frozen=True):
    """The values of the common options."""

    config: Path | None = None
    json: bool = False
    state_dir: Path | None = None  # of a running relay: the configuration is not read
    accounts: Path | None = None  # accounts.toml, likewise

    def show(self, value: Any, lines: Callable[[], Sequence[str]]) -> None:
        """Print `value` as JSON if --json is given, else the lines."""
        if self.json:
            print_json(value)
        else:
            print_lines(lines())

    @property
    def names_config(self) -> bool:
        """Return whether --config or RELAY_CONFIG is given."""
        return self.config is not None or read_environment().names_config

    def config_file(self) -> Path:
        """Return the file of --config, else of RELAY_CONFIG, else /etc/relay/relay.toml."""
        return self.config or read_environment().config

    def named_config_file(self) -> Path | None:
        """Return the file of --config, else the file of RELAY_CONFIG if it exists, else None."""
        file = self.config_file()
        return file if self.names_config and file.exists() else self.config

    def found_config_file(self, *, takes_first: bool = False) -> Path:
        """Return config_file(). If neither --config nor RELAY_CONFIG is given and this user cannot
        read the default file, or it is that of the container image, return the file of this user's
        running `relay dev`. Of several, the first is taken if the command `takes_first`; else
        raises CommandError (64).
        """
        file = self.config_file()
        if self.names_config or (os.access(file, os.R_OK) and not is_image()):  # one relay there
            return file
        running = running_configs()
        if len(running) > 1 and not takes_first:
            shown_relays = "\n".join(map(_one_of_several, running))
            text = f"{len(running)} relays of this user run; add the words that name one:"
            raise CommandError(ExitCode.USAGE, f"relay: {text}\n{shown_relays}")
        return running[0] if running else file

    def settings(self) -> Settings:
        """Load readable_file(). Raises SettingsError."""
        return load(self.readable_file(), read_environment().variables)

    def readable_file(self) -> Path:
        """Return found_config_file(). Raises PermissionError, and CommandError (69) if no file is
        named or found.
        """
        file = self.found_config_file()
        if not self.names_config and not file.exists():
            text = f"no relay is found: there is no {file}, and `relay dev` does not run"
            raise CommandError(ExitCode.UNAVAILABLE, f"relay: {text}, or only --config finds it")
        check_readable(file)
        return file


def _one_of_several(config: Path) -> str:
    """Return where a development relay listens, and the words that name it."""
    settings, _ = load_valid(config, {})
    smtp, http = settings.smtp[0].listen, settings.http.listen[0]
    return f"  SMTP {smtp}, HTTP {http}:  --config {shlex.quote(str(config))}"


def role_option(command: F) -> F:
    """Add --role to a verb, as the argument `role`."""
    return click.option(
        "--role",
        type=click.Choice([role.value for role in NodeRole]),
        default=NodeRole.ALL.value,
        show_default=True,
        callback=lambda _context, _option, value: NodeRole(value),
        help="What the service does: transport is all but mailboxes and what they need.",
    )(command)


def _message_name(text: str) -> str:
    if not (text and len(text) <= _KEY_CHARACTERS_MAX and text.isprintable()):
        raise ValueError('an id, an address or "last"')
    return text


KEY = Parsed("key", _message_name)  # of a message: an id of any kind, an address, or "last"
DOMAIN = Parsed("DOMAIN", lambda text: parse_domain(text.removesuffix(".")))


def _once(_context: click.Context, _option: click.Parameter, values: tuple[str, ...]) -> str:
    """Reject an empty condition, which would select everything, and a repeated one."""
    if len(values) > 1:
        raise click.BadParameter("is given twice")
    if values and not 0 < (length := len(str(values[0]))) <= _CHARACTERS_MAX:
        raise click.BadParameter(f"found {length} letters, expected 1 to {_CHARACTERS_MAX}")
    return values[0] if values else ""


once = functools.partial(click.option, multiple=True, callback=_once)


class InputPath(click.Path):
    """A file to read, or a directory; one that does not exist exits with 66."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, exists=True, file_okay=file_okay, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Raises CommandError (65, 66), PermissionError."""
        try:
            os.stat(value)  # noqa: PTH116 - an empty name is no directory
        except PermissionError:
            raise
        except OSError as error:
            code = ExitCode.NO_INPUT if error.errno in _NO_SUCH_FILE else ExitCode.DATA
            text = f"relay: {shown(str(value))} cannot be read: {error.strerror}"
            raise CommandError(code, text) from None
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        check_readable(path)
        return path


def read_input(verb: str, path: Path) -> bytes:
    """Return the octets of a file or pipe. Raises CommandError (65), PermissionError."""
    try:
        # Do not wait until a FIFO has a writer: that may never happen.
        file = io.FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        with io.BufferedReader(file) as reader:
            os.set_blocking(reader.fileno(), True)
            octets = reader.read(INPUT_BYTES_MAX + 1)
            is_pipe = stat.S_ISFIFO(os.fstat(reader.fileno()).st_mode)
    except PermissionError:
        raise
    except OSError as error:
        text = f"{shown(str(path))} cannot be read: {error.strerror}"
        raise CommandError(ExitCode.DATA, f"relay {verb}: {text}") from None
    if is_pipe and not octets:
        text = f"{shown(str(path))} is an empty pipe"
        raise CommandError(ExitCode.DATA, f"relay {verb}: {text}")
    if len(octets) > INPUT_BYTES_MAX:
        limit = f"has more than {INPUT_BYTES_MAX >> 20} MiB"
        raise CommandError(ExitCode.DATA, f"relay {verb}: {shown(str(path))} {limit}")
    return octets


def older_than_s(text: str) -> float | None:
    """Return the value of --older-than in seconds, None without it. Raises UsageError."""
    try:
        return parse_duration(text) if text else None
    except ValueError as error:
        raise click.UsageError(f"--older-than: found {shown(text)}, expected {error}") from None


def user_name() -> str:
    """Return the name of the user, or the uid if there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def login_name() -> str:
    """Return the name under which the relay knows this user on the socket of [sendmail]."""
    return LocalUsers("localhost", "").find(os.geteuid()).name


def common_options(command: F) -> F:
    """Add --config and --json to a verb, or to a group for its verbs: its first argument."""

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
        context = replace(before, config=config or before.config, json=as_json or before.json)
        click_context.obj = context
        return click_context.invoke(command, context, *args, **kwargs)

    return with_context  # type: ignore[return-value]


def _keep(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    before = context.find_object(CommandContext) or CommandContext()
    context.obj = replace(before, **({str(option.name): path} if path else {}))


def _or_at(name: str, metavar: str, text: str) -> Callable[[F], F]:
    kind, text = click.Path(path_type=Path), f"{text}; read no configuration."
    option = click.option(
        name, metavar=metavar, type=kind, expose_value=False, callback=_keep, help=text
    )
    return lambda command: option(common_options(command))


relay_options = _or_at("--state-dir", "DIR", "Ask the relay that runs there")
accounts_options = _or_at("--accounts", "FILE", "Read or change this accounts.toml")
