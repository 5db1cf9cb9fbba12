"""Pickup between a store in memory and a real SMTP server on a Unix socket."""

import asyncio
import contextlib
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from relay.accounts import DEAD_LETTER
from relay.clock import ManualClock
from relay.crashpoints import CrashPoints
from relay.journeys.events import Event, Step
from relay.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.mailbox.types import (
    MailboxFullError,
    NoSuchItemError,
    PendingSubmission,
    StoreUnavailableError,
)
from relay.message.content import LARGE_BYTES, MemoryOctets
from relay.message.properties import MessageProperties, Person
from relay.mime.convert import convert
from relay.mime.draft import DraftOrigin
from relay.observe.metrics import Metrics
from relay.pickup import Pickup, conversion
from tests.support import converters
from tests.support.drafts import write_draft
from tests.support.remote_mx import DROP, EXTENSIONS, RemoteMx

DAY_S = 86400.0
POSTMASTER = "postmaster@example.test"
MIME = b"From: alice@example.test\r\nTo: b@y.test\r\nCc: c@y.test\r\nSubject: x\r\n\r\nhello\r\n"


class Store:
    """A SubmissionStore without mailboxes; retries come back at once, their delays are kept."""

    def __init__(self, folder):
        self.contents, self.filed, self.failed, self.delays = {}, {}, {}, []
        self.trouble, self.to_corrupt = None, []
        self.full, self.reported_to = set(), {}
        self.folder = folder
        self._queue = asyncio.Queue()
        self._changed = asyncio.Condition()

    def submit(self, number=1, *, content=MIME, account="alice@example.test", ready_us=0):
        note = PendingSubmission(
            f"draft{number}.1", f"draft{number}", account, "base", self.folder / f"draft{number}.1",
            ready_us=ready_us,
        )  # fmt: skip
        note.path.write_bytes(content)
        self.contents[note.submission_id] = content
        self._queue.put_nowait(note)
        return note

    async def notes(self):
        while True:
            yield await self._queue.get()

    async def turn(self, note):
        pass

    async def submission_content(self, note):
        if self.trouble is not None:
            error, self.trouble = self.trouble, None
            raise error
        return MemoryOctets(self.contents[note.submission_id])

    def retry_submission(self, note, delay_s):
        self.delays.append(delay_s)
        asyncio.get_running_loop().call_later(0.01, self._queue.put_nowait, note)

    async def complete_submission(self, note, *, queue_id):
        await self._end(self.filed, note, queue_id)

    async def fail_submission(self, note, report, *, report_to="", to_corrupt=False):
        mailbox = report_to or note.account
        if mailbox in self.full:
            raise MailboxFullError(f"The mailbox {mailbox} is full.")
        self.reported_to[note.submission_id] = mailbox
        if to_corrupt:
            self.to_corrupt.append(note.submission_id)
        await self._end(self.failed, note, report)

    async def _end(self, ends, note, value):
        async with self._changed:
            ends[note.submission_id] = value
            self._changed.notify_all()

    async def ended(self, count=1):
        async with asyncio.timeout(10), self._changed:
            await self._changed.wait_for(lambda: len(self.filed) + len(self.failed) >= count)


class Reports:
    """Keeps what it is asked to report."""

    def __init__(self):
        self.asked = []

    def inbox_report(self, message, recipients):
        self.asked.append((message, list(recipients)))
        return b"report"


class Crash(CrashPoints):
    """Writes down the points instead of dying."""

    def __init__(self):
        super().__init__()
        self.passed = []

    def reached(self, point):
        self.passed.append(str(point))


