"""Fields that an option of `relay dev` gives, or its environment variable: one declaration for all.

A dataclass has option(), flag(), items() or listener() in place of the default of such a field, and
made_of() makes it from what the command line and the environment say. The option has the name of
the field, unless another is given. Its variable is RELAY_DEV_ and this name in capitals, with _ for
-: RELAY_DEV_NO_DEMO=1. A variable for an option that may be repeated has its values separated by
spaces or commas. The command line has precedence over a variable, and an empty variable counts as
unset.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import click

from relay.base.settings.values import is_ip, parse_address
from relay.base.socket_address import Address
from relay.operation.cli.option_types import Parsed

PREFIX = "RELAY_DEV_"
PORTS = {"http": 8025, "https": 8443, "smtp": 1025, "submission": 1587, "submissions": 1465}
# Ports of mail programs, which Dovecot's programs serve. No option names a port with TLS.
MAIL = {"imap": 1143, "imaps": 1993, "pop3": 1110, "pop3s": 1995}
IN_CLEAR = ("imap", "pop3")  # of these; they stay on loopback, since the token is the password
# Listeners that are left out if their default port is in use, and what is then missing.
OPTIONAL = {
    "https": "HTTPS, by which MSAL and azure-identity sign in",
    "submission": "SMTP with STARTTLS",
    "submissions": "SMTP with TLS",
    **{name: name.upper() for name in MAIL},
}
_SEPARATOR = re.compile(r"[\s,]+")
T = TypeVar("T")


def option(text: str, *names: str, default: Any = None, **attributes: Any) -> Any:
    """Return the field of an option. `text` is its help, `default` the value of the field if
    nothing gives one, and `attributes` are further attributes of the click option.
    """
    return field(default=default, metadata={"names": names, "click": {"help": text, **attributes}})


def flag(text: str) -> Any:
    """Return the field of an option without a value."""
    return option(text, default=False, is_flag=True)


class Separated(Parsed[T]):
    """The type of an option that is repeatable: its variable has several values."""

    def split_envvar_value(self, rv: str) -> list[str]:
        """Return the values of the variable."""
        return [part for part in _SEPARATOR.split(rv) if part]


def over_zero(name: str, parse: Callable[[str], float]) -> Parsed[float]:
    """Return the type of an option with a unit."""

    def value(text: str) -> float:
        if (number := parse(text)) <= 0:
            raise ValueError("more than 0")
        return number

    return Parsed(name, value)


def items(
    name: str,
    metavar: str,
    parse: Callable[[str], str],
    *,
    text: str,
    default: tuple[str, ...] = (),
) -> Any:
    """Return the field of an option that is repeatable; a value may be several, with commas."""

    def values(words: str) -> tuple[str, ...]:
        return tuple(parse(part) for part in _SEPARATOR.split(words) if part)

    def flat(_context: click.Context, _option: click.Parameter, values: Any) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.from_iterable(values)))

    return option(
        text,
        name,
        default=default,
        type=Parsed(metavar, values),
        multiple=True,
        callback=flat,
        show_default=", ".join(default) or None,
    )


def listener(name: str, text: str, *others: str) -> Any:
    """Return the field of an address to listen on, for which PORTS or MAIL has the default
    of the command. A port alone means this machine.
    """
    is_optional = name in OPTIONAL
    used = ", or none if it is in use; with" if is_optional else ", with"
    usual = (
        f"127.0.0.1:{(PORTS | MAIL)[name]}{used} --once {'no' if name in MAIL else 'a free'} port"
    )
    return option(
        text,
        f"--{name}",
        *others,
        default=None if is_optional else MISSING,
        type=Parsed("[HOST:]PORT", _listen_address),
        show_default=usual,
    )


def _listen_address(text: str) -> Address:
    place = f"127.0.0.1:{text}" if text.isdecimal() else text
    try:
        address = parse_address(place, Path.cwd())
    except ValueError:
        raise ValueError("PORT, HOST:PORT or [IPV6]:PORT, with a port of 0 to 65535") from None
    if address.path or not (is_ip(address.host) or address.host == "localhost"):
        raise ValueError("an IP address or localhost")
    return address


def variable_of(name: str) -> str:
    """Return the environment variable of an option, such as RELAY_DEV_NO_DEMO of --no-demo."""
    return PREFIX + name.lstrip("-").replace("-", "_").upper()


def click_options(kind: Any) -> Iterator[Callable[[Any], Any]]:
    """Yield the options of a dataclass in the order of its fields; each decorates a command."""
    for declared in _option_fields(kind):
        names = declared.metadata["names"] or (f"--{declared.name.replace('_', '-')}",)
        variable: dict[str, Any] = {"envvar": variable_of(names[0]), "show_envvar": True}
        yield click.option(*names, declared.name, **variable, **declared.metadata["click"])


def made_of(kind: Callable[..., T], values: Mapping[str, Any], **others: Any) -> T:
    """Return the dataclass `kind` with the values of its options, and `others`."""
    options = {declared.name: values[declared.name] for declared in _option_fields(kind)}
    return kind(**{name: value for name, value in options.items() if value or value == 0}, **others)


def _option_fields(kind: Any) -> list[Field[Any]]:
    return [declared for declared in fields(kind) if declared.metadata]
