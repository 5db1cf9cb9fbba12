"""The test kit for asynchronous tests: the methods of Relay that wait, as coroutines.

RelayPlaces has the addresses of a relay of the kit, for all tests and the programs that they run.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from relay.base.running_relay import DraftToSend
from relay.base.socket_address import Address
from relay.development.cloud import cloud_config
from relay.development.mail_access.dovecot import find_dovecot
from relay.testing.internet import InternetScenario, RemoteMessage, SimulatedNetwork, SiteScenario
from relay.testing.message import WAIT_S, Message
from relay.testing.running import AsyncVirtualClock, RunningRelay
from relay.testing.waiting import SETTLE_S, Pattern, Wanted, checked_address


class HostAndPort(NamedTuple):
    """Where a server listens: `smtplib.SMTP(*relay.smtp)`."""

    host: str
    port: int


class RelayPlaces:
    """Where a relay listens, and what programs under test need to reach it."""

    def __init__(self, started: InternetScenario | None) -> None:
        self._started = started

    @property
    def scenario(self) -> InternetScenario:
        """The description of the simulated internet, for the other classes of the kit."""
        if self._started is None:
            raise RuntimeError("the relay does not run: use it within `with Relay() as relay`")
        return self._started

    @property
    def running(self) -> RunningRelay:
        """The relay, for the other classes of the kit."""
        return self.scenario.running

    @property
    def http_url(self) -> str:
        """The URL of HTTP, such as "http://127.0.0.1:40001"; the Graph API is under /v1.0."""
        at = self.running.relay.addresses.http
        return f"http://{at.host}:{at.port}"

    @property
    def https_url(self) -> str:
        """The URL of HTTPS; clients must trust `ca`."""
        at = self.running.relay.addresses.https
        assert at is not None  # the kit lets it listen
        return f"https://localhost:{at.port}"

    @property
    def ca(self) -> str:
        """The file of the certificate authority (PEM)."""
        return str(self.running.relay.addresses.ca)

    @property
    def smtp(self) -> HostAndPort:
        """Host and port of SMTP without TLS.

        A client needs no login. Each login is accepted, and may send from any address.
        """
        at = self.running.relay.addresses.smtp
        return HostAndPort(at.host, at.port)

    @property
    def submission(self) -> HostAndPort:
        """Host and port of SMTP with STARTTLS; clients must trust `ca`.

        The certificate has the names "localhost" and "127.0.0.1".
        """
        return _tls_address(self.running.relay.addresses.submission)

    @property
    def submissions(self) -> HostAndPort:
        """Host and port of SMTP with TLS from the first octet; see `submission`."""
        return _tls_address(self.running.relay.addresses.submissions)

    @property
    def imap(self) -> HostAndPort:
        """Host and port of IMAP without TLS: `imaplib.IMAP4(*relay.imap)`. A login is an address.

        Raises RuntimeError, which names Dovecot's package, where it is not installed.
        """
        return self._mail_access("imap")

    @property
    def pop3(self) -> HostAndPort:
        """Host and port of POP3 without TLS; see `imap`."""
        return self._mail_access("pop3")

    def _mail_access(self, name: str) -> HostAndPort:
        at = getattr(self.running.relay.addresses, name)
        if at is None:
            raise RuntimeError(f"relay.{name}: {find_dovecot().why_not(name)}")
        return HostAndPort(at.host, at.port)

    @property
    def operator_token(self) -> str:
        """A token that sees all messages and may change the queue."""
        return self.running.relay.token

    @property
    def as_cloud(self) -> dict[str, Any]:
        """The `config` of a relay whose mail leaves through this one, as through Microsoft 365."""
        started = self.running.relay
        return cloud_config(started.addresses.http, started.daemon.base.settings.mailboxes.domains)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for programs under test; docs/testing.md lists them."""
        host, port = self.smtp.host, str(self.smtp.port)
        url = f"smtp://{host}:{port}"
        return {
            "SMTP_HOST": host,
            "SMTP_PORT": port,
            "SMTP_URL": url,
            "EMAIL_HOST": host,
            "EMAIL_PORT": port,
            "EMAIL_URL": url,
            "MAIL_SERVER": host,
            "MAIL_PORT": port,
            "RELAY_URL": self.http_url,
            "RELAY_HTTPS_URL": self.https_url,
            "RELAY_TOKEN": self.operator_token,
            "RELAY_CA": self.ca,
            "RELAY_CONFIG": str(self.running.folder.config),
            "SSL_CERT_FILE": self.ca,
            "REQUESTS_CA_BUNDLE": self.ca,
            "NODE_EXTRA_CA_CERTS": self.ca,
        }

    def token(self, address: str) -> str:
        """Return a bearer token of an account, which is created when it is first used."""
        return address