class World:
    """Everything around a Pickup; `async with world.running():` runs it and drains it."""

    def __init__(self, tmp_path):
        self.clock = ManualClock()
        self.store, self.reports, self.crash, self.metrics = (
            Store(tmp_path),
            Reports(),
            Crash(),
            Metrics(),
        )
        self.folder, self.path = tmp_path, str(tmp_path / "pickup.sock")
        self.log = SubmissionLog(tmp_path / "log", role="pickup", clock=self.clock)
        self.drained = False

    @contextlib.asynccontextmanager
    async def running(self, *, max_concurrent=2, converter=convert):
        pickup = Pickup(
            self.store,
            run_dir=self.folder,
            hostname="relay.test",
            reports=self.reports,
            postmaster=POSTMASTER,
            log=self.log,
            clock=self.clock,
            crash=self.crash,
            metrics=self.metrics,
            give_up_after_s=DAY_S,
            max_concurrent=max_concurrent,
            converter=converter,
        )
        task = asyncio.create_task(pickup.run())
        try:
            yield pickup
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await pickup.drain()
            self.log.close()

    @property
    def waiting(self):
        return self.metrics.registry.get_sample_value("relay_pickup_waiting")

    def submit(self, number=1, *, age_s=0.0, **fields):
        return self.store.submit(number, ready_us=self.clock.time_us() - int(age_s * 1e6), **fields)


@pytest.fixture
async def world(tmp_path):
    return World(tmp_path)


async def test_a_note_is_converted_submitted_and_filed(world):
    note = world.submit()
    replies = {"DOT": "250 2.0.0 Ok: queued as 0abc9"}
    async with RemoteMx(path=world.path, replies=replies) as mx, world.running():
        await world.store.ended()
    assert world.store.filed == {note.submission_id: "0abc9"}
    (envelope,) = mx.envelopes
    assert envelope.reverse_path == "alice@example.test"
    assert envelope.addresses == ["b@y.test", "c@y.test"]
    assert envelope.parameters["ENVID"] == note.submission_id
    assert not {"RET", "NOTIFY"} & (set(envelope.parameters) | set(envelope.recipients[0][1]))
    assert envelope.content.endswith(b"\r\n\r\nhello\r\n")
    assert world.crash.passed == ["note-converted", "submission-sent", "submission-accepted"]
    assert world.waiting == 0
    told = await world.log.submission(note.submission_id)
    (step,) = told["steps"]
    assert (step["step"], step["detail"]["recipients"]) == (3, 2)


async def test_who_wants_a_receipt_of_delivery_asks_for_all_notices(world):
    alice = Person("alice@example.test")
    wanted = MessageProperties(from_=alice, to=(Person("b@y.test"),), delivery_receipt=True)
    world.submit(content=write_draft(wanted, DraftOrigin(alice.address, "base", "<i@h>", 1, 1)))
    async with RemoteMx(path=world.path) as mx, world.running():
        await world.store.ended()
    assert mx.envelopes[0].recipients == [("b@y.test", {"NOTIFY": "DELAY,FAILURE,SUCCESS"})]


@pytest.mark.parametrize(
    "replies",
    [{"DOT": ["451 4.3.0 busy", "250 2.0.0 Ok: queued as 1"]}, {"DOT": [DROP, "250 2.0.0 Ok: queued as 1"]},
     {"MAIL": ["421 4.3.2 down", "250 ok"]}, {"CONNECT": ["554 5.3.2 no", "220 hi"]}, {"EHLO": ["250 mx", "250-mx\r\n250 DSN"]},
     {"RCPT": ["250 ok", "452 4.5.3 too many", "250 ok"]}],
)  # fmt: skip
async def test_what_may_still_go_through_is_submitted_again_with_the_same_key(world, replies):
    note = world.submit()
    async with RemoteMx(path=world.path, replies=replies) as mx, world.running():
        await world.store.ended()
        assert set(world.store.filed) == {note.submission_id}
        assert len(world.store.delays) == 1
        accepted = [one for one in mx.envelopes if one.answered == 250]
        assert [one.addresses for one in accepted] == [["b@y.test", "c@y.test"]]
        assert {one.parameters["ENVID"] for one in mx.envelopes} == {note.submission_id}
    assert world.waiting == 0


async def test_pickup_waits_for_its_relay(world):
    world.submit()
    async with world.running():
        async with asyncio.timeout(10):
            while len(world.store.delays) < 3:
                await asyncio.sleep(0.005)
        assert world.waiting == 1
        async with RemoteMx(path=world.path):
            await world.store.ended()
    assert world.store.delays[0] < world.store.delays[1] < world.store.delays[2]


