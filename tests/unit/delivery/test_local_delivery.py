"""Local delivery: what a mailbox that rejects leads to, and several mailboxes at once."""

import asyncio
from types import SimpleNamespace

import pytest

from relay.base.message.envelope import Envelope, ForwardPath, MessageFacts, Source
from relay.base.message.nexthop import LOCAL
from relay.base.message.outcome import Deferred, Failed, Indeterminate, Outcome
from relay.delivery.active_queue import ClaimsInMemory
from relay.delivery.local_delivery import LocalDelivery
from relay.store.mailbox.delivery_store import DeliveryResult
from relay.store.mailbox.errors import MailboxFullError, MailboxTooSmallError, StoreUnavailableError
from relay.store.spool.types import NO_EXTRA, ClaimedRecipient
from tests.support.claims import a_claim
from tests.support.tables import each_row


@each_row(
    "error, kind, status, code",
    [
        (MailboxFullError("full"), Deferred, "4.2.2", "452"),
        (MailboxTooSmallError("too small"), Failed, "5.2.2", "552"),
        (StoreUnavailableError("no disk"), Deferred, "4.3.0", "451"),
    ],
)
async def test_a_mailbox_error_defers_or_bounces(error, kind, status, code):
    class Refusing:
        async def deliver(self, *args, **more):
            raise error

    addresses = SimpleNamespace(mailbox_for=lambda address: address)
    message = MessageFacts("m", Envelope("a@b.test"), Source.SMTP, trusted=True, received_us=0)
    recipient = ClaimedRecipient(1, ForwardPath("bob@b.test"))
    claim = SimpleNamespace(
        message=message,
        recipients=(recipient,),
        attempts=0,
        attempt=1,
        next_hop=LOCAL,
        extra=NO_EXTRA,
    )
    local = LocalDelivery(None, Refusing(), addresses)
    ((mailbox, group),) = local.by_mailbox(claim)
    outcome = await local.deliver(claim, mailbox, group, content=b"\r\n")
    assert isinstance(outcome, kind)
    assert outcome.evidence.status == status
    assert outcome.evidence.reply.startswith(f"{code} {status} ")


# -- several mailboxes at once


class SlowStore:
    """Deliveries that end when the test says so."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0
        self.may_end = asyncio.Event()
        self.changed = asyncio.Event()

    async def deliver(self, account, **more):
        self.running.append(account)
        self.most = max(self.most, len(self.running))
        self.changed.set()
        try:
            await self.may_end.wait()
            await asyncio.sleep(0)
        finally:
            self.running.remove(account)
        return DeliveryResult.DELIVERED

    async def until(self, number: int) -> None:
        """Wait until so many deliveries run, and nobody begins one more."""
        async with asyncio.timeout(120):
            while len(self.running) < number:
                self.changed.clear()
                await self.changed.wait()
            for _ in range(10):
                await asyncio.sleep(0)
        assert len(self.running) == number


class SmallContents:
    def has_room_for(self, _claim):
        return True

    async def of(self, _claim):
        return b"\r\n"


class RecordingResults:
    """Keeps the outcomes of each claim."""

    def __init__(self) -> None:
        self.recorded: dict[int, dict[int, Outcome]] = {}
        self.given_back: list[int] = []
        self.ended = asyncio.Event()
        self.contents, self.claims = SmallContents(), ClaimsInMemory()

    async def record(self, claim, outcomes, **_reached):
        self.recorded[claim.entry_id] = outcomes
        self.ended.set()

    async def finish(self, recordings):
        await asyncio.gather(*recordings)

    async def release(self, claim):
        self.given_back.append(claim.entry_id)


class Deliveries:
    def __init__(self) -> None:
        self.store, self.recorder = SlowStore(), RecordingResults()
        addresses = SimpleNamespace(mailbox_for=lambda address: address)
        self.queue = LocalDelivery(self.recorder, self.store, addresses)

    def push(self, entry_id: int, *, count: int) -> None:
        self.queue.push(a_claim(count=count, entry_id=entry_id, next_hop=LOCAL))

    async def until_recorded(self, entry_id: int) -> dict[int, Outcome]:
        async with asyncio.timeout(120):
            while entry_id not in self.recorder.recorded:
                self.recorder.ended.clear()
                await self.recorder.ended.wait()
        return self.recorder.recorded[entry_id]


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries()


async def test_claims_share_the_limit(deliveries):
    deliveries.push(1, count=40)
    deliveries.push(2, count=40)
    deliveries.push(3, count=1)
    await deliveries.store.until(5 + 5 + 1)
    deliveries.store.may_end.set()
    for number in (1, 2, 3):
        await deliveries.until_recorded(number)
    deliveries.store.may_end.clear()
    for number in range(4, 44):
        deliveries.push(number, count=1)
    await deliveries.store.until(16)
    deliveries.store.may_end.set()
    await deliveries.until_recorded(43)


async def test_a_delivery_that_is_cut_off_leaves_what_was_not_begun_without_an_outcome(deliveries):
    deliveries.push(1, count=40)
    await deliveries.store.until(16)
    deliveries.queue.abort()
    outcomes = await deliveries.until_recorded(1)
    assert sorted(outcomes) == [*range(1, 17)]
    assert all(isinstance(one, Indeterminate) for one in outcomes.values())
    assert deliveries.store.running == []
