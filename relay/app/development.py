"""The development relay: on loopback, without a file, from which no mail escapes.

On the path: all of it, for one developer.
Holds: no name server is asked and no outbound socket opened: mail for other domains is captured.
Fails: OSError for a port in use; AlreadyRunningError for a folder in use; ForeignFolderError;
    DemonstrationError, RefusedError for a step that did not come.
Standards: RFC 6761 6.2 (example.test cannot exist).
"""

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relay.accounts import DevelopmentAccounts
from relay.accounts.directory import DOMAIN
from relay.app.compose import RelayDependencies, compose
from relay.app.daemon import BrokenRelayError, Daemon, write_ready_file
from relay.app.demonstration import DemonstratedMessage, Follower, demonstrate
from relay.app.development_folder import DevelopmentFolder
from relay.policy import load_rules
from relay.routing import NoResolver
from relay.settings import Settings, load, shipped
from relay.settings.tree import Address

_CONFIG = """\
: what it runs with, and how the other commands find it.
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
accounts = "accounts.toml"

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
_ACCOUNTS = """\
: the people who are always there; others come when they log in.
[[account]]
address = "alice@{domain}"
token = "plain:alice"
password = "plain:alice"

[[account]]
address = "bob@{domain}"
token = "plain:bob"
password = "plain:bob"
"""


@dataclass(frozen=True, slots=True)
class DevelopmentOptions:
    """What to do. `once`: stop after the demonstration; `exit_after`: after so many messages;
    `hosts`: by which names besides loopback's HTTP requests may ask for it.
    """

    http: Address
    smtp: Address
    once: bool = False
    exit_after: int | None = None
    ready_file: Path | None = None
    hosts: tuple[str, ...] = ()


class DevelopmentView(Protocol):
    """What a person, or a program, is shown."""

    def listening(self, http: Address, smtp: Address) -> None:
        """Everything listens, here."""
        ...

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        """One of the two messages at the start came to its end."""
        ...

    def waiting(self, http: Address, smtp: Address) -> None:
        """From here on it is the developer's turn."""
        ...

    def step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        """A message did a step."""
        ...


async def develop(
    folder: DevelopmentFolder, plan: DevelopmentOptions, view: DevelopmentView
) -> bool:
    """Run the development relay until it is done, or told to stop by a signal; whether it came to
    the end of what `plan` asks for. Raises BrokenRelayError when a room has ended by itself.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemon = _compose(write_config(folder, http=plan.http, smtp=plan.smtp), plan.hosts)
    daemon.on_fault = stop.set
    try:
        await daemon.start()
        done = await _unless(stop, _Session(daemon, folder, plan=plan, view=view).run())
    finally:
        await daemon.stop()
    if daemon.fault:
        raise BrokenRelayError(daemon.fault)
    return done


def write_config(folder: DevelopmentFolder, *, http: Address, smtp: Address) -> Settings:
    """Write the configuration for these addresses and load it, as any other."""
    policies = '"' + str(shipped("policies")).replace("\\", "\\\\").replace('"', '\\"') + '"'
    folder.write("accounts.toml", _ACCOUNTS.format(domain=DOMAIN))
    folder.write(
        "relay.toml", _CONFIG.format(domain=DOMAIN, http=http, smtp=smtp, policies=policies)
    )
    return load(folder.config, {})


def _compose(settings: Settings, hosts: tuple[str, ...]) -> Daemon:
    """Return a daemon that asks no DNS and makes accounts as they log in.

    It checks Host: to make an account is so easy that a web page of another site could do it, if it
    resolved its own name to this machine.
    """
    rules = load_rules(settings.policy.directory, local_domains=settings.mailboxes.domains)
    sources = RelayDependencies(
        DevelopmentAccounts(), lambda: rules, resolver=NoResolver(), hosts=hosts
    )
    return compose(settings, sources)


async def _unless(stop: asyncio.Event, work: Any) -> bool:
    """Do `work` unless told to stop before it is done; whether it was done."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if done:
        working.result()
    return done


class _Session:
    """What happens while it runs."""

    def __init__(
        self,
        daemon: Daemon,
        folder: DevelopmentFolder,
        *,
        plan: DevelopmentOptions,
        view: DevelopmentView,
    ) -> None:
        self._daemon = daemon
        self._folder = folder
        self._plan = plan
        self._view = view

    async def run(self) -> None:
        http, smtp = self._daemon.http_servers[0].bound[0], self._daemon.smtp_servers[0].address
        write_config(self._folder, http=http, smtp=smtp)  # with the ports that were really taken
        self._view.listening(http, smtp)
        follower = Follower(self._daemon, self._view.step)
        await follower.look(quietly=True)  # a folder given by --dir has the mail of earlier runs
        follower.ignore(await demonstrate(self._daemon, self._view.demonstrated))
        if self._plan.once:
            return
        if self._plan.ready_file is not None:
            write_ready_file(self._plan.ready_file, self._daemon)
        self._view.waiting(http, smtp)
        await follower.run(until_settled=self._plan.exit_after)
