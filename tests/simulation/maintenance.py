"""Maintenance of the daemon: it measures pressure, counts, removes stale files and prunes.

The relay's own code does the work; the measured disk is the world's. A count of unaccounted
recipients that is not 0 is a violation. See docs/design.md 4, 6, 7.1.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.base.files import disk_of
from relay.base.pressure import Bounds, Measurements, Pressure, assess
from relay.store.spool.sqlite.disk_space import ReserveFile
from relay.store.spool.sqlite.spool import SqliteSpool
from relay.store.spool.types import SpoolError
from tests.simulation.life import Life
from tests.simulation.scenario import Scenario
from tests.simulation.world import World

_LOOK_S = 150.0
_LOOKS_PER_COUNT = 4
RESERVE_BYTES = 1 << 20


class SimulatedReserveFile(ReserveFile):
    """Frees space on the world's disk when it is released while the disk is full."""

    def __init__(self, path: Path, disk: Any) -> None:
        super().__init__(path, size_bytes=RESERVE_BYTES, reserve_bytes=1)
        self._disk = disk

    def release(self) -> bool:
        given = super().release()
        if given and self._disk.full:
            self._disk.world.reached["disk: reserve file released"] += 1
            self._disk.spare_bytes += RESERVE_BYTES
            self._disk.is_just_given = True
        return given


class SimulatedMaintenance:
    """The maintenance of one process; run() runs until cancelled."""

    def __init__(self, world: World, life: Life, plan: Scenario, *, spool: SqliteSpool) -> None:
        self.pressure = Pressure()
        self._world, self._life, self._plan = world, life, plan
        self._spool = spool
        self._bounds = Bounds(
            disk_free=0, queue_entries=plan.queue_entries, memory=1, commit_latency_s=5.0
        )

    async def run(self) -> None:
        with self._busy():
            await self._spool.maintenance.sweep()
        number = 0
        while True:
            await asyncio.sleep(_LOOK_S * self._world.rng.random() * 2)
            number += 1
            with self._busy():
                try:
                    await self._look(counts=number % _LOOKS_PER_COUNT == 1)
                except SpoolError as error:
                    self._world.note("maintenance:", error)

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._life.doing.append("maintenance")
        try:
            yield
        finally:
            self._life.doing.remove("maintenance")

    async def _look(self, *, counts: bool) -> None:
        if counts:
            await self.count()
            if self._plan.history_s is not None:
                while pruned := await self._spool.maintenance.prune(self._plan.history_s):
                    self._world.reached["history: pruned"] += pruned
        await self.measure()

    async def count(self) -> None:
        """Check invariant 1 as relay_queue_unaccounted computes it."""
        found = await self._spool.counts()
        if found.unaccounted:
            self._world.fault(f"invariant 1: counted {found.unaccounted} unaccounted")

    async def measure(self) -> None:
        """Measure as the daemon's monitor does: before the first connection, then periodically."""
        reserve_file, load = self._spool.reserve_file, self._spool.load()
        await asyncio.to_thread(reserve_file.make)
        room = disk_of(reserve_file.directory)
        figures = Measurements(
            spool=None if load.is_failing else room,
            mail=room,
            kept_bytes=reserve_file.missing_bytes,
            queue_entries=load.entries,
            commit_s=load.commit_s,
            backlog=load.backlog,
        )
        self.pressure.state = state = assess(self.pressure.state, figures, self._bounds)
        self._world.reached[f"pressure: {state.level.name}"] += 1
