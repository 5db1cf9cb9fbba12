"""The development relay (`relay dev`): the whole pipeline on loopback, without a file.

No name server is queried and no outbound connection opened: mail for other domains is captured
(RFC 6761 6.2: example.test never exists). Raises OSError for a port in use, AlreadyRunningError
for a directory in use, ForeignFolderError, and DemonstrationError or RejectedError if the
demonstration fails.
"""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from relay.accounts.development import DOMAIN, DevelopmentAccounts
from relay.app.compose import RelayDependencies, compose
from relay.app.configuration import ListenerCertificates
from relay.app.daemon import BrokenRelayError, Daemon, write_ready_file
from relay.app.demonstration import DemonstratedMessage, Follower, demonstrate
from relay.app.development_ca import LEAF_DAYS, RENEW_BEFORE_DAYS, open_authority
from relay.app.development_folder import DevelopmentFolder
from relay.certificates import ServerCertificate
from relay.clock import Clock, SystemClock
from relay.policy.rule_files import load_rules
from relay.routing.resolver import NoResolver
from relay.settings.environment import shipped
from relay.settings.reader import load
from relay.settings.tree import Address, CertificateFiles, Settings

_RENEWAL_CHECK_S = 3600.0

_CONFIG = """\
: its configuration, which the other commands find.
hostname = "relay.{domain}"
state_dir = "state"

[http]
listen = ["http://{http}", "{https}"]
tls = {{ certificate = "tls/relay.pem", key = "tls/relay.key" }}

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
    in addition to those of loopback, that the Host header of HTTP requests may contain, and that
    the certificate has. The certificate authority is kept in `ca_dir`; if that is None or cannot be
    written, it is that of this relay alone.
    """

    http: Address
    https: Address
    smtp: Address
    ca_dir: Path | None = None
    once: bool = False
    exit_after: int | None = None
    ready_file: Path | None = None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DevelopmentAddresses:
    """Where a development relay listens, and the file of its certificate authority."""

    http: Address
    https: Address
    smtp: Address
    ca: Path


class DevelopmentView(Protocol):
    """The output of `relay dev`: text or JSON."""

    def listening(self, addresses: DevelopmentAddresses) -> None:
        """All listeners are open."""
        ...

    def demonstrated(self, shown: DemonstratedMessage) -> None:
        """One of the two demonstration messages ended."""
        ...

    def waiting(self, addresses: DevelopmentAddresses) -> None:
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
    certificate = await asyncio.to_thread(DevelopmentCertificate, folder, options)
    token = secrets.token_urlsafe(32)
    settings = write_config(folder, http=options.http, https=options.https, smtp=options.smtp)
    daemon = _compose(settings, options.hosts, operator_token=token, certificate=certificate)
    daemon.on_fault = stop.set
    run = _DevelopmentRun(
        daemon,
        folder,
        options=options,
        view=view,
        facts={"ca": str(certificate.ca), "token": token, "dir": str(folder.path)},
    )
    try:
        await daemon.start()
        done = await _unless(stop, run.run(certificate))
    finally:
        await daemon.stop()
    if daemon.fault:
        raise BrokenRelayError(daemon.fault)
    return done


class DevelopmentCertificate:
    """The certificate of the HTTPS listener, and its authority."""

    def __init__(
        self, folder: DevelopmentFolder, options: DevelopmentOptions, *, clock: Clock | None = None
    ) -> None:
        """Issue it. Blocks. Raises OSError."""
        self._folder = folder.path / "tls"
        self._hosts = (*options.hosts, options.https.host)
        self._clock = clock or SystemClock()
        for directory in filter(None, (options.ca_dir, folder.path / "ca")):
            try:
                self._authority = open_authority(directory, self._hosts, now=self._now())
                break
            except OSError:
                if directory != options.ca_dir:
                    raise
        self.ca = self._authority.certificate
        self.files = self._issue()
        self.server = ServerCertificate(self.files.certificate, self.files.key)

    async def keep_valid(self) -> None:
        """Replace it before it expires; does not return."""
        while True:
            await self._clock.sleep(_RENEWAL_CHECK_S)  # sleeps: the clock of the machine may jump
            if self._now() >= self._renew_at:
                with contextlib.suppress(OSError):  # the disk may be full: tries again
                    await asyncio.to_thread(self._renew)

    def _renew(self) -> None:
        files = self._issue()
        now_s = self._clock.time_us() / 1_000_000
        pair = self.server.new_pair(files.certificate, files.key, now_s=now_s)
        if pair is not None:
            self.server.use(pair)

    def _issue(self) -> CertificateFiles:
        now = self._now()
        files = self._authority.issue(self._folder, self._hosts, now=now)
        self._renew_at = now + timedelta(days=LEAF_DAYS - RENEW_BEFORE_DAYS)
        return files

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time_us() // 1_000_000, UTC)


def write_config(
    folder: DevelopmentFolder, *, http: Address, https: Address, smtp: Address
) -> Settings:
    """Write the configuration for these addresses, and load it."""
    policies = '"' + str(shipped("policies")).replace("\\", "\\\\").replace('"', '\\"') + '"'
    folder.write("accounts.toml", _ACCOUNTS.format(domain=DOMAIN))
    folder.write(
        "relay.toml",
        _CONFIG.format(domain=DOMAIN, http=http, https=https, smtp=smtp, policies=policies),
    )
    return load(folder.config, {})


def _compose(
    settings: Settings,
    hosts: tuple[str, ...],
    *,
    operator_token: str,
    certificate: DevelopmentCertificate,
) -> Daemon:
    """Return a daemon that queries no DNS and creates accounts when they log in.

    It checks the Host header: otherwise a web page of another site could create an account, by DNS
    rebinding.
    """
    rules = load_rules(settings.policy.directory, local_domains=settings.mailboxes.domains)
    sources = RelayDependencies(
        DevelopmentAccounts(operator_token=operator_token), lambda: rules,
        resolver=NoResolver(), hosts=hosts,
        certificates=ListenerCertificates((None,), certificate.server),
    )  # fmt: skip
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
        facts: Mapping[str, str],
    ) -> None:
        """`facts` are for the ready file."""
        self._facts = facts
        self._daemon = daemon
        self._folder = folder
        self._options = options
        self._view = view

    async def run(self, certificate: DevelopmentCertificate) -> None:
        renewal = asyncio.create_task(certificate.keep_valid())
        try:
            await self._show(certificate.ca)
        finally:
            renewal.cancel()

    async def _show(self, ca: Path) -> None:
        (http, https), smtp = self._daemon.http_servers[0].bound, self._daemon.smtp_servers[0]
        listening = DevelopmentAddresses(http, https, smtp.address, ca)
        write_config(  # with the actual ports
            self._folder, http=http, https=https, smtp=smtp.address
        )
        self._view.listening(listening)
        follower = Follower(self._daemon, self._view.step)
        await follower.update(quietly=True)  # with --dir there may be mail of earlier runs
        follower.ignore(await demonstrate(self._daemon, self._view.demonstrated))
        if self._options.once:
            return
        if self._options.ready_file is not None:
            write_ready_file(self._options.ready_file, self._daemon, self._facts)
        self._view.waiting(listening)
        await follower.run(until_settled=self._options.exit_after)
