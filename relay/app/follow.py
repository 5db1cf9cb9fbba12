"""Every new step of every message, as it happens: what `relay dev` prints.

On the path: a reader of journeys, woken by changes.
Holds: each step once; memory and each look are bounded, so a flood shows its newest only.
Fails: never.
Standards: none.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from relay.app.daemon import Daemon

_MESSAGES = 50
_REMEMBERED = 1000
_PAUSE_S = 0.1  # so that a burst is read once

Show = Callable[[dict[str, Any], dict[str, Any]], None]


class Follower:
    """Remembers what was shown. `show` gets the journey and the step."""

    def __init__(self, daemon: Daemon, show: Show) -> None:
        self._daemon = daemon
        self._show = show
        self._seen: OrderedDict[str, int] = OrderedDict()

    @property
    def messages(self) -> int:
        """How many messages were seen, up to what is remembered."""
        return len(self._seen)

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            count = self._daemon.changes.count
            await self.look()
            await self._daemon.changes.beyond(count)
            await asyncio.sleep(_PAUSE_S)

    async def look(self, *, quietly: bool = False) -> None:
        """Show what is new; `quietly` only remembers it."""
        journeys = await self._daemon.journeys.recent(account=None, state="", limit=_MESSAGES)
        for journey in reversed(journeys):
            name = journey["submission_id"] or journey["id"]
            steps = sorted(journey["steps"], key=lambda step: str(step["at"]))
            for step in steps[self._seen.get(name, 0) :]:
                if not quietly:
                    self._show(journey, step)
            self._seen[name] = len(steps)
            self._seen.move_to_end(name)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