@pytest.mark.parametrize("replies", [{"DOT": "554 5.6.0 not this"}, {"RCPT": "554 5.6.0 not this"}])
async def test_a_refusal_for_good_is_reported(world, replies):
    note = world.submit()
    async with RemoteMx(path=world.path, replies=replies), world.running():
        await world.store.ended()
    assert world.store.failed == {note.submission_id: b"report"}
    ((message, recipients),) = world.reports.asked
    assert (message.reverse_path, message.envid) == ("alice@example.test", note.submission_id)
    assert b"Subject: x" in message.content
    assert [one.address for one in recipients] == ["b@y.test", "c@y.test"]
    evidence = recipients[0].evidence
    assert (evidence.status, evidence.reply) == ("5.6.0", "554 5.6.0 not this")
    assert (evidence.host, evidence.remote) == ("", False)
    steps = (await world.log.submission(note.submission_id))["steps"]
    assert [step["step"] for step in steps] == [3, 7]
    assert world.waiting == 0


@pytest.mark.parametrize("full", [(), (POSTMASTER,)])
async def test_a_report_that_fits_nowhere_else_goes_to_the_postmaster(world, full):
    note = world.submit()
    world.store.full = {note.account, *full}
    async with RemoteMx(path=world.path, replies={"RCPT": "554 5.6.0 not this"}), world.running():
        await world.store.ended()
    assert world.store.failed == {note.submission_id: b"report"}
    assert world.store.reported_to[note.submission_id] == (DEAD_LETTER if full else POSTMASTER)
    assert (world.store.delays, world.waiting) == ([], 0)
    counted = world.metrics.registry.get_sample_value
    assert counted("relay_reports_total", {"kind": "dead-letter"}) == 1
    *_, last = (await world.log.submission(note.submission_id))["steps"]
    assert (last["step"], last["detail"]["to"]) == (7, "postmaster")
    assert "is full" in last["detail"]["reason"]


async def test_what_cannot_be_converted_is_reported(world):
    world.submit(content=b"From: alice@example.test\r\nSubject: to nobody\r\n\r\nhello\r\n")
    async with RemoteMx(path=world.path) as mx, world.running():
        await world.store.ended()
    ((_, recipients),) = world.reports.asked
    assert [one.address for one in recipients] == ["alice@example.test"]
    assert recipients[0].evidence.status == "5.6.3"
    assert "no recipients" in recipients[0].evidence.reply
    assert mx.envelopes == []


async def test_what_is_no_address_in_a_draft_is_reported_on_one_line(world):
    alice, nobody = Person("alice@example.test"), Person("b@y.test>\r\nRCPT TO:<c@y.test")
    origin = DraftOrigin(alice.address, "base", "<i@h>", 1, 1)
    world.submit(content=write_draft(MessageProperties(from_=alice, to=(nobody,)), origin))
    async with RemoteMx(path=world.path) as mx, world.running():
        await world.store.ended()
    ((_, recipients),) = world.reports.asked
    assert [one.address for one in recipients] == ["b@y.test> RCPT TO:<c@y.test"]
    assert mx.envelopes == []


async def test_a_large_draft_that_is_put_aside_is_reported_to_be_for_whom_it_was(world):
    alice, bob = Person("alice@example.test"), Person("b@y.test")
    asked = MessageProperties(from_=alice, to=(bob,), subject="raise", body="x" * LARGE_BYTES)
    world.submit(content=write_draft(asked, DraftOrigin(alice.address, "base", "<i@h>", 1, 1)))
    started = world.running(converter=converters.convert)
    async with RemoteMx(path=world.path), started:
        await world.store.ended()
    ((message, recipients),) = world.reports.asked
    assert [one.address for one in recipients] == [bob.address]
    assert b"Subject: raise" in message.content.header
    assert b"X-Relay" not in message.content.header


