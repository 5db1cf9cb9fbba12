"""Ports for programs that get a listening address and start later."""

import functools
import itertools
import os
import random
import socket
from collections.abc import Iterator

# Below the range from which the system gives ports to everybody who asks for any.
_FIRST, _PER_WORKER, _WORKERS = 20_000, 700, 16


def free_port() -> int:
    """A loopback port that nobody has now, and that nobody gets by chance."""
    worker = os.environ.get(
        "RELAY_TEST_WORKER", "0"
    )  # a module may ask before processes are forked
    return next(port for port in _in_turn(int(worker) % _WORKERS) if _is_free(port))


@functools.cache
def _in_turn(worker: int) -> Iterator[int]:
    """Return the ports of a process of the tests, from anywhere: others may test as well."""
    ports = range(_FIRST + worker * _PER_WORKER, _FIRST + (worker + 1) * _PER_WORKER)
    start = random.randrange(_PER_WORKER)
    return itertools.cycle([*ports[start:], *ports[:start]])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
