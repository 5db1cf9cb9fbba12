"""The development relay: settings without a file, on loopback, from which no mail escapes.

On the path: all of it, for one developer.
Holds: no name server is asked and no outbound socket opened: mail for other domains is captured.
Fails: OSError for a port in use; AlreadyRunningError for a folder in use.
Standards: RFC 6761 6.2 (example.test cannot exist).
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from relay.accounts import DevelopmentAccounts
from relay.accounts.development import DOMAIN
from relay.app.compose import Sources, compose
from relay.app.daemon import Daemon
from relay.app.lock import AlreadyRunningError, OwnerLock
from relay.policy import load as load_rules
from relay.routing import NoResolver
from relay.settings import Settings, load, shipped
from relay.settings.tree import Address

HTTP = Address("127.0.0.1", 8025)
SMTP = Address("127.0.0.1", 1025)
_CONFIG = """\
# Written by `relay dev`: what it runs with, and how the other commands find it.
hostname = "relay.{domain}"
state_dir = "state"

[http]
listen = ["{http}"]

[[smtp]]
listen = "{smtp}"
trusted_networks = ["127.0.0.0/8", "::1/128"]

[mailboxes]
domains = ["{domain}"]
root = "mail"

[delivery]
tls = "none"
retry = ["5s", "15s", "1m"]
shutdown_grace = "2s"

[[route]]
domain = "*"
next_hop = "capture"

[policy]
directory = {policies}
"""


@dataclass(frozen=True, slots=True)
class Folder:
    """Where a development relay keeps its files; `temporary` ones go with it."""

    path: Path
    temporary: bool

    @property
    def config(self) -> Path:
        """The configuration that it runs with."""
        return self.path / "relay.toml"

    def write_config(self, *, http: Address, smtp: Address) -> Settings:
        """Write the configuration for these addresses and load it, as any other."""
        policies = '"' + str(shipped("policies")).replace("\\", "\\\\").replace('"', '\\"') + '"'
        text = _CONFIG.format(domain=DOMAIN, http=http, smtp=smtp, policies=policies)
        self.config.write_text(text)
        return load(self.config, {})

    def remove(self) -> None:
        """Leave nothing behind, where nothing should stay."""
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)


def open_folder(given: Path | None) -> Folder:
    """Return the folder `given`, else the user's own, else, if that is in use, a new one."""
    if given is not None:
        given.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Folder(given.absolute(), temporary=False)
    own = _own_folder(Path(tempfile.gettempdir()))
    if own.exists() and (own.is_symlink() or own.stat().st_uid != os.getuid()):
        return Folder(Path(tempfile.mkdtemp(prefix="relay-dev-")), temporary=True)
    if _in_use(own):
        return Folder(Path(tempfile.mkdtemp(prefix="relay-dev-")), temporary=True)
    shutil.rmtree(own, ignore_errors=True)  # a killed one could not remove its own
    own.mkdir(mode=0o700)
    return Folder(own, temporary=True)


def running_config(temporary: Path) -> Path | None:
    """The configuration of this user's running development relay,
    so that `relay trace` finds it.
    """
    own = _own_folder(temporary)
    config = own / "relay.toml"
    if own.is_symlink() or not config.exists() or own.stat().st_uid != os.getuid():
        return None
    return config if _in_use(own) else None


def compose_development(settings: Settings, *, crash_at: str = "") -> Daemon:
    """Return a daemon that asks no DNS and makes accounts as they log in."""
    rules = load_rules(settings.policy.directory, local_domains=settings.mailboxes.domains)
    sources = Sources(DevelopmentAccounts(), rules, crash_at=crash_at, resolver=NoResolver())
    return compose(settings, sources)


def _own_folder(temporary: Path) -> Path:
    return temporary / f"relay-dev-{os.getuid()}"


def _in_use(folder: Path) -> bool:
    if not (folder / "state" / "run" / "lock").exists():
        return False
    lock = OwnerLock(folder / "state" / "run")
    try:
        lock.take()
    except AlreadyRunningError:
        return True
    lock.give_back()
    return False