@pytest.mark.parametrize(
    ("poison", "told"),
    [
        (b"raise", "it met a fault of the relay"),
        (b"crash", "it ended with signal 11"),
        (b"hang", "it did not end within 0.5 seconds"),
    ],
)
async def test_a_conversion_that_goes_wrong_stops_no_other_note(world, monkeypatch, poison, told):
    monkeypatch.setattr(conversion, "_LIMIT_S", 0.2)
    monkeypatch.setattr(conversion, "_LIMIT_S_PER_MIB", 0)
    monkeypatch.setattr(conversion, "_ALONE_LIMIT_S", 0.5)
    monkeypatch.setattr(conversion, "_ALONE_LIMIT_S_PER_MIB", 0)
    bad = world.submit(1, content=b"Subject: %s\r\nTo: b@y.test\r\n\r\n" % poison)
    good = world.submit(2)
    started = world.running(max_concurrent=1, converter=converters.convert)
    async with RemoteMx(path=world.path), started:
        await world.store.ended(2)
    assert set(world.store.filed) == {good.submission_id}
    assert world.store.to_corrupt == [bad.submission_id]
    assert world.store.delays == []
    ((_, recipients),) = world.reports.asked
    assert recipients[0].evidence.status == "5.6.0"
    assert told in recipients[0].evidence.reply


async def test_nothing_is_parsed_in_the_process_of_the_relay(world):
    """A parser that crashes, or does not come to an end, must not take the relay with it."""
    converters.calls_here.clear()
    alice = Person("alice@example.test")
    plain = MessageProperties(from_=alice, to=(Person("b@y.test"),))
    origin = DraftOrigin(alice.address, "base", "<i@h>", 1, 1)
    world.submit(1)
    world.submit(2, content=write_draft(replace(plain, body_type="html"), origin))
    async with RemoteMx(path=world.path), world.running(converter=converters.only_in_a_child):
        await world.store.ended(2)
        assert converters.calls_here == []
        world.submit(3, content=write_draft(plain, origin))
        await world.store.ended(3)
    assert len(converters.calls_here) == 1
    assert len(world.store.filed) == 3


async def test_notes_that_hang_delay_no_other_account(world):
    """Twenty of one account keep neither the workers, nor the processes, nor threads."""
    threads = set(threading.enumerate())
    for number in range(20):
        world.submit(number, content=b"Subject: hang\r\nTo: b@y.test\r\n\r\n")
    started = world.running(max_concurrent=4, converter=converters.convert)
    async with RemoteMx(path=world.path), started:
        async with asyncio.timeout(60):
            while not _children():
                await asyncio.sleep(0.01)
        others = [world.submit(21 + one, account="bob@example.test") for one in range(5)]
        await world.store.ended(5)
        assert set(world.store.filed) == {one.submission_id for one in others}
        assert world.store.failed == {}
        assert len(_children()) <= 3  # two for all, and one for what takes long
        assert set(threading.enumerate()) <= threads
    async with asyncio.timeout(10):
        while _children():
            await asyncio.sleep(0.01)


async def test_an_account_leaves_a_process_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_LIMIT_S", 30.0)
    converting = conversion.Conversion(
        converters.convert, hostname="relay.test", clock=ManualClock()
    )
    store = Store(tmp_path)

    def converted(number, **fields):
        note = store.submit(number, **fields)
        content = MemoryOctets(store.contents[note.submission_id])
        return asyncio.create_task(converting.converted(note, content))

    hang = b"Subject: hang\r\nTo: b@y.test\r\n\r\n"
    kept = [converted(number, content=hang) for number in range(3)]
    async with asyncio.timeout(20):
        made = await converted(4, account="bob@example.test")
    assert made.subject == "x"
    assert not any(one.done() for one in kept)
    for one in kept:
        one.cancel()
    await asyncio.gather(*kept, return_exceptions=True)
    converting.close()
    assert _children() == set()


async def test_a_process_serves_one_note_after_the_other(world):
    async with RemoteMx(path=world.path), world.running():
        world.submit(1)
        await world.store.ended(1)
        first = _children()
        world.submit(2)
        await world.store.ended(2)
        assert _children() == first
        assert len(first) == 1


async def test_a_process_that_is_killed_while_it_waits_costs_no_note(world):
    async with RemoteMx(path=world.path), world.running():
        world.submit(1)
        await world.store.ended(1)
        (child,) = _children()
        os.kill(child, signal.SIGKILL)
        world.submit(2)
        await world.store.ended(2)
    assert len(world.store.filed) == 2


