"""The scan of the queue: each due entry is claimed once, and no row is read twice."""

from collections.abc import Callable
from importlib.resources import files

import apsw
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.base.message.nexthop import NextHop
from relay.delivery import queue_scanner as scanner_module
from relay.delivery.active_queue import ActiveQueue
from relay.delivery.queue_scanner import QueueScanner
from relay.store.spool.shared import claimed
from relay.store.spool.sqlite.transactions import find_due, next_due_us, take_claims
from relay.store.spool.sqlite.writer import Batch
from relay.store.spool.types import Claim, DueBatch, DueQuery, NewMessage, PriorityLevel, sender_key
from tests.support.manual_clock import ManualClock
from tests.support.spools import message_of

STEP_US = 1_000_000


class Queue:
    """The tables of a spool, in memory; `meanwhile` runs during each query."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.connection = apsw.Connection(":memory:")
        self.connection.execute(
            files("relay.store.spool.sqlite").joinpath("schema.sql").read_text()
        )
        self.cursor = self.connection.cursor()
        self.meanwhile: Callable[[], None] = lambda: None
        self.queries: list[DueQuery] = []
        self.rows_read = 0
        self._number = 0

    def add(
        self, hop: str, sender: str, *, due_us: int, level: PriorityLevel = PriorityLevel.NORMAL
    ) -> NewMessage:
        self._number += 1
        name = f"{self._number:06d}"
        self.cursor.execute(
            "INSERT INTO message VALUES (?,?,'smtp',1,?,?,1,?,'','','',0,0,'','','','')",
            (name, sender, due_us, due_us + 10**15, sender),
        )
        self.cursor.execute(
            "INSERT INTO entry (message_id, number, next_hop, content_id, state, claimed, due_us,"
            " attempts, epoch, retry_us, lane, sender) VALUES (?,1,?,1,'queued',0,?,0,1,?,?,?)",
            (name, hop, due_us, due_us, level, sender_key(sender)),
        )
        self.cursor.execute(
            "INSERT INTO recipient VALUES (?,1,1,'x@a.test','','','queued','','','','','','')",
            (name,),
        )
        return message_of(
            [(hop, ["x@a.test"])],
            queue_id=name,
            now_us=due_us,
            expires_us=due_us + 10**15,
            reverse_path=sender,
            account=sender,
            priority=level,
        )

    def record(self, claim: Claim, due_us: int | None) -> None:
        self.cursor.execute(
            "UPDATE entry SET claimed = 0, due_us = ?, epoch = epoch + 1,"
            " state = iif(?1 IS NULL, 'final', 'deferred') WHERE message_id = ? AND epoch = ?",
            (due_us, claim.message.id, claim.epoch),
        )
        assert self.connection.changes() == 1

    def due(self, now_us: int) -> list[str]:
        sql = "SELECT message_id FROM entry WHERE claimed = 0 AND due_us <= ?"
        return [row[0] for row in self.cursor.execute(sql, (now_us,))]

    # -- what the queue scanner calls
    async def claim_due(self, now_us: int, limit: int, look: DueQuery) -> DueBatch:
        self.queries.append(look)
        batch = Batch(self.cursor)
        found, damaged = find_due(batch, look, now_us=now_us, limit=limit)
        self.meanwhile()
        claims = take_claims(batch, found.claims, damaged, now_us=now_us, at_us=now_us)
        return DueBatch(
            claims,
            found.ended,
            found.reached,
            found.reached_sender,
            found.left_hops,
            found.left_senders,
        )

    async def next_due_us(self, after_us: int) -> int | None:
        return next_due_us(Batch(self.cursor), after_us)


class ScannedQueue:
    """A queue scanner as the scheduler runs it, without sites."""

    def __init__(self, *, claims_max: int) -> None:
        self.clock = ManualClock()
        self.queue = Queue(self.clock)
        self.active_queue = ActiveQueue(claims_max=claims_max)
        self.scanner = QueueScanner(self.queue, self.active_queue, self.clock, offer=self.offer)
        self.claims: list[Claim] = []
        self.claimed: list[str] = []
        self.is_awake = True

    def offer(self, claims: tuple[Claim, ...]) -> None:
        for claim in claims:
            self.active_queue.add(claim)
            self.claims.append(claim)
            self.claimed.append(claim.message.id)

    def accept(
        self,
        hop: str,
        sender: str,
        level: PriorityLevel = PriorityLevel.NORMAL,
        *,
        late_us: int = 0,
    ) -> None:
        """A message that was not claimed, committed some time after it was received."""
        message = self.queue.add(hop, sender, due_us=self.clock.now_us - late_us, level=level)
        self.is_awake |= self.scanner.add_unclaimed(message)

    def record(self, index: int, due_us: int | None = None) -> None:
        claim = self.claims.pop(index % len(self.claims))
        self.queue.record(claim, due_us)
        if self.active_queue.remove(claim):
            self.scanner.capacity_freed(claim)
        self.is_awake |= bool(self.scanner.wake())
        if due_us is not None:
            self.is_awake |= self.scanner.requeued(claim, due_us)

    async def run(self) -> None:
        for _ in range(1000):
            if not self.is_awake and self.clock.now_us < self.scanner.next_run_us:
                return
            self.is_awake = False
            await self.scanner.run()
        raise AssertionError("it never comes to rest")


HOPS = ("mx:a.test", "mx:b.test", "mx:c.test", "local")
SENDERS = ("ann", "bob", "cid", "dan")
ACTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("accept"),
            st.sampled_from(HOPS),
            st.sampled_from(SENDERS),
            st.sampled_from(PriorityLevel),
            st.integers(1, 12),
            st.integers(0, 2 * STEP_US),
        ),
        st.tuples(st.just("done"), st.integers(0, 99), st.integers(1, 6)),
        st.tuples(st.just("defer"), st.integers(0, 99), st.integers(-1, 3)),
        st.tuples(st.just("wait"), st.integers(1, 3)),
        st.tuples(st.just("anew")),
    ),
    max_size=40,
)


def act(scanned: ScannedQueue, what: tuple) -> None:
    match what:
        case ("accept", hop, sender, level, times, late_us):
            for _ in range(times):
                scanned.accept(hop, sender, level, late_us=late_us)
        case ("done", index, times):
            for _ in range(min(times, len(scanned.claims))):
                scanned.record(index)
        case ("defer", index, steps):
            if scanned.claims:
                scanned.record(index, scanned.clock.now_us + steps * STEP_US)
        case ("wait", steps):
            scanned.clock.advance(steps)
        case ("anew",):
            scanned.scanner.restart()
            scanned.is_awake = True


@pytest.fixture
def narrow(monkeypatch) -> None:
    """Bounds so low that every query reaches them, and no rescan that would hide an error."""
    monkeypatch.setattr(claimed, "ROWS_MAX", 3)
    monkeypatch.setattr(claimed, "SENDERS_MAX", 2)
    monkeypatch.setattr(scanner_module, "RESCAN_US", 1 << 61)


@pytest.mark.usefixtures("narrow")
@settings(deadline=None)
@given(acts=ACTS, meanwhile=ACTS, claims_max=st.sampled_from([1, 4, 16, 40]))
def test_each_due_entry_is_claimed_once(acts: list, meanwhile: list, claims_max: int) -> None:
    async def story() -> None:
        scanned = ScannedQueue(claims_max=claims_max)
        interruptions = iter([one for one in meanwhile if one[0] != "wait"])

        def interrupt() -> None:
            if (what := next(interruptions, None)) is not None:
                act(scanned, what)

        scanned.queue.meanwhile = interrupt
        for index, what in enumerate(acts):
            act(scanned, what)
            if index % 2:
                await scanned.run()
        while True:  # a relay that delivers at last
            await scanned.run()
            if not scanned.claims:
                if scanned.queue.due(1 << 61) == []:
                    break
                assert not scanned.queue.due(scanned.clock.now_us), "something due was forgotten"
                scanned.clock.now_us = scanned.scanner.next_run_us
                assert scanned.queue.due(scanned.clock.now_us), "waits for what is not there"
                continue
            scanned.record(0)

    uvloop.run(story())


@pytest.mark.usefixtures("narrow")
@settings(deadline=None)
@given(acts=ACTS)
def test_no_entry_that_has_room_is_left_waiting(acts: list) -> None:
    async def story() -> None:
        scanned = ScannedQueue(claims_max=64)
        for what in acts:
            act(scanned, what)
        await scanned.run()
        waiting = scanned.queue.due(scanned.clock.now_us)
        for name in waiting:
            sql = "SELECT next_hop, sender, lane FROM entry WHERE message_id = ?"
            hop, sender, number = scanned.queue.cursor.execute(sql, (name,)).fetchone()
            active_queue, level = scanned.active_queue, PriorityLevel(number)
            assert not (
                active_queue.batch_size(level)
                and active_queue.has_room_for(NextHop.parse(hop), sender, level)
            ), f"{name} waits"

    uvloop.run(story())


async def test_a_long_queue_of_one_sender_is_read_once_and_does_not_delay_others() -> None:
    scanned = ScannedQueue(claims_max=200)
    for _ in range(10_000):
        scanned.queue.add("mx:slow.test", "bulk", due_us=scanned.clock.now_us - 2)
    scanned.queue.add("mx:slow.test", "single", due_us=scanned.clock.now_us - 1)
    scanned.queue.add("mx:live.test", "bulk", due_us=scanned.clock.now_us - 1)
    await scanned.run()
    assert {"010001", "010002"} <= set(scanned.claimed)
    assert 90 < len(scanned.claims) < 130  # about half of the window
    queries = len(scanned.queue.queries)
    assert queries < 10_000 / claimed.ROWS_MAX + 20
    for _ in range(20):  # each makes room, none reads the queue again
        scanned.record(0)
        await scanned.run()
    for look in scanned.queue.queries[queries:]:
        assert look.next_hop == NextHop.parse("mx:slow.test") or look.after is not None


async def test_an_entry_that_another_node_commits_late_is_claimed_at_the_next_look() -> None:
    scanned = ScannedQueue(claims_max=200)
    for late_us in (0, 5 * STEP_US):
        scanned.queue.add("mx:a.test", "anne", due_us=scanned.clock.now_us - late_us)
        scanned.scanner.newly_due()
        await scanned.scanner.run()
    assert scanned.claimed == ["000001", "000002"]
