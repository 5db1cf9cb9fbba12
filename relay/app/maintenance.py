"""What has to be done from time to time: the queue's figures, the end of old history and uploads.

On the path: beside it; metrics show the figures, prune keeps the spool and the store's log small.
Holds: each pass is bounded; a pass that fails is tried again at the next turn.
Fails: never.
Standards: docs/design.md 4 (history), the metrics of docs/names.md.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from relay.clock import Clock, Continued
from relay.journeys.submission_log import SubmissionLog
from relay.mailbox import FileStore
from relay.mailbox.types import StoreError
from relay.observe.lasting import LastingFault
from relay.observe.logs import get_logger
from relay.observe.metrics import Metrics
from relay.spool import Keep, SqliteSpool
from relay.spool.types import SpoolError

_log = get_logger("app")

_FIGURES_S = 1.0
_FIGURES_COST_FACTOR = 20  # at most a twentieth of the time goes into counting
_PRUNE_S = 600.0
_PRUNE_PAUSE_S = 0.05
_DAY_S = 86400.0
_ANCHOR_S = 10.0
_CLOCK_DIFFERS_US = 60_000_000


@dataclass(frozen=True, slots=True)
class MaintenanceGauges:
    """What is counted all the time: SMTP sessions, and notes that wait for their time."""

    sessions: Callable[[], int]
    deferred_notes: Callable[[], int]


async def keep_figures(
    spool: SqliteSpool, metrics: Metrics, clock: Clock, *, figures: MaintenanceGauges
) -> None:
    """Count the queue, and these figures, into the metrics until cancelled."""
    while True:
        began = clock.monotonic()
        metrics.connections.labels(state="incoming").set(figures.sessions())
        metrics.pickup_deferred.set(figures.deferred_notes())
        try:
            await count_queue(spool, metrics, clock)
        except SpoolError as error:
            _log.warning("queue not counted", error=str(error))
        except Exception:  # noqa: BLE001 - ours: figures must not end with it
            _log.exception("counting broken off")
        took_s = clock.monotonic() - began
        pause_s = max(_FIGURES_S, took_s * _FIGURES_COST_FACTOR)
        await asyncio.sleep(pause_s)  # sleeps: the interval between counts


async def count_queue(spool: SqliteSpool, metrics: Metrics, clock: Clock) -> None:
    """Count once. Raises SpoolError."""
    counts = await spool.counts()
    for state, number in counts.entries.items():
        metrics.queue_entries.labels(state=state).set(number)
    age_us = clock.steady_us() - counts.oldest_us if counts.oldest_us is not None else 0
    metrics.queue_oldest.set(max(0, age_us) / 1_000_000)
    metrics.queue_unaccounted.set(counts.unaccounted)


async def keep_pruning(spool: SqliteSpool, log: SubmissionLog, *, keep: Keep) -> None:
    """Remove what is not to be kept until cancelled, in small steps."""
    while True:
        try:
            while await spool.keeping.prune(keep):  # noqa: ASYNC110 - the pause is for others
                await asyncio.sleep(_PRUNE_PAUSE_S)  # sleeps: lets others write
            await asyncio.to_thread(log.prune, math.ceil(keep.age_s / _DAY_S))
        except (SpoolError, OSError) as error:
            _log.warning("history not pruned", error=str(error))
        except Exception:  # noqa: BLE001 - ours: pruning must not end with it
            _log.exception("pruning broken off")
        await asyncio.sleep(_PRUNE_S)  # sleeps: the interval between passes


async def keep_clock(store: FileStore) -> None:
    """Write the store's anchor until cancelled, and once more then."""
    fault = LastingFault()
    try:
        while True:
            try:
                await store.keep_anchor()
            except StoreError as error:
                if fault.is_news(error):
                    _log.warning("the time is not kept for the next start", error=str(error))
            else:
                fault.is_over()
            await asyncio.sleep(_ANCHOR_S)  # sleeps: the interval between writes
    finally:
        with suppress(StoreError):
            await store.keep_anchor()


def log_continued(found: Continued | None, *, ahead_us: int) -> None:
    """Say how this start continues the queue's time, if that is not what the clock alone says.

    `ahead_us` is how far the wall clock is ahead of the queue's time.
    """
    if found is None:
        return
    if not found.is_exact and found.wall_passed_us < -_CLOCK_DIFFERS_US:
        _log.warning(
            "the clock is behind the time of the last run: the queue's time goes on from there;"
            " is the clock right?",
            seconds=found.wall_passed_us / 1_000_000,
        )
    elif not found.is_exact and found.wall_passed_us > _DAY_S * 1_000_000:
        _log.warning(
            "the machine was restarted, and its clock says that much has passed since the last run:"
            " nothing expires before one more attempt, nothing is removed for its age for a day;"
            " is the clock right?",
            seconds=found.wall_passed_us / 1_000_000,
        )
    elif abs(ahead_us) > _CLOCK_DIFFERS_US:
        _log.warning(
            "the clock differs from the queue's time, which goes on as before and follows slowly:"
            " the clock is or was wrong",
            seconds=ahead_us / 1_000_000,
        )


async def keep_contents_swept(spool: SqliteSpool) -> None:
    """Remove the spool's files that nobody needs until cancelled: what a crash left, first."""
    while True:
        try:
            if removed := await spool.keeping.sweep():
                _log.info("left-over contents removed", files=removed)
        except SpoolError as error:
            _log.warning("left-over contents not removed", error=str(error))
        except Exception:  # noqa: BLE001 - ours: this must not end with it
            _log.exception("sweeping broken off")
        await asyncio.sleep(_DAY_S)  # sleeps: the interval between passes


async def keep_uploads_few(remove_expired: Callable[[], Awaitable[None]]) -> None:
    """Remove uploads that nobody finished in time, until cancelled."""
    while True:
        try:
            await remove_expired()
        except StoreError as error:
            _log.warning("uploads not removed", error=str(error))
        except Exception:  # noqa: BLE001 - ours: this must not end with it
            _log.exception("removing uploads broken off")
        await asyncio.sleep(_PRUNE_S)  # sleeps: the interval between passes
