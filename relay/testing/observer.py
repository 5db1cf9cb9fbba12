"""Observe a running relay from its event loop: arrived messages, messages in flight, seen messages.

A test has seen a message if a wait or a list returned it, or if the test sent it. A message that a
wait returned does not end a later wait.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from relay.base.observe.metric_samples import total
from relay.development.relay import DevelopmentRelay
from relay.operation.app.settling import UnsettledError
from relay.store.journeys.document import Journey
from relay.store.journeys.message_list import MAIL, MessageSearch, in_flight, nearest
from relay.testing import waiting
from relay.testing.arrivals import ArrivedMessage, MailboxFiles, MessageCopy
from relay.testing.frameworks import django_outbox
from relay.testing.message import Bounce, read_reports
from relay.transport.refusals.refusal import PAGE_MAX, RefusalSearch

_ALL_MAIL = MessageSearch(kind=MAIL)
_JOURNEYS_MAX = 1000
_LOG_LINES_MAX = 10
_COMPARED_MAX = 30  # messages that a wait without result is compared with
_UNTRIED = {"converting", "queued"}
_REST_S = 5.0
_LOG_BYTES_MAX = 16 * 1024


class Observer:
    """What the test kit knows about a relay. Its coroutines must run in the relay's event loop."""

    def __init__(self, relay: DevelopmentRelay, *, log: Path) -> None:
        self._relay = relay
        self._daemon = relay.daemon
        self._log = log
        self._log_start = 0
        self._connections_before = 0  # the last reset
        self.files = MailboxFiles(relay.daemon)
        self._taken: set[str] = set()  # keys of copies, names of journeys: a wait returned them
        self._seen: set[str] = set()  # names of messages that a wait or a list returned
        self._sent: set[str] = set()  # Graph ids of messages that the test sent or has listed
        self._final: dict[str, Journey] = {}  # journeys that do not change any more

    def sent(self, graph_id: str) -> None:
        """Record a message that the test sent itself."""
        self._sent.add(graph_id)

    def saw(self, name: str) -> None:
        """Record a message that the test has seen, by its queue id or MessageCopy.name."""
        self._seen.add(name)

    async def journey(self, key: str) -> Journey | None:
        """Return the journey of a message, None if it is not known."""
        return await self._daemon.base.journeys.journey(key, account=None)

    async def arrivals(self, address: str | None = None) -> list[ArrivedMessage]:
        """Return the messages that arrived for an address, or for all, in order of arrival."""
        arrived: list[ArrivedMessage] = []
        for copy in await asyncio.to_thread(self.files.copies, address):
            arrival = ArrivedMessage(copy, await self._journey_of(copy))
            if arrival.has_arrived:
                arrived.append(arrival)
        return arrived

    async def wait_for(self, criteria: waiting.Wanted, timeout_s: float) -> ArrivedMessage:
        """Return the first message that matches and that no wait returned; raise WaitTimeout."""
        async for _ in self.looks(timeout_s):
            for arrival in await self.arrivals(criteria.address):
                if arrival.copy.key not in self._taken and criteria.matches(arrival):
                    self._taken.add(arrival.copy.key)
                    self.saw(arrival.copy.name)
                    return arrival
        raise waiting.WaitTimeout(waiting.timeout_text(criteria, timeout_s, await self.observed()))

    async def wait_for_journey(self, conditions: Mapping[str, str], timeout_s: float) -> Journey:
        """Return the oldest message that matches and that no wait returned, after an attempt for
        all recipients unless a state is wanted. Raises WaitTimeout.
        """
        search = waiting.search_of(conditions, self._relay.clock.time_us())
        journeys = self._daemon.base.journeys
        async for _ in self.looks(timeout_s):
            for journey in await self.journeys(search):
                states = {recipient.state for recipient in journey.recipients}
                name = journey.submission_id or journey.key
                if name not in self._taken and (search.state or not states & _UNTRIED):
                    self._taken.add(name)
                    return journey
        near = nearest(search, *await journeys.near(search, account=None, limit=_COMPARED_MAX))
        expected = f"message with {conditions} within {timeout_s:g} s"
        raise waiting.WaitTimeout(waiting.no_journey_text(expected, near, await self.observed()))

    async def wait_for_bounce(self, key: str, timeout_s: float) -> Bounce:
        """Return the report of a message's failure; raise WaitTimeout."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s  # real time: a test waits
        seconds: float | None = timeout_s
        while True:
            count = self._daemon.base.changes.count
            journey = await self.journey(key) if key else None
            bounces = [report for report in await self.reports_of(journey) if report.action]
            if bounces and bounces[0].action == "failed":
                return bounces[0]
            if seconds is None:  # the message and its report have ended
                break
            if journey is not None and not journey.is_there:
                if not await self.changed(count, deadline_s):
                    break
                continue
            try:
                left_s = deadline_s - loop.time()  # real time: as above
                await self._relay.settle(max(0.0, left_s))
            except UnsettledError:
                break
            seconds = None
        actions = [bounce.action for bounce in bounces]
        raise waiting.WaitTimeout(waiting.no_bounce_text(journey, seconds=seconds, actions=actions))

    async def looks(self, timeout_s: float) -> AsyncIterator[None]:
        """Yield at once and after each change of the relay, until the time has passed."""
        deadline_s = asyncio.get_running_loop().time() + timeout_s  # real time: a test waits
        is_in_time = True
        while is_in_time:
            count = self._daemon.base.changes.count
            yield
            is_in_time = await self.changed(count, deadline_s)

    async def changed(self, count: int, deadline_s: float) -> bool:
        """Wait until more than `count` changes have happened; False: the deadline came first."""
        try:
            async with asyncio.timeout_at(deadline_s):  # real time: a test waits
                await self._daemon.base.changes.wait_beyond(count)
        except TimeoutError:
            return False
        return True

    async def settle(self, timeout_s: float) -> None:
        """Return when nothing is queued, due or in progress; raise WaitTimeout."""
        try:
            await self._relay.settle(timeout_s)
        except UnsettledError as error:
            lines = map(waiting.journey_lines, in_flight(await self.journeys()))
            raise waiting.WaitTimeout("\n".join([str(error), *chain(*lines)])) from None

    async def rest(self) -> None:
        """Wait until work in progress has ended, for a few seconds at most."""
        with suppress(UnsettledError):
            await self._relay.settle(_REST_S)

    async def observed(self) -> waiting.Observed:
        """Return the state that the text of a failed wait shows."""
        log = await asyncio.to_thread(self._last_log_lines)
        page = await self._daemon.base.refusals.page(RefusalSearch(limit=PAGE_MAX))
        return waiting.Observed(
            await self.arrivals(),
            await self.journeys(),
            frozenset(self._taken),
            tuple(log),
            page.refused,
            self._connections() - self._connections_before,
            django_outbox(),
        )

    async def journeys(self, search: MessageSearch = _ALL_MAIL) -> list[Journey]:
        """Return the journeys that match, by default those of all messages except reports, the
        oldest first.
        """
        journeys = self._daemon.base.journeys
        return (await journeys.search(search, account=None, limit=_JOURNEYS_MAX)).messages[::-1]

    async def unexpected(self) -> str:
        """Return the text about mail that the test has not seen, "" for none.

        Messages that have arrived in any mailbox, including reports, and messages in flight.
        """
        names: set[str] = set()
        lines: list[str] = []
        journeys = await self.journeys()
        own = {journey.id or "" for journey in journeys if journey.graph_id in self._sent}
        for arrival in await self.arrivals():
            name = arrival.copy.name
            if name not in self._seen | own | names:
                lines.append(waiting.arrival_line(arrival))
            names.add(name)
        for journey in in_flight(journeys):
            name = journey.id or ""
            if journey.graph_id not in self._sent and name not in self._seen | names:
                lines.append("; ".join(waiting.journey_lines(journey)))
        return waiting.unexpected_text(lines) if lines else ""

    async def reports_of(self, journey: Journey | None) -> list[Bounce]:
        """Return the reports and read receipts about a message, failures first.

        They are in the sender's mailbox.
        """
        bounces: list[Bounce] = []
        if journey is None or not journey.message_id or not journey.sender:
            return bounces
        for arrival in await self.arrivals(journey.sender):
            copy = arrival.copy
            if reports := read_reports(copy.content, copy.eml, about=journey.message_id):
                self.saw(copy.name)
                bounces += reports
        return sorted(bounces, key=lambda bounce: bounce.action != "failed")

    def reset(self) -> None:
        """Forget everything: the relay was emptied."""
        self.files.forget()
        self._taken.clear()
        self._seen.clear()
        self._sent.clear()
        self._final.clear()
        self._log_start = self._log.stat().st_size
        self._connections_before = self._connections()

    async def _journey_of(self, copy: MessageCopy) -> Journey | None:
        key = copy.queue_id
        if key in self._final:
            return self._final[key]
        journey = await self.journey(key) if key else None
        if journey and journey.is_final:
            self._final[key] = journey
        return journey

    def _connections(self) -> int:
        by_http = sum(server.accepted for server in self._daemon.http_servers)
        return by_http + int(total(self._daemon.base.metrics.smtp_sessions))

    def _last_log_lines(self) -> Sequence[str]:
        with self._log.open("rb") as file:
            end = file.seek(0, 2)
            file.seek(max(self._log_start, end - _LOG_BYTES_MAX))
            return file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES_MAX:]
