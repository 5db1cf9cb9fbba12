"""Ports for programs that get a listening address and start later."""

import itertools
import os
import random
import socket
from collections.abc import Iterator

# Below the range from which the system gives ports to everybody who asks for any.
_FIRST, _PER_WORKER, _WORKERS = 20_000, 700, 16


def free_port() -> int:
    """A loopback port that nobody has now, and that nobody gets by chance."""
    return next(port for port in _candidates if _is_free(port))


def _in_turn() -> Iterator[int]:
    """Yield the ports of this process of the tests, from anywhere: others may test as well."""
    worker = int(os.environ.get("RELAY_TEST_WORKER", "0")) % _WORKERS
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


_candidates = _in_turn()
