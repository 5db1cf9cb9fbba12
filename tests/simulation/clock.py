"""The time of a world as the relay reads it.

On the path: relay.clock.Clock of every process.
Holds: steady time goes on as the loop's; wall time may jump.
Fails: never.
Standards: none.
"""

from dataclasses import dataclass
from typing import Any

BEGINNING_US = 1_700_000_000_000_000


@dataclass
class WorldClock:
    """Of a world, which says how long it has been there and by how much wall time has jumped."""

    world: Any

    def time_us(self) -> int:
        return self._passed_us() + self.world.jumped_us

    def steady_us(self) -> int:
        return self._passed_us()

    def _passed_us(self) -> int:
        return BEGINNING_US + round(self.world.time() * 1_000_000)

    def monotonic(self) -> float:
        return 1000.0 + self.world.time()

    def busy_s(self) -> float:
        return 0.0
