"""The options of `relay dev` together: which exclude each other, and which show a secret."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import click

from relay.development.foreground import RunOptions
from relay.development.option_fields import IN_CLEAR, PORTS, PREFIX, click_options, variable_of
from relay.development.options import DevelopmentOptions
from relay.development.removal import KeepLimits

F = TypeVar("F", bound=Callable[..., Any])
_EXPOSED = "other machines can reach this relay: expected --token TOKEN too"
_CLEAR = "the token would pass in clear: expected a loopback address; --listen-all opens TLS ports"
_NO_PROXY = "a relay that other machines can reach is no proxy"
TOKEN_CHARACTERS = 16  # fewer are easily guessed


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
    for name in IN_CLEAR:
        if options[name] and not options[name].is_loopback:
            raise click.UsageError(f"--{name} {options[name]}: {_CLEAR}")
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


def dev_options(command: F) -> F:
    """Add the options to the command."""
    kinds = (DevelopmentOptions, KeepLimits, RunOptions)
    for option in reversed([option for kind in kinds for option in click_options(kind)]):
        command = option(command)
    return command
