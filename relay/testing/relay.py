"""A relay within a test program: `with Relay() as relay`, and the same with `async with`.

It runs in a thread with a separate event loop, on free ports of loopback, with its state in a
temporary directory. Nothing leaves loopback. All methods may be called from any thread.
A failed test leaves the journeys and sources of its messages, and the log.
"""

import asyncio
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from relay.base.running_relay import DraftToSend
from relay.testing.async_relay import AsyncRelay, RelayPlaces
from relay.testing.internet import Internet, InternetScenario
from relay.testing.message import WAIT_S, Message
from relay.testing.relay_thread import LOG_NAME
from relay.testing.running import RelayOptions, RunningRelay, VirtualClock
from relay.testing.waiting import SETTLE_S, Pattern, Wanted, checked_address, journey_lines


class Relay(RelayPlaces):
    """A development relay that runs within `with`. See docs/testing.md."""

    def __init__(
        self,
        *,
        config: Mapping[str, Any] | None = None,
        policies: Path | str | Mapping[str, str] | None = None,
        domains: str | Sequence[str] = (),
        ca_dir: Path | str | None = None,
    ) -> None:
        """`config` changes the development configuration, with the keys of relay.toml.

        `policies` is a directory of mail-flow rules, or their texts by file name; by default there
        are no rules. `domains` are the local domains, by default example.test. The certificate
        authority is stored in `ca_dir`, which must have no other; by default this relay has its
        own authority.
        """
        super().__init__(None)
        names = (domains,) if isinstance(domains, str) else tuple(domains)
        self._options = RelayOptions(
            config or {}, policies or {}, names, Path(ca_dir) if ca_dir else None
        )

    def __enter__(self) -> Self:
        self._started = InternetScenario(RunningRelay(self._options))
        self.internet = Internet(self.scenario)
        self.clock = VirtualClock(self.running)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        running = self.running
        try:
            if kind is None:
                self.check()
        finally:
            self._started = None
            running.stop()

    async def __aenter__(self) -> AsyncRelay:
        await asyncio.to_thread(self.__enter__)
        return AsyncRelay(self)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def send(
        self,
        sender: str,
        recipients: str | Sequence[str],
        subject: str = "",
        text: str = "",
        html: str = "",
        attachments: Sequence[tuple[str, bytes]] = (),
    ) -> Message:
        """Send a message as `sender`, by the Graph API. Raises RejectedError."""
        to = (recipients,) if isinstance(recipients, str) else tuple(recipients)
        draft = DraftToSend(sender, to, subject, text, tuple(attachments), html)
        return self.running.send(draft, settles=True)

    def mailbox(self, address: str) -> "Mailbox":
        """Return the mailbox of an address: mail that was delivered, captured or accepted for it.

        Raises ValueError if `address` is no address.
        """
        return Mailbox(self.running, checked_address(address))

    def messages(self) -> list[Message]:
        """Return the messages in all mailboxes, in the order of their arrival."""
        return self.running.run(self.running.arrived(None, settles=True))

    def journeys(self, **conditions: str) -> list[Message]:
        """Return the messages that the relay has taken, the oldest first, whatever became of them.

        The conditions `to`, `sender`, `subject`, `mailbox`, `state`, `kind` and `q` are those of
        GET /relay/v1/messages (docs/api.md). Raises ValueError, ApiError.
        """
        return self.running.run(self.running.listed(conditions, settles=True))

    def wait_for_journey(self, *, timeout: float = WAIT_S, **conditions: str) -> Message:
        """Return the oldest message of journeys() that no earlier wait returned.

        It has been attempted for all recipients, unless `state` is given: then a recipient is in
        this state. Raises WaitTimeout, ValueError, ApiError.
        """
        __tracebackhide__ = True
        work = self.running.wait_for_journey(conditions, timeout, settles=True)
        return self.running.run(work)

    def settle(self, timeout: float = SETTLE_S) -> None:
        """Return when nothing is queued, due or in progress. Raises WaitTimeout."""
        __tracebackhide__ = True
        self.running.run(self.running.observer.settle(timeout))

    def assert_no_more_mail(self, timeout: float = SETTLE_S) -> None:
        """Settle, then raise AssertionError if there is a message that the test has not seen.

        The test has seen the messages that it sent with send(), and those that a wait, a list or
        `bounce` returned.
        """
        __tracebackhide__ = True
        self.running.run(self.running.assert_no_more(timeout))

    def check(self) -> None:
        """Raise AssertionError for mail that `internet.strict` forbids, like the end of `with`."""
        __tracebackhide__ = True
        if self.internet.strict:
            self.running.run(self.scenario.check(SETTLE_S))

    def reset(self) -> None:
        """Remove all messages, and the description of the internet.

        The clock is not changed. relay/development/removal.py does it; the pytest plugin calls this
        before each test that uses the relay of the session.
        """
        self.running.run(self.scenario.reset())


class Mailbox:
    """The messages of one address."""

    def __init__(self, running: RunningRelay, address: str) -> None:
        self._running = running
        self.address = address

    def wait_for(
        self,
        *,
        subject: Pattern | None = None,
        sender: Pattern | None = None,
        timeout: float = WAIT_S,
    ) -> Message:
        """Return the first message that matches and that no earlier wait returned.

        A pattern matches the whole value in any case; `*` is any text, `?` one character. It may
        also be a compiled regular expression. `sender` is the reverse-path or an address in From.
        Raises WaitTimeout.
        """
        __tracebackhide__ = True
        criteria = Wanted(self.address, subject, sender)
        return self._running.run(self._running.wait_for(criteria, timeout, settles=True))

    def mark_read(self, message: Message) -> None:
        """Mark a message in this mailbox as read by the Graph API, like a mail program.

        If it asks for a read receipt, its sender gets one. Raises LookupError if the message is not
        in this mailbox.
        """
        self._running.mark_read(self.address, message)

    def messages(self) -> list[Message]:
        """Return all messages, in the order of their arrival."""
        return self._running.run(self._running.arrived(self.address, settles=True))


_SHOWN_MAX = 20
_NAME_CHARACTERS_MAX = 40


def write_artifacts(relay: Relay, folder: Path) -> str:
    """Write the artifacts into a new folder, and return the text for the report. Never raises."""
    try:
        return _write(relay, folder)
    except Exception as error:  # noqa: BLE001 - the test has failed already, for its own reason
        return f"the messages of this test were not kept: {error!r}"


def _write(relay: Relay, folder: Path) -> str:
    running = relay.running
    folder.mkdir(parents=True)
    journeys = running.run(running.observer.journeys())
    arrivals = running.run(running.observer.arrivals())
    for number, journey in enumerate(journeys, start=1):
        name = f"{number:02}-{_file_name(journey.subject)}"
        document = msgspec.json.format(msgspec.json.encode(journey), indent=1)
        (folder / f"{name}.json").write_bytes(document)
    for number, arrival in enumerate(arrivals, start=1):
        name = f"{number:02}-{_file_name(arrival.copy.recipient)}-{_file_name(arrival.subject)}"
        (folder / f"{name}.eml").write_bytes(arrival.copy.content)
    shutil.copyfile(running.folder.path / LOG_NAME, folder / LOG_NAME)
    lines = [line for journey in journeys[-_SHOWN_MAX:] for line in journey_lines(journey)]
    return "\n".join([*lines, f"journeys and messages: {folder}"])


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9@._-]+", "-", text).strip("-")[:_NAME_CHARACTERS_MAX] or "message"
