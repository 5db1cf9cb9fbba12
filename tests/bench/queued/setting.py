"""What is measured in: relays, clients and sinks, the DNS, and how much is asked of them."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from relay.base.settings.tree import DeliverySettings
from relay.base.socket_address import Address
from tests.bench.queued.filling import copied
from tests.bench.queued.traffic import SINK, Sinks, refusing
from tests.support.dns_server import Zone
from tests.support.relay_process import RelayProcess

_LIVE, _DEAD = 100, 10_000


def zone() -> Zone:
    """Live hosts take mail; the dead ones, of the long queue, refuse each time."""
    found: Zone = {}
    hosts = {f"live{number}.test": SINK for number in range(_LIVE)}
    hosts |= {f"dead{number}.test": refusing(number) for number in range(_DEAD)}
    for domain, address in hosts.items():
        found[domain] = {"MX": [f"10 mx.{domain}"]}
        found[f"mx.{domain}"] = {"A": [address]}
    return found


class Instance(RelayProcess):
    """A relay that Python starts, so that a start takes what it takes a user."""

    began_s = 0.0

    def start(self, *, crash_at: str = "", wait: bool = True) -> Self:
        self.began_s = time.monotonic()
        return super().start(crash_at=crash_at, wait=wait)

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder)

    def resident_mb(self) -> float:
        """Its resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass(frozen=True)
class Setting:
    """`scale` is 1, or less for a quick look; the times in the `filled` spool are from `made_us`."""

    sinks: Sinks
    dns: Address
    filled: Path
    made_us: float
    scale: float
    rounds: int

    @property
    def messages(self) -> int:
        """How many messages a round has."""
        return max(1000, int(4000 * self.scale))

    def empty(self) -> Instance:
        """A relay without a queue."""
        retry = {"delivery": {"retry": DeliverySettings().retry}}
        own = {"PYTHONUNBUFFERED": "1"}  # it is not forked
        return Instance(dns=self.dns, mx_port=self.sinks.port, config=retry, environment=own)

    def full(self, *, later_us: int = 0) -> Instance:
        """A relay with a copy of the filled spool, all of it due so much later."""
        relay = self.empty()
        target = relay.folder / "state" / "spool.sqlite"
        copied(self.filled, target, made_us=self.made_us, later_us=later_us)
        return relay
