"""Read the environment of the process, and find the files that are installed with Relay.

os.environ is read only here. An unset variable is "". See sd_notify(3), systemd.exec(5) on
JOURNAL_STREAM, and no-color.org. shipped() finds `policies`, `scenarios` and `conf` in a checkout
and in an installed wheel.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relay.base.socket_address import LISTEN_VARIABLES, inherit_sockets

DEFAULT_CONFIG = Path("/etc/relay/relay.toml")


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment variables that Relay uses."""

    config: Path  # RELAY_CONFIG, or the default
    names_config: bool  # RELAY_CONFIG is set and not empty
    sendmail: str  # RELAY_SENDMAIL, where `relay sendmail` sends
    crash_at: str  # RELAY_CRASH_AT, for crash tests (relay.base.crashpoints)
    notify_socket: str  # NOTIFY_SOCKET, of systemd
    watchdog_s: float  # WATCHDOG_USEC, of systemd, if it is for this process; 0: none
    journal_stream: str  # JOURNAL_STREAM, of systemd
    no_color: bool  # NO_COLOR is set
    data_home: Path | None  # where programs keep files for this user; None if unknown
    variables: Mapping[str, str]  # all, for `${env:NAME}`


def read_environment() -> Environment:
    """Return the current environment."""
    variables = dict(os.environ)
    return Environment(
        config=Path(variables.get("RELAY_CONFIG") or DEFAULT_CONFIG),
        names_config=bool(variables.get("RELAY_CONFIG")),
        sendmail=variables.get("RELAY_SENDMAIL", ""),
        crash_at=variables.get("RELAY_CRASH_AT", ""),
        notify_socket=variables.get("NOTIFY_SOCKET", ""),
        watchdog_s=_watchdog_s(variables),
        journal_stream=variables.get("JOURNAL_STREAM", ""),
        no_color=bool(variables.get("NO_COLOR")),
        data_home=_data_home(variables),
        variables=variables,
    )


def is_image() -> bool:
    """Whether this process runs in the container image (RELAY_IMAGE)."""
    return "RELAY_IMAGE" in os.environ


def take_sockets() -> None:
    """Take the sockets of the service manager, before the configuration is read. Child processes
    get neither them nor the variables.
    """
    inherit_sockets(os.environ)
    for name in LISTEN_VARIABLES:
        os.environ.pop(name, None)


def _watchdog_s(variables: Mapping[str, str]) -> float:
    """Return the time of sd_watchdog_enabled(3)."""
    microseconds = variables.get("WATCHDOG_USEC", "")
    is_ours = variables.get("WATCHDOG_PID") in (None, str(os.getpid()))
    return int(microseconds) / 1_000_000 if is_ours and microseconds.isdecimal() else 0.0


def _data_home(variables: Mapping[str, str]) -> Path | None:
    """Return the directory for a user's data files (XDG Base Directory Specification)."""
    data_home = Path(variables.get("XDG_DATA_HOME", ""))
    if data_home.is_absolute():
        return data_home
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - unchanged if there is none
    return home / ".local/share" if home.is_absolute() else None


_PACKAGE = Path(__file__).parents[2]


def shipped(name: str) -> Path:
    """Return the folder or file `name` ("policies", "conf"). Raises FileNotFoundError."""
    for place in (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name):
        if place.exists():
            return place
    raise FileNotFoundError(f"{name} is missing: this installation of Relay is incomplete")
