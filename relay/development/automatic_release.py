"""Release captured mail automatically: `relay dev --release-auto`.

Each message that is captured after the start is released to its recipients, if `--release-allow`
matches them. The command is that of a release by hand. It moves the recipients from the captured
entry in one transaction, so that a repeat finds nothing to release. Messages that were captured
before the start are not released.
"""

import asyncio

from relay.base.message.lifecycle import RecipientState
from relay.base.observe.logs import get_logger
from relay.operation.app.foundation import Foundation
from relay.store.journeys.event_feed import EventBatch
from relay.store.journeys.events import EventCursor
from relay.store.spool.queue_commands import Operation, QueueCommand, RouteLookup
from relay.store.spool.types import Selector, SpoolError

_log = get_logger("development")
_EVENTS_MAX = 500
_PAUSE_S = 0.02  # so that a burst is read once
_AFTER_FAULT_S = 1.0


class AutomaticRelease:
    """Releases messages that are captured after `cursor`, to where `route` leads."""

    def __init__(self, base: Foundation, route: RouteLookup, cursor: EventCursor) -> None:
        self._base = base
        self._route = route
        self._cursor = cursor
        self._seen = -1  # changes

    def in_progress(self) -> str:
        """Say whether a message may have been captured that is not released yet."""
        return "" if self._seen == self._base.changes.count else "captured mail to release"

    async def run(self) -> None:
        """Release until cancelled."""
        changes = self._base.changes
        while True:
            seen = changes.count
            try:
                batch = await self._base.feed.read(self._cursor, limit=_EVENTS_MAX)
                await self._release(batch)
            except (SpoolError, OSError) as error:
                _log.warning("captured mail not released yet", error=str(error))
                await asyncio.sleep(_AFTER_FAULT_S)  # real time: spares the disk
                continue
            self._cursor = batch.cursor
            if batch.is_complete:
                self._seen = seen
                await changes.wait_beyond(seen)
                await asyncio.sleep(_PAUSE_S)  # real time: spares the machine

    async def _release(self, batch: EventBatch) -> None:
        captured = {
            event.queue_id: None
            for _, _, event in batch.events
            if event.queue_id and event.state is RecipientState.CAPTURED
        }
        if not captured:
            return
        selector = Selector(ids=tuple(captured), state=RecipientState.CAPTURED)
        await self._base.spool.queue_admin.execute(
            QueueCommand(Operation.RELEASE, selector, "relay", why="--release-auto", to=self._route)
        )
        self._base.changes.notify()
