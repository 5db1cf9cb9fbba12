"""The DNS of the benchmark, in a process of its own: who is alive, and how the dead are dead.

Live hosts take mail; of the dead, some refuse, some say nothing, some have no answer. See RFC
1035.
"""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from tests.bench.queued.traffic import FAST, SLOW, SLUGGISH, black_hole, refusing
from tests.support.dns_server import DnsThread, Zone

LIVE, DEAD, MANY = 100, 10_000, 1000
_FATES = ("refused", "refused", "refused", "refused", "black hole", "black hole", "black hole")
FATES = (*_FATES, "SERVFAIL", "NXDOMAIN", "TIMEOUT")  # of ten dead domains


@contextmanager
def names() -> Iterator[str]:
    """Answer until the block ends; gives HOST:PORT."""
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=_serve, args=(other,), daemon=True)
    process.start()
    try:
        yield pipe.recv()
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection) -> None:
    with DnsThread(_zone()) as server:
        pipe.send(str(server.address))
        signal.pause()


def _zone() -> Zone:
    zone: Zone = {}
    for number in range(LIVE):
        _host(zone, f"live{number}.test", FAST)
    for number in range(MANY):
        _host(zone, f"many{number}.test", SLUGGISH)
    _host(zone, "slow.test", SLOW)
    for number in range(DEAD):  # of the million: tried before, and refused each time
        _host(zone, f"dead{number}.test", refusing(number))
        fate = FATES[number % len(FATES)]
        name = f"gone{number}.test"
        if fate in ("refused", "black hole"):
            _host(zone, name, (refusing if fate == "refused" else black_hole)(number))
        else:
            zone[name] = fate
    return zone


def _host(zone: Zone, domain: str, address: str) -> None:
    zone[domain] = {"MX": [f"10 mx.{domain}"]}
    zone[f"mx.{domain}"] = {"A": [address]}
