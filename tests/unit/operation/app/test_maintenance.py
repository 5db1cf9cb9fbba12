"""Pruning and other loops continue after errors; keys that end are told."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.base.clock import SystemClock, rfc3339
from relay.base.observe.metrics import Metrics
from relay.operation.app import maintenance
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.spool.shared.suppression import SuppressionList
from relay.store.spool.types import QueueCounts, SpoolError
from relay.transport.refusals.day_files import RefusalFiles
from relay.transport.refusals.refusal import Refusal, RefusalReason, RefusalSearch
from relay.transport.signing.keys import KeyRing, SigningKey
from relay.transport.signing.private_keys import new_key
from tests.support.logs import capture_logs
from tests.support.manual_clock import ManualClock

COUNTS = QueueCounts({"queued": 2}, None, 0)


@dataclass
class Spool:
    """Answers from lists, then waits for ever; remembers what it was asked."""

    answers: list
    asked: list = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    suppression = SuppressionList(None, ManualClock())  # off

    async def _next(self, *asked):
        self.asked.append(asked)
        if not self.answers:
            self.over.set()
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    counts = prune = sweep = claim_without_node = _next

    @property
    def maintenance(self) -> "Spool":
        return self


class Log:
    """The pending submissions and their log."""

    def __init__(self) -> None:
        self.log = self
        self.before: list[int] = []

    def pending_ids(self) -> list[str]:
        return []

    async def prune(self, before_us: int, _kept_of: object) -> int:
        self.before.append(before_us)
        return 0


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    pauses = ("_WITHOUT_NODE_S", "_WITHOUT_NODE_PAUSE_S", "_FIGURES_S")
    for name in ("_PRUNE_S", "_PRUNE_PAUSE_S", *pauses):
        monkeypatch.setattr(maintenance, name, 0.0)


async def run_until_over(spool: Spool, work) -> None:
    task = asyncio.create_task(work)
    async with asyncio.timeout(120):
        await spool.over.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_pruning_runs_in_batches_and_continues_after_errors(tmp_path) -> None:
    spool, log = Spool([200, 3, 0, SpoolError("busy"), ZeroDivisionError()]), Log()
    keep = 86400 * 1.5
    clock = ManualClock()
    refusals = RefusalFiles(tmp_path / "refused")
    for days in (3, 0):
        at = rfc3339(clock.time_us() - days * 86_400_000_000)
        refusals.record(Refusal(at=at, reason=RefusalReason.SYNTAX))
    usage = Spool([None] * 9)
    history = maintenance.PrunedHistory(spool, log, refusals, usage, tmp_path / "dead-letter")
    await run_until_over(spool, maintenance.prune_history(history, clock, keep_s=keep))
    assert len((await refusals.page(RefusalSearch())).refused) == 1
    assert set(spool.asked) == {(keep,)}
    assert log.before == [clock.time_us() - 2 * 86_400_000_000]
    assert usage.asked == [()]


ERRORS = [SpoolError("busy"), ZeroDivisionError()]


async def test_the_other_loops_continue_after_errors(monkeypatch) -> None:
    """Of the queue's figures, of content that nobody needs, of uploads, of mail without a node."""
    spool, metrics, clock, ended = Spool([*ERRORS, COUNTS]), Metrics(), ManualClock(), []
    gauges = maintenance.update_gauges(spool, metrics, clock, set_others=list)
    await run_until_over(spool, gauges)
    assert metrics.registry.get_sample_value("relay_queue_entries", {"state": "queued"}) == 2
    monkeypatch.setattr(maintenance, "_DAY_S", 0.0)
    spool = Spool([*ERRORS, 0])
    await run_until_over(spool, maintenance.sweep_contents(spool, clock))
    uploads = Spool([StoreUnavailableError("full"), *ERRORS, None])
    await run_until_over(uploads, maintenance.expire_uploads(uploads.prune, clock))
    spool = Spool([(1, 2), (), *ERRORS, (4,)])
    ending = maintenance.end_mail_without_node(spool, ended.append, SystemClock())
    await run_until_over(spool, ending)
    assert ended == [(1, 2), (4,)]


async def test_after_a_database_that_hung_the_queue_is_counted_within_a_minute(monkeypatch) -> None:
    clock, pauses = ManualClock(), []

    class Hung(Spool):
        async def counts(self):
            clock.advance(24)
            return await self._next()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(maintenance, "sleep_in_step", sleep)
    spool = Hung([SpoolError("hung"), COUNTS])
    gauges = maintenance.update_gauges(spool, Metrics(), clock, set_others=list)
    await run_until_over(spool, gauges)
    assert pauses == [60, 60]


async def test_keys_that_end_are_logged_14_days_before_and_then_once_a_day() -> None:
    passes = asyncio.Queue[None]()
    again = asyncio.Queue[None]()

    class Stepped(ManualClock):
        async def sleep(self, seconds: float, *, slack_s: float = 0.0) -> None:
            passes.put_nowait(None)
            await again.get()

    clock = Stepped()
    day_us = 86_400_000_000
    end_us = (clock.now_us // day_us + 20) * day_us
    private = new_key("ed25519")

    def key(selector: str, ends_us: int | None, domain: str = "a.test") -> SigningKey:
        return SigningKey(domain, selector, private, Path(), ends_us)

    ring = KeyRing([key("s1", end_us - day_us), key("s2", end_us), key("s3", None, "b.test")])
    expires = Metrics().oauth_secret_expires
    ends = maintenance.warn_of_ends(lambda: ring, tuple, clock, expires=expires)
    task = asyncio.create_task(ends)

    async def logged(at_us: int) -> list[tuple[str, str]]:
        """What is logged at a moment."""
        clock.now_us = at_us
        with capture_logs() as logs:
            again.put_nowait(None)
            await passes.get()
        assert {one["log_level"] for one in logs} <= {"warning"}
        return [(one["selector"], one["event"].partition(":")[0]) for one in logs]

    soon = [("s2", "the last signing key of a domain ends soon")]
    over = [("s2", "the last signing key of a domain has ended")]
    await passes.get()
    assert await logged(end_us - 14 * day_us - 1) == []
    assert await logged(end_us - 14 * day_us) == soon
    assert await logged(end_us - 13 * day_us - 1) == []
    assert await logged(end_us - 13 * day_us) == soon
    assert await logged(end_us - 13 * day_us + 600_000_000) == []
    assert await logged(end_us - day_us) == soon
    assert await logged(end_us - 1) == []
    assert await logged(end_us) == over
    assert await logged(end_us + 1) == []
    assert await logged(end_us + 5 * day_us) == over
    ring = KeyRing([*ring.keys, key("s4", end_us + 6 * day_us)])  # a reload
    assert await logged(end_us + 5 * day_us + 2) == [("s4", soon[0][1])]
    ring = KeyRing([*ring.keys, key("s5", None)])
    assert await logged(end_us + 9 * day_us) == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
