"""The DNS of the benchmark, in a process of its own: live hosts take mail, dead ones refuse."""

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from tests.bench.queued.traffic import SINK, refusing
from tests.support.dns_server import DnsThread, Zone

_LIVE, _DEAD = 100, 10_000


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
    for number in range(_LIVE):
        _host(zone, f"live{number}.test", SINK)
    for number in range(_DEAD):  # of the million: tried before, and refused each time
        _host(zone, f"dead{number}.test", refusing(number))
    return zone


def _host(zone: Zone, domain: str, address: str) -> None:
    zone[domain] = {"MX": [f"10 mx.{domain}"]}
    zone[f"mx.{domain}"] = {"A": [address]}
