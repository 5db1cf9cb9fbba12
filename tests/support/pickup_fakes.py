"""The dependencies of a pickup without mailboxes: submissions, reports and crash points in memory."""

import asyncio
import contextlib
from random import Random
from types import SimpleNamespace

from relay.base.crashpoints import CrashPoints
from relay.base.message.content import MemoryOctets
from relay.base.message.properties import EmailAddress, MessageProperties
from relay.base.observe.metrics import Metrics
from relay.formats.convert import convert
from relay.formats.draft import DraftOrigin
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.store.mailbox.errors import MailboxFullError, NoSuchItemError
from relay.store.mailbox.pending_submission import PendingSubmission
from relay.submission.outbox.pending import PendingSubmissions
from relay.submission.pickup.conversion import ConversionPool
from relay.submission.pickup.dispatch import Pickup
from relay.submission.pickup.processing import SubmissionProcessor
from relay.submission.pickup.start_limits import StartLimits
from tests.support.drafts import write_draft
from tests.support.events import an_event
from tests.support.manual_clock import ManualClock
from tests.support.remote_mx import RemoteMx

DAY_S = 86400.0
POSTMASTER = "postmaster@example.test"
MIME = b"From: alice@example.test\r\nTo: b@y.test\r\nCc: c@y.test\r\nSubject: x\r\n\r\nhello\r\n"
ALICE = EmailAddress("alice@example.test")


def draft(to="b@y.test", **fields):
    """A draft of Alice, as the store writes it."""
    properties = MessageProperties(from_=ALICE, to=(EmailAddress(to),), **fields)
    return write_draft(properties, DraftOrigin(ALICE.address, "base", "<i@h>", 1, 1))


class Ready:
    """ReadySubmissions without mailboxes. Retries return at once; their delays are recorded."""

    def __init__(self, folder):
        self.filed, self.failed, self.delays = {}, {}, []
        self.error_once, self.to_corrupt = None, []
        self.full, self.reported_to = set(), {}
        self.folder = folder
        self._ready, self.is_in_rush = [], False
        self.rush = SimpleNamespace(is_rush=lambda: self.is_in_rush)
        self.pending = PendingSubmissions(self._changed_ns, self._list_ready, clock=ManualClock())
        self.watch, self._retry, self.pending.retry = (
            self.pending.watch,
            self.pending.retry,
            self.retry,
        )
        self._changed = asyncio.Condition()

    def submit(
        self, number=1, *, content=MIME, account="alice@example.test", base_name="base", ready_us=0
    ):
        path = self.folder / f"draft{number}.1"
        pending = PendingSubmission(path.name, account, base_name, path, ready_us=ready_us)
        path.write_bytes(content)
        self._ready.append(pending)
        self.pending.offer(pending)
        return pending

    async def _changed_ns(self):
        return len(self._ready)

    async def _list_ready(self, known, limit):
        return [one for one in self._ready if one.submission_id not in known][:limit]

    async def content(self, pending):
        if self.error_once is not None:
            error, self.error_once = self.error_once, None
            if isinstance(error, NoSuchItemError):
                self._forget(pending)
            raise error
        return MemoryOctets(pending.path.read_bytes())

    def retry(self, pending, delay_s):
        self.delays.append(delay_s)
        self._retry(pending, 0.01)

    async def complete(self, pending, *, queue_id):
        await self._end(self.filed, pending, queue_id)

    async def fail(self, pending, report, *, report_to="", to_corrupt=False):
        mailbox = report_to or pending.account
        if mailbox in self.full:
            raise MailboxFullError(f"The mailbox {mailbox} is full.")
        self.reported_to[pending.submission_id] = mailbox
        if to_corrupt:
            self.to_corrupt.append(pending.submission_id)
        await self._end(self.failed, pending, report)

    def _forget(self, pending):
        self._ready = [x for x in self._ready if x.submission_id != pending.submission_id]
        self.pending.done(pending)

    async def _end(self, ends, pending, value):
        self._forget(pending)
        async with self._changed:
            ends[pending.submission_id] = value
            self._changed.notify_all()

    async def ended(self, count=1):
        async with asyncio.timeout(120), self._changed:
            await self._changed.wait_for(lambda: len(self.filed) + len(self.failed) >= count)


class Reports:
    """Records what it is asked to report."""

    def __init__(self):
        self.asked = []
        self.error_once = None

    async def inbox_report(self, kind, message, recipients, *, content):
        if error := self.error_once:
            self.error_once = None
            raise error
        self.asked.append((kind, message, content, list(recipients)))
        return b"report"

    @property
    def recipients(self):
        ((_, _, _, recipients),) = self.asked  # of the only report
        return recipients

    @property
    def evidence(self):
        return self.recipients[0].evidence


class Crash(CrashPoints):
    """Records the crash points instead of dying."""

    def __init__(self):
        super().__init__()
        self.passed = []

    def is_at(self, point):
        return True

    def reached(self, point):
        self.passed.append(str(point))


class PickupFakes:
    """The dependencies of a Pickup; `async with fakes.running():` runs and drains it."""

    def __init__(self, tmp_path):
        self.clock = ManualClock()
        self.ready, self.reports = Ready(tmp_path), Reports()
        self.crash, self.metrics = Crash(), Metrics()
        self.folder, self.path = tmp_path, str(tmp_path / "pickup.sock")
        self.log = SubmissionLog(tmp_path / "log", role="pickup", clock=self.clock)

    @contextlib.asynccontextmanager
    async def running(self, *, max_concurrent=2, converter=convert):
        processor = SubmissionProcessor(
            ready=self.ready,
            inbox_report=self.reports.inbox_report,
            postmaster=lambda: POSTMASTER,
            # the tests of child processes have another converter
            conversion=ConversionPool(
                converter, hostname="relay.test", clock=self.clock, in_threads=converter is convert
            ),
            limits=StartLimits(
                self.clock, concurrency=max_concurrent, is_rush=self.ready.rush.is_rush
            ),
            log=self.log,
            clock=self.clock,
            crash=self.crash,
            metrics=self.metrics,
            started_us=self.clock.time_us(),
            may_send_as=lambda _account, address: not address.startswith("denied"),
            may_submit=lambda _account: True,
            accepted=lambda _ids: (),
        )
        pickup = self.pickup = Pickup(
            processor, socket=self.folder / "pickup.sock", hostname="relay.test", rng=Random(0)
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

    @contextlib.asynccontextmanager
    async def with_server(self, *, max_concurrent=2, converter=convert, **server):
        """Run with a server, a RemoteMx(**server), which is yielded."""
        running = self.running(max_concurrent=max_concurrent, converter=converter)
        async with RemoteMx(path=self.path, **server) as mx, running:
            yield mx

    async def run_until_ended(self, count=1, **options):
        """Run until `count` submissions have ended; return the server."""
        async with self.with_server(**options) as mx:
            await self.ready.ended(count)
        return mx

    @property
    def waiting(self):
        return self.metrics.registry.get_sample_value("relay_pickup_waiting")

    def submit(self, number=1, *, age_s=0.0, **fields):
        return self.ready.submit(number, ready_us=self.clock.time_us() - int(age_s * 1e6), **fields)

    def record(self, pending, step, at_us):
        """Log a step of an earlier process."""
        facts = SubmissionFacts(
            pending.submission_id, pending.draft_id, pending.account, pending.account
        )
        self.log.append(facts, an_event(step, at_us))