def _tls_address(at: Address | None) -> HostAndPort:
    assert at is not None  # no port of the kit is left out
    return HostAndPort(at.host, at.port)


class AsyncRelay(RelayPlaces):
    """The result of `async with Relay()`. AsyncRelay(relay) is the same relay for coroutines.

    `state`, `journey` and `bounce` of its messages are read without waiting: call settle() before.
    """

    def __init__(self, relay: RelayPlaces) -> None:
        super().__init__(relay.scenario)
        self.internet = AsyncInternet(self.scenario)
        self.clock = AsyncVirtualClock(self.running)

    async def send(
        self,
        sender: str,
        recipients: str | Sequence[str],
        subject: str = "",
        text: str = "",
        html: str = "",
        attachments: Sequence[tuple[str, bytes]] = (),
    ) -> Message:
        """See Relay.send()."""
        to = (recipients,) if isinstance(recipients, str) else tuple(recipients)
        draft = DraftToSend(sender, to, subject, text, tuple(attachments), html)
        return await asyncio.to_thread(self.running.send, draft, settles=False)

    def mailbox(self, address: str) -> "AsyncMailbox":
        """See Relay.mailbox()."""
        return AsyncMailbox(self.running, checked_address(address))

    async def messages(self) -> list[Message]:
        """See Relay.messages()."""
        return await self.running.awaited(self.running.arrived(None, settles=False))

    async def journeys(self, **conditions: str) -> list[Message]:
        """See Relay.journeys()."""
        return await self.running.awaited(self.running.listed(conditions, settles=False))

    async def wait_for_journey(self, *, timeout: float = WAIT_S, **conditions: str) -> Message:  # noqa: ASYNC109
        """See Relay.wait_for_journey()."""
        __tracebackhide__ = True
        work = self.running.wait_for_journey(conditions, timeout, settles=False)
        return await self.running.awaited(work)

    async def settle(self, timeout: float = SETTLE_S) -> None:  # noqa: ASYNC109
        """See Relay.settle()."""
        __tracebackhide__ = True
        await self.running.awaited(self.running.observer.settle(timeout))

    async def assert_no_more_mail(self, timeout: float = SETTLE_S) -> None:  # noqa: ASYNC109
        """See Relay.assert_no_more_mail()."""
        __tracebackhide__ = True
        await self.running.awaited(self.running.assert_no_more(timeout))

    async def reset(self) -> None:
        """See Relay.reset()."""
        await self.running.awaited(self.scenario.reset())

    async def check(self) -> None:
        """See Relay.check()."""
        __tracebackhide__ = True
        if self.internet.strict:
            await self.running.awaited(self.scenario.check(SETTLE_S))


class AsyncInternet(SimulatedNetwork):
    """The simulated internet, for coroutines."""

    def domain(self, name: str) -> "AsyncRemoteSite":
        """See Internet.domain()."""
        return AsyncRemoteSite(self._scenario, name)

    async def messages(self) -> list[RemoteMessage]:
        """See Internet.messages()."""
        return await self._scenario.running.awaited(self._scenario.received())


class AsyncRemoteSite(SiteScenario):
    """A remote domain, for coroutines."""

    async def messages(self) -> list[RemoteMessage]:
        """See RemoteSite.messages()."""
        return await self._scenario.running.awaited(self._scenario.received(self.name))

    async def wait_for(
        self,
        *,
        subject: Pattern | None = None,
        sender: Pattern | None = None,
        timeout: float = WAIT_S,  # noqa: ASYNC109
    ) -> RemoteMessage:
        """See RemoteSite.wait_for()."""
        __tracebackhide__ = True
        criteria = Wanted(f"*@{self.name}", subject, sender)
        work = self._scenario.wait(self.name, criteria, timeout)
        return await self._scenario.running.awaited(work)


class AsyncMailbox:
    """The messages of one address."""

    def __init__(self, running: RunningRelay, address: str) -> None:
        self._running = running
        self.address = address

    async def wait_for(
        self,
        *,
        subject: Pattern | None = None,
        sender: Pattern | None = None,
        timeout: float = WAIT_S,  # noqa: ASYNC109
    ) -> Message:
        """See Mailbox.wait_for()."""
        __tracebackhide__ = True
        criteria = Wanted(self.address, subject, sender)
        work = self._running.wait_for(criteria, timeout, settles=False)
        return await self._running.awaited(work)

    async def mark_read(self, message: Message) -> None:
        """See Mailbox.mark_read()."""
        await asyncio.to_thread(self._running.mark_read, self.address, message)

    async def messages(self) -> list[Message]:
        """See Mailbox.messages()."""
        return await self._running.awaited(self._running.arrived(self.address, settles=False))
