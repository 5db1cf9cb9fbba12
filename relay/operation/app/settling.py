"""Wait until a relay is idle: nothing is queued and due, and nothing is in progress.

Mail that waits for a later time or for max_rate, is held or is captured does not count. A part
passes a submission, an acceptance or a claim on before it is idle, so one check of all parts misses
none. The check is repeated for some iterations of the event loop, because threads may just have
passed work to it.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from relay.delivery.scheduler import DeliveryScheduler
from relay.front_door.http.gateway import Gateway
from relay.store.journeys.event_feed import ChangeNotifier
from relay.submission.pickup.dispatch import Pickup
from relay.transport.ingress.smtp_server import SmtpServer

SETTLE_S = 60.0
_ITERATIONS = 8  # of the event loop, in a row, without anything in progress
_LOOK_S_FIRST = 0.001  # checks are repeated, because the notifier does not report all changes
_LOOK_S_MAX = 0.02
_QUIET_S = 0.2  # without a change: all work that is left may wait for a delayed host


class UnsettledError(Exception):
    """The relay was still busy at the time-out; the text says with what."""


@dataclass(frozen=True)
class Settling:
    """The rooms that may be busy. Each of `others` returns what else is in progress, or ""."""

    scheduler: DeliveryScheduler
    pickup: Pickup
    smtp_servers: Sequence[SmtpServer]
    graph: Gateway | None  # None: no program reaches it
    changes: ChangeNotifier
    others: list[Callable[[], str]]

    async def settle(
        self,
        timeout_s: float = SETTLE_S,
        *,
        is_delayed: Callable[[], bool] = lambda: False,
        has_ended: Callable[[], bool] = lambda: False,
    ) -> None:
        """Return when nothing is in progress, or `has_ended` returns True.

        Raises UnsettledError after `timeout_s`. While `is_delayed` returns True, a simulated host
        delays its answer. Then return also when nothing has changed for 0.2 s, because all work
        that is left may wait for that host.
        """
        loop = asyncio.get_running_loop()
        quiet_s = began_s = loop.time()  # real time: a client waits
        look_s, idle, before = _LOOK_S_FIRST, 0, (-1, "")
        while idle < _ITERATIONS and not has_ended():
            seen, busy = self.changes.count, "; ".join(self.in_progress())
            if not busy:
                idle += 1
                await asyncio.sleep(0)
                continue
            idle, now_s = 0, loop.time()  # real time: as above
            if (seen, busy) != before:
                before, quiet_s = (seen, busy), now_s
            if now_s - quiet_s >= _QUIET_S and is_delayed():
                return
            if now_s - began_s >= timeout_s:
                raise UnsettledError(f"still in progress after {timeout_s:g} seconds: {busy}")
            await self.changes.wait_beyond(seen, look_s)
            look_s = min(2 * look_s, _LOOK_S_MAX)

    def in_progress(self) -> Iterator[str]:
        """Yield a text for each kind of work that is in progress, or queued and due."""
        if self.graph is not None and (count := self.graph.changes_in_progress):
            yield f"HTTP requests that change something: {count}"
        if count := self.pickup.due_count:
            yield f"submissions to convert and submit: {count}"
        if count := sum(server.acceptances for server in self.smtp_servers):
            yield f"messages that are being accepted: {count}"
        if count := self.scheduler.claims_in_progress:
            yield f"queue entries in delivery: {count}"
        if self.scheduler.is_scanning:
            yield "a scan of the queue for entries that are due"
        yield from filter(None, (other() for other in self.others))
