"""The options of `relay dev`, each of which an environment variable can give too.

RELAY_DEV_ and the name of the option in capitals, with _ for -: RELAY_DEV_NO_DEMO=1. A variable for
an option that may be repeated has its values separated by spaces or commas. The command line has
precedence over a variable, and an empty variable counts as unset.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from relay.base.phrases import shown
from relay.base.settings.values import (
    is_ip,
    parse_address,
    parse_domain,
    parse_duration,
    parse_size,
    parse_webhook_url,
)
from relay.base.socket_address import Address
from relay.development.options import WEBHOOK_KEY, ReleaseTarget
from relay.operation.cli.options import Parsed
from relay.transport.policy.globs import Globs

F = TypeVar("F", bound=Callable[..., Any])
PORTS = {"http": 8025, "https": 8443, "smtp": 1025, "submission": 1587, "submissions": 1465}
# Listeners that are left out if their default port is in use, and what is then missing.
OPTIONAL = {
    "https": "HTTPS, by which MSAL and azure-identity sign in",
    "submission": "SMTP with STARTTLS",
    "submissions": "SMTP with TLS",
}
PREFIX = "RELAY_DEV_"
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]").fullmatch
_SEPARATOR = re.compile(r"[\s,]+")
_DEFAULT_PORT = "{}, with --once a free port"
_DEFAULT_TLS_PORT = "{}, or none if it is in use; with --once a free port"
_EXPOSED = "other machines can reach this relay: expected --token TOKEN too"
_NO_PROXY = "a relay that other machines can reach is no proxy"
TOKEN_CHARACTERS = 16  # fewer are easily guessed


def _listen_address(text: str) -> Address:
    place = f"127.0.0.1:{text}" if text.isdecimal() else text
    try:
        address = parse_address(place, Path.cwd())
    except ValueError:
        raise ValueError("PORT, HOST:PORT or [IPV6]:PORT, with a port of 0 to 65535") from None
    if address.path or not (is_ip(address.host) or address.host == "localhost"):
        raise ValueError("an IP address or localhost")
    return address


def _over_zero(name: str, parse: Callable[[str], float]) -> Parsed[float]:
    """Return the type of an option with a unit."""

    def value(text: str) -> float:
        if (number := parse(text)) <= 0:
            raise ValueError("more than 0")
        return number

    return Parsed(name, value)


def _milter_address(text: str) -> str:
    address = parse_address(text, Path.cwd())
    if not (address.path or address.port):
        raise ValueError
    return str(address)


def _scenarios(
    context: click.Context, option: click.Parameter, arguments: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the values. Only the environment variable may separate them by commas."""
    source = context.get_parameter_source(str(option.name))
    if source is not click.core.ParameterSource.ENVIRONMENT:
        return arguments
    return tuple(part for text in arguments for part in _SEPARATOR.split(text) if part)


def _address_glob(text: str) -> str:
    if "@" not in text.strip("@") and text != "*":
        raise ValueError
    Globs.of([text])
    return text


def _host_name(text: str) -> str:
    if not _HOST_NAME(text):
        raise ValueError
    return text.lower().removesuffix(".")


def _proxy_host(text: str) -> str:
    name = _host_name(text)
    if is_ip(name.strip("[]")):
        raise ValueError
    return name


def _option(name: str, *declarations: str, **attributes: Any) -> Callable[[F], F]:
    """Return a click option with its environment variable."""
    return click.option(
        name, *declarations, envvar=variable_of(name), show_envvar=True, **attributes
    )


def _list(*names: str, of: tuple[Callable[[str], str], str], **attributes: Any) -> Callable[[F], F]:
    """Return the option of a list, which is repeatable; a value may be several, with commas.

    `of` is the function that parses a value, and what it expects.
    """
    parse, expected = of

    def values(
        context: click.Context, option: click.Parameter, arguments: tuple[str, ...]
    ) -> tuple[str, ...]:
        texts = [part for text in arguments for part in _SEPARATOR.split(text) if part]
        parsed = []
        for text in texts:
            try:
                parsed.append(parse(text))
            except ValueError:
                message = f"expected {expected}, found {shown(text)}"
                raise click.BadParameter(message, context, option) from None
        return tuple(dict.fromkeys(parsed))

    return _option(*names, multiple=True, callback=values, **attributes)