def _children():
    """The processes that this one has and that have not ended."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            with contextlib.suppress(FileNotFoundError):
                if Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.add(child)
    return found


@pytest.mark.parametrize(
    "trouble", [StoreUnavailableError("disk"), OSError("disk"), ZeroDivisionError("a bug")]
)
async def test_trouble_with_the_store_puts_the_note_back(world, trouble):
    note = world.submit()
    world.store.trouble = trouble
    async with RemoteMx(path=world.path), world.running():
        await world.store.ended()
    assert set(world.store.filed) == {note.submission_id}
    assert len(world.store.delays) == 1


async def test_a_note_that_is_gone_is_done_with(world):
    world.submit(1)
    world.store.trouble = NoSuchItemError("filed already")
    world.submit(2)
    async with RemoteMx(path=world.path) as mx, world.running(max_concurrent=1):
        await world.store.ended()
    assert (len(mx.envelopes), world.store.delays, world.waiting) == (1, [], 0)


async def test_a_big_message_goes_through(world):
    content = MIME + b"x" * 70 + (b"\r\n" + b"y" * 70) * 20_000
    world.submit(content=content)
    async with RemoteMx(path=world.path) as mx, world.running():
        await world.store.ended()
    assert mx.envelopes[0].content.endswith(content[len(MIME) :] + b"\r\n")


async def test_after_a_day_pickup_gives_up(world):
    world.submit(age_s=DAY_S + 60)
    async with RemoteMx(path=world.path, replies={"DOT": "451 4.3.0 busy"}) as mx, world.running():
        await world.store.ended()
        assert len(mx.envelopes) == 1
    ((_, recipients),) = world.reports.asked
    assert recipients[0].evidence.status == "5.4.7"
    assert recipients[0].action == "failed"
    assert "451 4.3.0 busy" in recipients[0].evidence.reply


async def test_who_gave_up_without_an_answer_says_that_it_does_not_know(world):
    """An attempt that ended behind the final dot may have been accepted."""
    world.submit()
    world.clock.advance(-60)
    replies = {"DOT": [DROP, "451 4.3.0 busy"]}
    async with RemoteMx(path=world.path, replies=replies), world.running():
        async with asyncio.timeout(10):
            while not world.store.delays:
                await asyncio.sleep(0.001)
        world.clock.advance(DAY_S + 120)
        await world.store.ended()
    ((_, recipients),) = world.reports.asked
    assert recipients[0].action == "delayed"
    assert "unknown whether the message was sent" in recipients[0].evidence.reply


@pytest.mark.parametrize(("before", "action"), [(True, "delayed"), (False, "failed")])
async def test_what_an_earlier_process_had_in_work_may_have_been_sent(world, before, action):
    note = world.submit(age_s=DAY_S + 60)
    if before:
        facts = SubmissionFacts(note.submission_id, note.draft_id, note.account, note.account)
        for step in (Step.CREATED, Step.CONVERTED):
            world.log.append(facts, Event(step, note.ready_us + 1))
    async with RemoteMx(path=world.path, replies={"DOT": "451 4.3.0 busy"}), world.running():
        await world.store.ended()
    ((_, recipients),) = world.reports.asked
    assert recipients[0].action == action


async def test_a_repeat_that_is_answered_ends_the_doubt(world):
    note = world.submit()
    replies = {"DOT": [DROP, "250 2.0.0 Ok: queued as 0abc9"]}
    async with RemoteMx(path=world.path, replies=replies), world.running():
        await world.store.ended()
    assert world.store.filed == {note.submission_id: "0abc9"}
    assert world.reports.asked == []


async def test_while_the_relay_takes_nothing_one_note_asks_for_all(world):
    """Without that, forty notes would ask again and again, each for itself."""
    for number in range(40):
        world.submit(number)
    replies = {"MAIL": ["451 4.3.0 no"] * 9 + ["250 ok"]}
    async with RemoteMx(path=world.path, replies=replies), world.running(max_concurrent=4):
        async with asyncio.timeout(10):
            while len(world.store.delays) < 4:
                await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        soon = loop.time() + 0.5
        while loop.time() < soon:
            await asyncio.sleep(0.01)
        assert len(world.store.delays) <= 8
        await world.store.ended(40)
    assert len(world.store.filed) == 40
    assert len(world.store.delays) == 9


async def test_a_note_older_than_its_key_is_never_submitted(world):
    world.submit(age_s=8 * DAY_S + 60)
    async with RemoteMx(path=world.path) as mx, world.running():
        await world.store.ended()
    assert mx.sessions == 0
    ((_, recipients),) = world.reports.asked
    assert "unknown whether it was sent" in recipients[0].evidence.reply


async def test_no_more_than_max_concurrent_are_in_work(world):
    for number in range(9):
        world.submit(number)
    gate = asyncio.Event()
    async with (
        RemoteMx(path=world.path, gates={"DOT": gate}) as mx,
        world.running(max_concurrent=3),
    ):
        async with asyncio.timeout(10):
            while len(mx.envelopes) < 3:
                await asyncio.sleep(0.005)
        assert world.waiting == 9
        gate.set()
        await world.store.ended(9)
        assert (mx.most_open, mx.sessions, len(mx.envelopes)) == (3, 3, 9)


async def test_draining_ends_what_is_in_work(world):
    world.submit()
    gate = asyncio.Event()
    async with RemoteMx(path=world.path, gates={"DOT": gate}) as mx:
        async with world.running():
            await mx.reached("DOT")
            asyncio.get_running_loop().call_later(0.05, gate.set)
        assert len(world.store.filed) == 1  # drain() waited
        assert mx.commands[-1] == "QUIT"


async def test_a_line_that_died_while_idle_costs_nothing(world):
    async with (
        RemoteMx(path=world.path, replies={"MAIL": ["250 ok", DROP, "250 ok"]}),
        world.running(max_concurrent=1),
    ):
        world.submit(1)
        await world.store.ended(1)
        world.submit(2)
        await world.store.ended(2)
    assert world.store.delays == []


async def test_without_dsn_nothing_is_submitted(world):
    world.submit(age_s=2 * DAY_S)
    extensions = [word for word in EXTENSIONS if word != "DSN"]
    async with RemoteMx(path=world.path, extensions=extensions) as mx, world.running():
        await world.store.ended()
    assert mx.envelopes == []
    assert len(world.store.failed) == 1


async def test_fewer_are_in_work_when_fewer_are_allowed(world):
    gate = asyncio.Event()
    async with (
        RemoteMx(path=world.path, gates={"DOT": gate}) as mx,
        world.running(max_concurrent=4) as pickup,
    ):
        pickup.allow(0)  # that is one: somebody has to ask whether there is room again
        for number in range(8):
            world.submit(number)
        await mx.reached("DOT")
        assert len(mx.envelopes) == 1
        gate.set()
        await world.store.ended(8)
        assert mx.most_open == 1
        gate.clear()
        pickup.allow(4)
        for number in range(8, 16):
            world.submit(number)
        async with asyncio.timeout(10):
            while mx.most_open < 4:
                await asyncio.sleep(0.005)
        gate.set()
        await world.store.ended(16)
        assert mx.most_open == 4


async def test_a_note_that_may_be_young_is_submitted(world):
    note = world.submit(age_s=400 * DAY_S)
    world.clock.doubtful_us = int(400 * DAY_S * 1e6)
    async with RemoteMx(path=world.path), world.running():
        await world.store.ended()
    assert set(world.store.filed) == {note.submission_id}
    assert not world.store.failed


@pytest.mark.parametrize(
    "earlier_s", [-60, 400 * DAY_S], ids=["before", "by a clock that was ahead"]
)
async def test_what_an_earlier_process_may_have_submitted_ends_as_unknown(world, earlier_s):
    note = world.submit(age_s=2 * DAY_S)
    facts = SubmissionFacts(note.submission_id, note.draft_id, note.account, note.account)
    at_us = world.clock.time_us() + int(earlier_s * 1e6)
    world.log.append(facts, Event(Step.CONVERTED, at_us, {}))
    async with RemoteMx(path=world.path, replies={"DOT": "451 4.3.0 busy"}), world.running():
        await world.store.ended()
    ((_, recipients),) = world.reports.asked
    assert recipients[0].evidence.status == "4.4.7"
