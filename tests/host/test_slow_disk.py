"""While the disk is slow for the body of one message, other sessions are served."""

import threading
import time
from pathlib import Path
from typing import Self

from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes, received
from tests.support.slow_disk import slow_bodies

BLOCK_S = 0.2
BLOCKS = 5
BODY = b"x" * 70 + b"\r\n"
CONTENT = b"Subject: large\r\n\r\n" + BODY * (BLOCKS * 512 * 1024 // len(BODY))
NOTICED_S = 0.05


class OtherSession:
    """A session that asks again and again while the block runs, and how long each answer took."""

    def __init__(self, relay: RelayProcess) -> None:
        self._session = relay.smtp()
        self._took_s: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._session.close()

    def _ask(self) -> None:
        while not self._ended.is_set():
            began_s = time.monotonic()
            assert self._session.noop()[0] == 250
            self._took_s.append(time.monotonic() - began_s)

    @property
    def waited(self) -> float:
        """The part of the time in which it waited for answers that took more than 50 ms."""
        assert self._took_s
        return sum(one for one in self._took_s if one > NOTICED_S) / sum(self._took_s)


def test_others_do_not_wait_for_a_slow_disk(remotes: Remotes, tmp_path: Path, serve) -> None:
    remote = remotes.start("a.test")
    slow = slow_bodies(tmp_path, each_s=BLOCK_S)
    # In one process others wait most, and the other one would not get this environment.
    relay = serve(remotes, config={"smtp_gate": "off"}, environment=slow)
    began_s = time.monotonic()
    with OtherSession(relay) as while_it_arrives:
        queue_id = relay.submit("alice@example.test", ["x@a.test"], CONTENT)
    arrived_s = time.monotonic()
    with OtherSession(relay) as while_it_leaves:
        relay.until_final(queue_id)
    assert received(remote, "x@a.test").content.endswith(CONTENT)
    # The first block has 1 MiB; later ones, and all that are read, half of it.
    assert arrived_s - began_s > (BLOCKS - 2) * BLOCK_S
    assert time.monotonic() - arrived_s > BLOCKS * BLOCK_S
    waited = (while_it_arrives.waited, while_it_leaves.waited)
    assert max(waited) < 0.5, waited  # on a busy machine; it is 0.9 when they have to wait
    assert relay.faults() == []
