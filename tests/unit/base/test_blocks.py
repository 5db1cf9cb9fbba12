"""Blocks of bodies on the event loop: in a thread only what may wait for the disk."""

import threading
from functools import partial

from relay.base.blocks import BodyDisk
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

SLOW, QUICK, COMMIT_S = (0.041, 0.0), (0.039, 0.0), 0.49


@each_row(
    "writes, commit_s, on_loop",
    [
        ([], COMMIT_S, False),
        ([QUICK], COMMIT_S, True),
        ([QUICK], 0.5, False),
        ([QUICK, SLOW], COMMIT_S, False),
        ([QUICK, SLOW, (0.0, 9.9)], COMMIT_S, False),
        ([QUICK, SLOW, (0.0, 10.1)], COMMIT_S, True),
        ([QUICK, SLOW, (0.041, 10.1), QUICK], COMMIT_S, False),
    ],
)
async def test_a_block_is_written_on_the_event_loop_while_the_disk_is_quick(
    writes: list[tuple[float, float]], commit_s: float, *, on_loop: bool
) -> None:
    """Of each write before: how long it took, and how long nothing had been written."""
    clock = ManualClock()
    disk = BodyDisk(clock, lambda: commit_s, lambda _size_bytes: None)
    here: list[bool] = []

    def write(took_s: float) -> None:
        clock.now_s += took_s
        here.append(threading.current_thread() is threading.main_thread())

    for took_s, after_s in [*writes, QUICK]:
        clock.now_s += after_s
        await disk.run(partial(write, took_s))
    assert here[-1] is on_loop
