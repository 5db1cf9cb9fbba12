"""The test kit for asynchronous tests: the methods of Relay that wait, as coroutines."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from relay.client import DraftToSend
from relay.testing.internet import RemoteMessage, SimulatedNetwork, SiteScenario
from relay.testing.message import WAIT_S, Message
from relay.testing.places import RelayPlaces
from relay.testing.running import AsyncVirtualClock, RunningRelay
from relay.testing.waiting import SETTLE_S, Pattern, Wanted, checked_address

Result = TypeVar("Result")


class AsyncRelay(RelayPlaces):
    """What `async with Relay()` returns; AsyncRelay(relay) is the same relay for coroutines.

    `state`, `journey` and `bounce` of its messages are read as they are, without a wait: call
    settle() before.
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
        return await _in_relay(self.running, self.running.arrived(None, settles=False))

    async def settle(self, timeout: float = SETTLE_S) -> None:  # noqa: ASYNC109
        """See Relay.settle()."""
        __tracebackhide__ = True
        await _in_relay(self.running, self.running.observer.settle(timeout))

    async def assert_no_more_mail(self, timeout: float = SETTLE_S) -> None:  # noqa: ASYNC109
        """See Relay.assert_no_more_mail()."""
        __tracebackhide__ = True
        await _in_relay(self.running, self.running.assert_no_more(timeout))

    async def reset(self) -> None:
        """See Relay.reset()."""
        await _in_relay(self.running, self.scenario.reset())

    async def check(self) -> None:
        """See Relay.check()."""
        __tracebackhide__ = True
        if self.internet.strict:
            await _in_relay(self.running, self.scenario.check(SETTLE_S))


class AsyncInternet(SimulatedNetwork):
    """The simulated internet, for coroutines."""

    def domain(self, name: str) -> "AsyncRemoteSite":
        """See Internet.domain()."""
        return AsyncRemoteSite(self._scenario, name)

    async def messages(self) -> list[RemoteMessage]:
        """See Internet.messages()."""
        return await _in_relay(self._scenario.running, self._scenario.received())


class AsyncRemoteSite(SiteScenario):
    """A remote domain, for coroutines."""

    async def messages(self) -> list[RemoteMessage]:
        """See RemoteSite.messages()."""
        return await _in_relay(self._scenario.running, self._scenario.received(self.name))

    async def wait_for(
        self,
        *,
        subject: Pattern | None = None,
        sender: Pattern | None = None,
        timeout: float = WAIT_S,  # noqa: ASYNC109
    ) -> RemoteMessage:
        """See RemoteSite.wait_for()."""
        __tracebackhide__ = True
        wanted = Wanted(f"*@{self.name}", subject, sender)
        work = self._scenario.wait(self.name, wanted, timeout)
        return await _in_relay(self._scenario.running, work)


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
        wanted = Wanted(self.address, subject, sender)
        work = self._running.wait_for(wanted, timeout, settles=False)
        return await _in_relay(self._running, work)

    async def mark_read(self, message: Message) -> None:
        """See Mailbox.mark_read()."""
        await asyncio.to_thread(self._running.mark_read, self.address, message)

    async def messages(self) -> list[Message]:
        """See Mailbox.messages()."""
        return await _in_relay(self._running, self._running.arrived(self.address, settles=False))


async def _in_relay(running: RunningRelay, work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the relay's loop, and wait for it in this one."""
    __tracebackhide__ = True  # pytest shows the line of the test
    try:
        return await asyncio.wrap_future(running.thread.submit(work))
    except AssertionError as error:
        raise error.with_traceback(None) from None
