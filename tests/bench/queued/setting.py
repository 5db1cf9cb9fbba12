"""What is measured in: folders, clients and sinks, the DNS, and how much is asked of them.

Each relay has a folder of its own, with a copy of the filled spool or without one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.queued.filling import copied
from tests.bench.queued.instance import Instance
from tests.bench.queued.traffic import Sinks


@dataclass(frozen=True)
class Setting:
    """`scale` is 1, or less for a quick look; the times in the `filled` spool are from `made_us`."""

    folder: Path
    command: Sequence[str]
    sinks: Sinks
    dns: str
    filled: Path
    made_us: float
    scale: float
    rounds: int

    @property
    def messages(self) -> int:
        """How many messages a round has."""
        return max(1000, int(4000 * self.scale))

    def empty(self, name: str) -> Instance:
        """A relay without a queue."""
        return Instance(
            self.folder / name, command=self.command, dns=self.dns, port=self.sinks.port
        )  # fmt: skip

    def full(self, name: str, *, later_us: int = 0) -> Instance:
        """A relay with a copy of the filled spool, all of it due so much later."""
        relay = self.empty(name)
        target = relay.folder / "state" / "spool.sqlite"
        copied(self.filled, target, made_us=self.made_us, later_us=later_us)
        return relay
