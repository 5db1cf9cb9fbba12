"""A running relay of the test kit: the code that Relay and AsyncRelay share."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from relay.base import running_relay
from relay.base.message.address import own_mailbox, untagged
from relay.base.running_relay import DraftToSend
from relay.base.socket_address import Address
from relay.development.accounts import DOMAIN
from relay.development.mail_access.dovecot import find_dovecot
from relay.development.options import DevelopmentOptions
from relay.development.relay import DevelopmentRelay
from relay.operation.app.development_folder import DevelopmentFolder
from relay.store.journeys.document import Journey
from relay.testing.arrivals import ArrivedMessage
from relay.testing.message import Bounce, Message, MessageSource
from relay.testing.observer import Observer
from relay.testing.relay_thread import LOG_NAME, RelayThread, new_state_folder
from relay.testing.waiting import Wanted, search_of

Result = TypeVar("Result")
_LOOPBACK = "127.0.0.1"
# The state is in memory: a large reserve would only waste it.
_IN_MEMORY = {"pressure": {"disk_free": "8 MiB"}}


@dataclass(frozen=True, slots=True)
class RelayOptions:
    """Differences from `relay dev`. `policies` are a directory, or texts by file name."""

    config: Mapping[str, Any]
    policies: Path | str | Mapping[str, str]
    domains: tuple[str, ...]
    ca_dir: Path | None

    def compose(self, folder: DevelopmentFolder) -> DevelopmentRelay:
        """Compose a relay in `folder`. Raises SettingsError, OSError."""
        rules = self.policies
        if isinstance(rules, Mapping):
            texts, rules = rules, folder.path / "policies"
            rules.mkdir()
            for name, text in texts.items():
                (rules / Path(name).with_suffix(".toml").name).write_text(text)
        free = Address(_LOOPBACK, 0)
        options = DevelopmentOptions(
            http=free,
            https=free,
            smtp=free,
            submission=free,
            submissions=free,
            imap=None if find_dovecot().why_not("imap") else free,
            pop3=None if find_dovecot().why_not("pop3") else free,
            ca_dir=self.ca_dir,
            rules=Path(rules),
            domains=self.domains or (DOMAIN,),
            overrides=_IN_MEMORY | dict(self.config),
            converts_in_threads=True,  # a child process takes 0.2 s to start
            indexes_ahead=False,  # a quarter of the time of a message, and few tests search
        )
        return DevelopmentRelay(folder, options)


class RunningRelay(RelayThread):
    """A relay in its thread, and the messages that a test has seen.

    Coroutines must run in the relay's event loop: see run() and awaited().
    """

    def __init__(self, options: RelayOptions) -> None:
        """Start the relay. Raises SettingsError, OSError; then nothing is left."""
        super().__init__(new_state_folder(), options.compose)
        self.start()
        self.observer = Observer(self.relay, log=self.folder.path / LOG_NAME)

    async def awaited(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the relay's loop, and wait for it in this one."""
        __tracebackhide__ = True  # pytest shows the line of the test
        try:
            return await asyncio.wrap_future(self.submit(work))
        except AssertionError as error:
            raise error.with_traceback(None) from None

    async def reset(self) -> None:
        """Remove all messages, the scenario and the record of seen messages."""
        await self.relay.reset()
        await self.relay.use_scenario({})
        self.observer.reset()

    def send(self, draft: DraftToSend, *, settles: bool) -> Message:
        """Send a message by the Graph API. Raises RejectedError."""
        graph_id = running_relay.send_by_graph(self.relay.addresses.http, draft, token=draft.sender)
        self.observer.sent(graph_id)

        def read() -> bytes:
            address = self.relay.addresses.http
            return running_relay.read_by_graph(address, graph_id, token=draft.sender)

        return Message(read, _RunningSource(self, graph_id, settles=settles))

    def mark_read(self, address: str, message: Message) -> None:
        """Mark a message in the mailbox of an address as read. Raises LookupError, OSError."""
        mailbox = untagged(own_mailbox(address))
        for recipient in message.journey.get("recipients", ()):
            if recipient["graph_id"] and untagged(own_mailbox(recipient["address"])) == mailbox:
                running_relay.mark_read_by_graph(
                    self.relay.addresses.http, recipient["graph_id"], token=address
                )
                return
        raise LookupError(f"{message!r} is not in the mailbox of {address}")

    async def arrived(self, address: str | None, *, settles: bool) -> list[Message]:
        """Return the messages of a mailbox, or of all; the test has seen them.

        Work in progress ends first, so that a message that was just sent is included.
        """
        await self.observer.rest()
        arrivals = await self.observer.arrivals(address)
        for arrival in arrivals:
            self.observer.saw(arrival.copy.name)
        return [self._message(arrival, settles=settles) for arrival in arrivals]

    async def wait_for(self, criteria: Wanted, timeout_s: float, *, settles: bool) -> Message:
        """Return the first message that matches and was not returned yet; raise WaitTimeout."""
        arrival = await self.observer.wait_for(criteria, timeout_s)
        return self._message(arrival, settles=settles)

    async def listed(self, conditions: Mapping[str, str], *, settles: bool) -> list[Message]:
        """Return the messages of the relay that match; the test has seen them. As arrived()."""
        search = search_of(conditions, self.relay.clock.time_us())
        await self.observer.rest()
        journeys = await self.observer.journeys(search)
        return [self._message_of(journey, settles=settles) for journey in journeys]

    async def wait_for_journey(
        self, conditions: Mapping[str, str], timeout_s: float, *, settles: bool
    ) -> Message:
        """See Observer.wait_for_journey(); the test has seen the message."""
        journey = await self.observer.wait_for_journey(conditions, timeout_s)
        return self._message_of(journey, settles=settles)

    async def assert_no_more(self, timeout_s: float) -> None:
        """Settle, then raise AssertionError if there is a message that the test has not seen."""
        await self.observer.settle(timeout_s)
        if text := await self.observer.unexpected():
            raise AssertionError(text)

    def source_of(self, key: str) -> MessageSource:
        """Return where journey and reports of a message are read; `key` is one of its ids."""
        return _RunningSource(self, key, settles=True)

    def _message_of(self, journey: Journey, *, settles: bool) -> Message:
        self.observer.saw(journey.key)
        self.observer.sent(journey.graph_id or "")  # its queue id may come later
        client = running_relay.ControlClient(self.relay.daemon.base.settings.control_socket)

        def read() -> bytes:
            with suppress(running_relay.ControlError):  # the content is gone
                return b"".join(client.download(f"/messages/{journey.key}/source"))
            return b""

        return Message(read, _RunningSource(self, journey.key, settles=settles))

    def _message(self, arrival: ArrivedMessage, *, settles: bool) -> Message:
        source = _RunningSource(self, arrival.copy.queue_id, settles=settles)
        return Message(lambda: arrival.copy.content, source)


