"""Every new step of every message, as it happens: what `relay dev` prints.

On the path: a reader of journeys, woken by changes.
Holds: each step once, in the order of time; memory and each look are bounded, so a flood of more
    than LOOKED_AT_MAX messages at once shows its newest only.
Fails: never.
Standards: none.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from relay.app.daemon import Daemon
from relay.message.lifecycle import FINAL, State

LOOKED_AT_MAX = 1000
_LOOKED_AT = 50  # at first; more when all of them are new
_PAUSE_S = 0.1  # so that a burst is read once

Show = Callable[[dict[str, Any], dict[str, Any]], None]


@dataclass(slots=True)
class _Seen:
    """What is known of a message: its steps by digest, since they may become known in any order."""

    steps: set[int] = field(default_factory=set)
    settled: bool = False


class Follower:
    """Remembers what was shown. `show` gets the journey and the step."""

    def __init__(self, daemon: Daemon, show: Show) -> None:
        self._daemon = daemon
        self._show = show
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._ignored: frozenset[str] = frozenset()
        self._settled = 0

    def ignore(self, names: frozenset[str]) -> None:
        """Neither show nor count these messages; `names` are submission ids or queue ids."""
        self._ignored = names

    async def run(self, *, until_settled: int | None = None) -> None:
        """Follow until cancelled, or until so many messages have come to an end.

        A captured message has: nothing more happens to it. Reports do not count.
        """
        while True:
            count = self._daemon.changes.count
            await self.look()
            if until_settled is not None and self._settled >= until_settled:
                return
            await self._daemon.changes.beyond(count)
            await asyncio.sleep(_PAUSE_S)

    async def look(self, *, quietly: bool = False) -> None:
        """Show what is new; `quietly` only remembers it."""
        for journey in reversed(await self._recent()):
            name = name_of(journey)
            if name in self._ignored:
                continue
            seen = self._seen.setdefault(name, _Seen())
            self._seen.move_to_end(name)
            for step in sorted(journey["steps"], key=lambda step: str(step["at"])):
                digest = hash(msgspec.json.encode(step))
                if digest not in seen.steps and not quietly:
                    self._show(journey, step)
                seen.steps.add(digest)
            if not seen.settled and is_settled(journey):
                seen.settled = True
                self._settled += not quietly
        while len(self._seen) > 2 * LOOKED_AT_MAX:
            self._seen.popitem(last=False)

    async def _recent(self) -> list[dict[str, Any]]:
        """The newest messages, back to one that was seen before."""
        limit = _LOOKED_AT
        while True:
            found = await self._daemon.journeys.recent(account=None, state="", limit=limit)
            names = {name_of(journey) for journey in found}
            if len(found) < limit or limit >= LOOKED_AT_MAX or names & self._seen.keys():
                return found
            limit = min(4 * limit, LOOKED_AT_MAX)


def name_of(journey: dict[str, Any]) -> str:
    """Return the submission id of a message, or the queue id of one that came by SMTP."""
    return str(journey["submission_id"] or journey["id"])


def is_settled(journey: dict[str, Any]) -> bool:
    """Whether a message, if it is no report, has come to where nothing more happens by itself."""
    states = [one["state"] for one in journey["recipients"]]
    ends = FINAL | {State.CAPTURED}
    return bool(journey["sender"] and states) and all(state in ends for state in states)
