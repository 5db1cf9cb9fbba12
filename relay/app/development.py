"""The development relay (`relay dev`): the whole pipeline on loopback, without a file.

No name server is queried and no outbound connection opened: mail for other domains is captured
(RFC 6761 6.2: example.test never exists). Raises OSError for a port in use, AlreadyRunningError
for a directory in use, ForeignFolderError, and DemonstrationError or RejectedError if the
demonstration fails.
"""

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relay.accounts.development import DOMAIN, DevelopmentAccounts
from relay.app.compose import RelayDependencies, compose
from relay.app.daemon import BrokenRelayError, Daemon, write_ready_file
from relay.app.demonstration import DemonstratedMessage, Follower, demonstrate
from relay.app.development_folder import DevelopmentFolder
from relay.policy.rule_files import load_rules
from relay.routing.resolver import NoResolver
from relay.settings.environment import shipped
from relay.settings.reader import load
from relay.settings.tree import Address, Settings

_CONFIG = """\
: its configuration, which the other commands find.
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
: the accounts that always exist; others are created when they log in.
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
    """The options of `relay dev`.

    `once` stops after the demonstration, `exit_after` after that many messages. `hosts` are names,
    in addition to those of loopback, that the Host header of HTTP requests may contain.
    """

    http: Address
    smtp: Address
    once: bool = False
    exit_after: int | None = None
    ready_file: Path | None = None
    hosts: tuple[str, ...] = ()


class DevelopmentView(Protocol):
    """The output of `relay dev`: text or JSON."""

    def listening(self, http: Address, smtp: Address) -> None:
        """All listeners are open."""
        ...

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        """One of the two demonstration messages ended."""
        ...

    def waiting(self, http: Address, smtp: Address) -> None:
        """The demonstration is over; messages of the developer are shown from now on."""
        ...

    def step(self, journey: dict[str, Any], step: dict[str, Any]) -> None:
        """A message made a step."""
        ...


async def develop(
    folder: DevelopmentFolder, options: DevelopmentOptions, view: DevelopmentView
) -> bool:
    """Run the development relay; return whether it completed before a signal stopped it.

    Raises BrokenRelayError if a task ended unexpectedly.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemon = _compose(write_config(folder, http=options.http, smtp=options.smtp), options.hosts)
    daemon.on_fault = stop.set
    try:
        await daemon.start()
        done = await _unless(
            stop, _DevelopmentRun(daemon, folder, options=options, view=view).run()
        )
    finally:
        await daemon.stop()
    if daemon.fault:
        raise BrokenRelayError(daemon.fault)
    return done


def write_config(folder: DevelopmentFolder, *, http: Address, smtp: Address) -> Settings:
    """Write the configuration for these addresses, and load it."""
    policies = '"' + str(shipped("policies")).replace("\\", "\\\\").replace('"', '\\"') + '"'
    folder.write("accounts.toml", _ACCOUNTS.format(domain=DOMAIN))
    folder.write(
        "relay.toml", _CONFIG.format(domain=DOMAIN, http=http, smtp=smtp, policies=policies)
    )
    return load(folder.config, {})


def _compose(settings: Settings, hosts: tuple[str, ...]) -> Daemon:
    """Return a daemon that queries no DNS and creates accounts when they log in.

    It checks the Host header: otherwise a web page of another site could create an account, by DNS
    rebinding.
    """
    rules = load_rules(settings.policy.directory, local_domains=settings.mailboxes.domains)
    sources = RelayDependencies(
        DevelopmentAccounts(), lambda: rules, resolver=NoResolver(), hosts=hosts
    )
    return compose(settings, sources)


async def _unless(stop: asyncio.Event, work: Any) -> bool:
    """Run `work` until it ends or `stop` is set; return whether it ended."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    done = working.done()
    for task in (working, stopping):
        task.cancel()
    await asyncio.gather(working, stopping, return_exceptions=True)
    if done:
        working.result()
    return done


class _DevelopmentRun:
    """The actions of the development relay between start and stop."""

    def __init__(
        self,
        daemon: Daemon,
        folder: DevelopmentFolder,
        *,
        options: DevelopmentOptions,
        view: DevelopmentView,
    ) -> None:
        self._daemon = daemon
        self._folder = folder
        self._options = options
        self._view = view

    async def run(self) -> None:
        http, smtp = self._daemon.http_servers[0].bound[0], self._daemon.smtp_servers[0].address
        write_config(self._folder, http=http, smtp=smtp)  # with the actual ports
        self._view.listening(http, smtp)
        follower = Follower(self._daemon, self._view.step)
        await follower.update(quietly=True)  # with --dir there may be mail of earlier runs
        follower.ignore(await demonstrate(self._daemon, self._view.demonstrated))
        if self._options.once:
            return
        if self._options.ready_file is not None:
            write_ready_file(self._options.ready_file, self._daemon)
        self._view.waiting(http, smtp)
        await follower.run(until_settled=self._options.exit_after)