class _RunningSource:
    """Reads the journey and the reports of one message (a MessageSource)."""

    def __init__(self, running: RunningRelay, key: str, *, settles: bool) -> None:
        """`key` is a queue id or Graph id, "" for a message without a journey."""
        self._running = running
        self._key = key
        self._settles = settles

    def journey(self) -> Journey | None:
        """See MessageSource. With `settles`, work in progress ends first."""
        return self._running.run(self._journey()) if self._key else None

    def reports(self) -> Sequence[Bounce]:
        """See MessageSource."""

        async def read() -> Sequence[Bounce]:
            return await self._running.observer.reports_of(await self._journey())

        return self._running.run(read()) if self._key else ()

    def wait_for_bounce(self, timeout_s: float) -> Bounce:
        """See MessageSource."""
        __tracebackhide__ = True
        return self._running.run(self._running.observer.wait_for_bounce(self._key, timeout_s))

    async def _journey(self) -> Journey | None:
        if self._settles:
            await self._running.observer.rest()
        return await self._running.observer.journey(self._key)


class RelayTime:
    """The time of a relay."""

    def __init__(self, running: RunningRelay) -> None:
        self._running = running

    @property
    def now(self) -> datetime:
        """The time of the relay, in UTC."""
        return datetime.fromtimestamp(self._running.relay.clock.time_us() / 1_000_000, UTC)


class VirtualClock(RelayTime):
    """The clock, for tests without coroutines."""

    def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """Advance the time from timer to timer, so that each event happens at its time.

        Returns when nothing is in progress. Time-outs of connections stay in real time. Raises
        ValueError for a time that is negative or too long, and AdvanceError if work does not end.
        """
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        self._running.run(self._running.relay.advance_clock(passed.total_seconds()))


class AsyncVirtualClock(RelayTime):
    """The clock, for coroutines."""

    async def advance(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0
    ) -> None:
        """See VirtualClock.advance()."""
        passed = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        await self._running.awaited(self._running.relay.advance_clock(passed.total_seconds()))