def _flag(name: str, text: str) -> Callable[[F], F]:
    return _option(name, is_flag=True, help=text)


def variable_of(name: str) -> str:
    """Return the environment variable of an option, such as RELAY_DEV_NO_DEMO of --no-demo."""
    return PREFIX + name.lstrip("-").replace("-", "_").upper()


def unknown_variables(variables: Mapping[str, str], command: click.Command) -> Collection[str]:
    """Return the variables that begin like those of the options, but belong to no option."""
    known = {option.envvar for option in command.params}
    return sorted(name for name in variables if name.startswith(PREFIX) and name not in known)


def check_together(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that exclude each other."""
    for option, other in (("once", "no_demo"), ("rules", "no_rules")):
        if options[option] and options[other]:
            names = " and ".join(f"--{name.replace('_', '-')}" for name in (option, other))
            raise click.UsageError(f"{names} exclude each other")
    if options["release_allow"] and not options["release_to"]:
        raise click.UsageError("--release-allow needs --release-to: without it nothing is released")
    if options["release_auto"] and not options["release_allow"]:
        raise click.UsageError("--release-auto needs --release-allow: it says to whom")
    ports = {name: options[name] for name in PORTS if options[name] is not None}
    exposed = [f"--{name} {at}" for name, at in ports.items() if not at.is_loopback]
    if options["listen_all"]:
        exposed.insert(0, "--listen-all")
    if exposed and not options["token"]:
        raise click.UsageError(f"{exposed[0]}: {_EXPOSED}")
    if exposed and options["proxy_hosts"]:
        raise click.UsageError(f"{exposed[0]} and --proxy-host exclude each other: {_NO_PROXY}")


def visible_secrets(context: click.Context) -> Iterator[str]:
    """Yield a warning for each secret that was given as an argument."""
    token, target = context.params["token"], context.params["release_to"]
    for option, secret in (("--token", token), ("--release-to", target and target.password)):
        source = context.get_parameter_source(option.lstrip("-").replace("-", "_"))
        if secret and source is click.core.ParameterSource.COMMANDLINE:
            what = "the token" if option == "--token" else "the password"
            yield (
                f"other users of this machine can read {what} of {option} in the list of "
                f"processes: the environment variable {variable_of(option)} is not shown there"
            )


def _token(text: str) -> str:
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("printable ASCII characters without spaces")
    return text


def _listener(name: str, *others: str, text: str, default: str = _DEFAULT_PORT) -> Callable[[F], F]:
    """Return the option for the address of a listener. A port alone means this machine."""
    where = default.format(f"127.0.0.1:{PORTS[name]}")
    kind = Parsed("[HOST:]PORT", _listen_address)
    return _option(f"--{name}", *others, type=kind, show_default=where, help=text)


_OPTIONS = (
    _option(
        "--dir",
        "folder",
        type=click.Path(path_type=Path, file_okay=False),
        help="Keep mail and state here. [default: a temporary directory, removed at the end]",
    ),
    _listener("http", "--port", text="Where the Graph API listens; port 0 takes a free one."),
    _listener(
        "https", text="The same with TLS, by Relay's own development CA.", default=_DEFAULT_TLS_PORT
    ),
    _listener("smtp", text="Where SMTP listens, without TLS; port 0 takes a free one."),
    _listener("submission", text="The same with STARTTLS.", default=_DEFAULT_TLS_PORT),
    _listener("submissions", text="The same with TLS from the start.", default=_DEFAULT_TLS_PORT),
    _list(
        "--host",
        "hosts",
        metavar="NAME",
        of=(_host_name, "a host name without a port"),
        help="Answer HTTP requests for this host too, besides localhost, and have it in the "
        "certificate; repeatable.",
    ),
    _list(
        "--proxy-host",
        "proxy_hosts",
        metavar="NAME",
        of=(_proxy_host, "a host name without a port"),
        help="Be a proxy for port 443 of this host too, besides the hosts of Microsoft's sign-in, "
        "Graph and Outlook; repeatable. The requests end here.",
    ),
    _list(
        "--domain",
        "domains",
        metavar="DOMAIN",
        show_default="example.test",
        of=(parse_domain, "a domain such as example.org"),
        help="A local domain, whose mail goes into mailboxes; repeatable. alice and bob are in the "
        "first.",
    ),
    _option(
        "--rules",
        type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
        help="The directory of the mail-flow rules; changes are loaded while it runs. "
        "[default: the rules that Relay ships]",
    ),
    _option(
        "--scenario",
        "scenarios",
        multiple=True,
        metavar="NAME|FILE",
        callback=_scenarios,
        help="What remote domains reply: gmail, outlook, tls, yahoo, or FILE.toml; repeatable. "
        "NAME:REPLY gives one of its replies to every recipient.",
    ),
    _flag("--no-rules", "Apply no rules."),
    _flag(
        "--strict-users",
        "Make no account by mail or a login by SMTP: local mail is rejected, and so is a "
        "login, except for alice, bob and those who used a token.",
    ),
    _flag(
        "--strict-senders",
        "A login by SMTP needs its password, and sends from the addresses of its account "
        "only. [default: any login may send from any address]",
    ),
    _flag(
        "--listen-all",
        "Listen on all addresses of the machine; of --http, --https, --smtp, --submission and "
        "--submissions only the port counts. Needs --token.",
    ),
    _option(
        "--token",
        default="",
        type=Parsed("TOKEN", _token, is_secret=True),
        help="The only token that HTTP requests are accepted with, and the password of all users "
        "under TLS.",
    ),
    _flag(
        "--private",
        "Relay's own API needs a token, and shows an account its own messages. [default: on "
        "loopback it needs none and shows all, as the pages do]",
    ),
    _flag(
        "--like-graph",
        "Refuse what Graph refuses and Relay takes otherwise: the profile strict.",
    ),
    _flag(
        "--cloud",
        "Run a second relay that plays Microsoft 365, at the port after that of --http: mail from "
        "the local domains that would be captured goes there by Graph, with tokens.",
    ),
    _option(
        "--release-to",
        type=Parsed("URL", ReleaseTarget.parse, is_secret=True),
        help="The one host beyond loopback: captured mail goes to smtp://HOST:PORT or "
        "smtps://HOST:PORT when you release it.",
    ),
    _list(
        "--release-allow",
        metavar="GLOB",
        of=(_address_glob, "a pattern of addresses such as *@example.org"),
        help="A release sends captured mail to its own recipients only if they match, such as "
        "*@example.org; repeatable. [default: only a copy to addresses that you type]",
    ),
    _flag(
        "--release-auto",
        "Release mail to recipients whom --release-allow matches as soon as it is captured.",
    ),
    _list(
        "--webhook",
        "webhooks",
        metavar="URL",
        of=(parse_webhook_url, "https://HOST/PATH, or http:// on this machine"),
        help="Post each step of each message to this URL; repeatable. The requests are signed "
        f"with {WEBHOOK_KEY}",
    ),
    _list(
        "--milter",
        "milters",
        metavar="ADDRESS",
        of=(_milter_address, "HOST:PORT or unix:PATH"),
        help="Ask the milter at HOST:PORT or unix:PATH about all mail; repeatable, in this order. "
        "While it is down, mail is accepted unfiltered.",
    ),
    _option(
        "--keep-messages",
        type=click.IntRange(min=1),
        metavar="N",
        show_default="10000",
        help="The newest N messages stay in all mailboxes together, and N in the queue.",
    ),
    _option(
        "--keep-age",
        type=_over_zero("DURATION", parse_duration),
        show_default="7d",
        help="Older messages are removed.",
    ),
    _option(
        "--keep-size",
        type=_over_zero("SIZE", parse_size),
        show_default="1 GiB",
        help="The newest messages of this size together stay.",
    ),
    _flag("--no-demo", "Show no demonstration."),
    _flag("--once", "Show the two messages and exit; 0 on success."),
    _option(
        "--ready-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write pid and addresses to this file as JSON when the first message of yours would "
        "be shown and counted. With --once nothing is written.",
    ),
    _option(
        "--exit-after",
        type=click.IntRange(min=1),
        metavar="N",
        help="Exit after N of your messages have ended or are captured; reports do not count.",
    ),
)


def dev_options(command: F) -> F:
    """Add the options to the command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
