"""GET /relay/v1/events: one cursor, breaks, accounts, limits; on a real spool, log and connection."""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.base.accounts.account import Account, Role
from relay.base.clock import Ids, SystemClock
from relay.base.message.nexthop import NextHop
from relay.base.message.outcome import Delivered, Evidence
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Pressure
from relay.front_door.api import ApiDependencies, EventStreams, create_app, event_streams
from relay.front_door.api.event_streams import EventView
from relay.front_door.http import event_stream
from relay.front_door.http.http_server import HttpServer
from relay.store.journeys import event_feed
from relay.store.journeys.event_feed import (
    ChangeNotifier,
    EventCursor,
    EventFeed,
    parse_event_cursor,
)
from relay.store.journeys.events import RecordedEvent, Step
from relay.store.journeys.journey import Journeys
from relay.store.journeys.log_reader import LogReader
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from relay.store.spool.types import ClaimResult, SpoolUnavailableError
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.event_source import EventSource, ReceivedEvent, event_source
from tests.support.events import an_event, until
from tests.support.http_server import ANY_PORT
from tests.support.operator import all_to
from tests.support.spools import new_message, new_spool
from tests.support.tables import each_row

ALICE, BOB = "alice@example.test", "bob@example.test"
ACCOUNTS = {
    "alice": Account(ALICE),
    "bob": Account(BOB),
    "auditor": Account("auditor@example.test", role=Role.READ),
    "operator": Account("operator@example.test", role=Role.OPERATE),
}
FIELDS = ["cursor", "message", "submission_id", "step", "name", "at", "detail", "state"]
DELIVERED = Delivered(Evidence("2.1.5", "250 2.1.5 delivered"))
EVENTS_OF_MAIL = 6


def count_of(*kinds: type) -> int:
    """Return how many objects of these classes there are."""
    return sum(type(one) in kinds for one in gc.get_objects())


class CountingFeed(EventFeed):
    """Counts reads, and fails when it is told to."""

    reads = 0
    failures = 0
    gate: asyncio.Event | None = None  # where the reader of all streams waits
    alive = 0  # the most events in memory at the end of a page of new messages

    async def read(self, *args: Any, **options: Any) -> Any:
        self.reads += 1
        if self.gate is not None and "until" not in options:
            await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise SpoolUnavailableError("the disk fails")
        return await super().read(*args, **options)

    async def read_new(self, *args: Any, **options: Any) -> Any:
        batch = await super().read_new(*args, **options)
        self.alive = max(self.alive, count_of(RecordedEvent))
        return batch


class Relay:
    """The stores of a relay and its API."""

    def __init__(self, folder: Path) -> None:
        self.clock = SystemClock()
        self.ids = Ids(self.clock)
        self.changes = ChangeNotifier()
        self.spool = new_spool(folder / "spool.sqlite")
        self.log = SubmissionLog(
            folder / "log", role="relay", clock=self.clock, on_append=self.changes.notify
        )
        self.feed = CountingFeed(self.spool, LogReader(folder / "log"))
        self.streams = EventStreams(self.feed, changes=self.changes, clock=self.clock)
        dependencies = ApiDependencies(
            journeys=Journeys(self.spool, self.log, self.feed, clock=self.clock),
            queue_admin=self.spool.queue_admin,
            stats=self.spool.stats,
            traffic=None,
            way_to=lambda text: all_to(NextHop.parse(text)),
            target_of=str,
            changes=self.changes,
            metrics=Metrics(),
            ready=lambda: "",
            clock=self.clock,
            pressure=Pressure(),
            prune=None,
            sources=None,
            unlock=None,
            usage=None,
            samples=None,
            events=self.streams,
            restored=None,
            submissions=None,
            refusals=None,
            impaired=str,
            pauses=None,
            explain=None,
            webhooks=None,
            suppression=None,
            is_own=None,
        )
        self.accounts = dict(ACCOUNTS)
        app = create_app(dependencies, authentication_of(TokenAccounts(self.accounts)))
        self.server = HttpServer(app, [ANY_PORT], clock=self.clock)

    async def mail(self, account: str = ALICE, *, late_us: int = 0) -> tuple[str, str]:
        """Record the six events of one message; return its submission id and queue id."""
        draft = self.ids.new()
        submission_id = f"{draft}.1"
        facts = SubmissionFacts(submission_id, draft, account, account, recipients=("x@a.test",))
        at_us = self.clock.time_us() - late_us
        for step in (Step.CREATED, Step.NOTIFIED, Step.CONVERTED):
            self.log.append(facts, an_event(step, at_us + step))
        detail = {"next_hops": {"local": ["x@a.test"]}}
        routed = an_event(Step.POLICY_AND_ROUTING, at_us + 4, detail)
        message = new_message(
            [("local", "x@a.test")], account=account, submission_id=submission_id, events=(routed,)
        )
        accepted = await self.spool.accept(message)
        self.log.append(facts, an_event(Step.ACCEPTED, at_us + 5), queue_id=accepted.queue_id)
        (claim,) = accepted.claims
        recipients = [{"number": 1, "address": "x@a.test", "outcome": "delivered"}]
        recipients[0] |= {"status": "", "reply": ""}
        event = an_event(Step.DELIVERY, at_us + 6, {"entry": 1, "recipients": recipients})
        await self.spool.record(ClaimResult(claim, at_us, {1: DELIVERED}, None, events=(event,)))
        self.changes.notify()
        return submission_id, accepted.queue_id

    @asynccontextmanager
    async def stream(self, token: str = "operator", **options: Any) -> AsyncIterator[EventSource]:
        address = self.server.bound[0]
        async with event_source(address.host, address.port, token=token, **options) as source:
            if source.status == 200 and options.get("method") != "HEAD":
                assert await source.chunk() == b"retry: 2000\n"
            yield source

    async def recorded(self, account: str | None = None) -> list[str]:
        """Return the cursors of everything that is recorded, as one reader gets them."""
        found: list[str] = []
        after, is_complete = EventCursor(), False
        while not is_complete:
            batch = await super(CountingFeed, self.feed).read(after, limit=1000)
            found += [
                identity(one.queue_id, one.submission_id, int(one.step))
                for _, _, one in batch.events
                if account in (None, one.account)
            ]
            after, is_complete = batch.cursor, batch.is_complete
        return found


def identity(queue_id: str | None, submission_id: str | None, step: int) -> str:
    return f"{queue_id if step > 4 else submission_id}/{step}"


def names(events: list[ReceivedEvent]) -> list[str]:
    return [
        identity(one.data["message"], one.data["submission_id"], one.data["step"])
        for one in events
        if one.type == "message"
    ]


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Relay]:
    relay = Relay(folder)
    await relay.spool.start()
    await relay.server.start()
    try:
        yield relay
    finally:
        relay.streams.close()
        await relay.server.stop(1.0)
        relay.log.close()
        await relay.spool.stop()


@pytest.fixture
async def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    monkeypatch.setattr(event_streams, "_POLL_S", 0.05)
    async with running(tmp_path) as relay:
        yield relay


async def test_every_step_of_a_message(relay: Relay) -> None:
    async with relay.stream() as source:
        submission_id, queue_id = await relay.mail()
        found = await source.events(EVENTS_OF_MAIL)
    found.sort(key=lambda one: one.data["step"])  # step 4 may be recorded after later ones
    assert [one.data["step"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert {one.type for one in found} == {"message"}
    assert all(list(one.data) == FIELDS and one.id == one.data["cursor"] for one in found)
    assert {one.data["submission_id"] for one in found} == {submission_id}
    assert [one.data["message"] for one in found] == [None] * 3 + [queue_id] * 3
    assert [one.data["name"] for one in found][-2:] == ["policy and routing", "delivery"]
    states = [one.data["state"] for one in found]
    assert states == ["converting"] * 3 + [None, "queued", "delivered"]
    assert found[-1].data["detail"]["recipients"][0]["outcome"] == "delivered"


async def test_a_cursor_of_another_node_whose_reader_is_ahead(relay: Relay) -> None:
    """What is before it does not come again."""
    async with relay.stream() as first:
        await relay.mail()
        await first.events(EVENTS_OF_MAIL)
        relay.feed.gate, before = asyncio.Event(), relay.feed.reads
        await relay.mail()
        await until(lambda: relay.feed.reads > before)
        ahead = EventCursor((await relay.feed.now()).sequence)
        async with relay.stream(query={"after": str(ahead)}) as second:
            await relay.mail()
            relay.feed.gate.set()
            found = [one.data async for one in spool_events(second, 2)]
            await relay.mail()
            found += [one.data async for one in spool_events(second, 2)]
    numbers = [int(one["cursor"].partition(".")[0]) for one in found]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > ahead.sequence


async def test_a_cursor_beyond_every_event_waits_behind_a_gap(relay: Relay) -> None:
    """It is of a state that was lost: a clock was ahead, and a backup was restored."""
    await relay.mail()
    ahead = EventCursor(2 * relay.clock.time_us())
    async with relay.stream(query={"after": str(ahead)}) as source:
        gap = await source.event()
        assert gap is not None
        assert gap.type == "gap"
        _, queue_id = await relay.mail()
        found = [one.data async for one in spool_events(source, 2)]
    assert {one["message"] for one in found} == {queue_id}


async def test_a_cursor_of_a_node_with_another_log(relay: Relay) -> None:
    """A gap says that the lines there are not told; those before, here, are not told again."""
    await relay.mail()
    number = (await relay.feed.now()).sequence
    cursor = f"{number}.relay-8a5b1c2d~2026-01-01~649~139~a6fc302d"
    async with relay.stream(query={"after": cursor}) as source:
        gap = await source.event()
        assert gap is not None
        assert gap.type == "gap"
        submission_id, _ = await relay.mail()
        found = await source.events(EVENTS_OF_MAIL)
    assert {one.data["submission_id"] for one in found} == {submission_id}


async def spool_events(source: EventSource, number: int) -> AsyncIterator[ReceivedEvent]:
    """Yield the next events of the spool."""
    while number:
        event = await source.event()
        assert event is not None
        if event.type == "message" and event.data["step"] >= Step.POLICY_AND_ROUTING:
            number -= 1
            yield event


async def test_a_step_before_step_5_never_comes_behind_it(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail is recorded while the stream reads: behind the first of its two sources."""
    loop, mailed = asyncio.get_running_loop(), asyncio.Event()
    events_after, read_log = relay.spool.events_after, LogReader.read

    async def mail_once() -> None:
        if not mailed.is_set():
            mailed.set()
            await relay.mail()

    async def events_after_and_mail(*args: Any, **options: Any) -> Any:
        found = await events_after(*args, **options)
        await mail_once()
        return found

    def read_log_and_mail(*args: Any, **options: Any) -> Any:
        found = read_log(*args, **options)
        asyncio.run_coroutine_threadsafe(mail_once(), loop).result(20)
        return found

    monkeypatch.setattr(relay.spool, "events_after", events_after_and_mail)
    monkeypatch.setattr(LogReader, "read", read_log_and_mail)
    async with relay.stream() as source:
        steps = [one.data["step"] for one in await source.events(EVENTS_OF_MAIL)]
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    assert [step for step in steps if step != 4] == [1, 2, 3, 5, 6]


async def test_a_stream_begins_now_or_at_the_beginning_or_behind_a_cursor(relay: Relay) -> None:
    await relay.mail()
    async with relay.stream(query={"after": "0"}) as source:
        old = await source.events(EVENTS_OF_MAIL)
        async with relay.stream() as later:
            begins = later.headers["x-relay-cursor"]
            await relay.mail()
            new = await later.events(EVENTS_OF_MAIL)
            assert names(await source.events(EVENTS_OF_MAIL)) == names(new)
    for after, expected in ((begins, new), (old[2].id, old[3:] + new), (new[1].id, new[2:])):
        async with relay.stream(query={"after": after}) as source:
            assert names(await source.events(len(expected))) == names(expected)


async def test_from_now_on_means_now_although_the_reader_is_behind(relay: Relay) -> None:
    async with relay.stream() as source:
        await relay.mail()
        await source.events(EVENTS_OF_MAIL)
        relay.feed.failures = 1  # the reader sees the next message a moment late
        before, _ = await relay.mail()
        async with relay.stream() as later:
            after, _ = await relay.mail()
            found = await later.events(EVENTS_OF_MAIL)
        assert {one.data["submission_id"] for one in found} == {after}
        both = {one.data["submission_id"] for one in await source.events(2 * EVENTS_OF_MAIL)}
        assert both == {before, after}


@each_row(
    "options, status, text",
    [
        ({"query": {"after": "x"}}, 400, "after: found 'x', expected the id of an event"),
        ({"query": {"after": "9" * 19}}, 400, "after: found"),
        ({"query": {"after": "1.relay~2026-01-01~5~5~zz"}}, 400, "after: found"),
        ({"headers": {"last-event-id": "1.2"}}, 400, "Last-Event-ID: found '1.2'"),
        ({"query": {"aftre": "0"}}, 400, "The parameter 'aftre' is unknown"),
        ({"query": {"message": "nothing"}}, 404, "No message is known as 'nothing'"),
        ({"token": ""}, 401, "token"),
        ({"token": "nobody"}, 401, "token"),
        ({"method": "POST"}, 405, "not allowed"),
    ],
)
async def test_bad_requests(relay: Relay, options: Any, status: int, text: str) -> None:
    headers = {"connection": "close"} | options.pop("headers", {})
    async with relay.stream(headers=headers, **options) as source:
        assert source.status == status
        assert text in (await source.read_rest()).decode()
        assert source.headers["request-id"]


@pytest.mark.parametrize("token", ["alice", "bob", "auditor", "operator"])
async def test_an_account_gets_the_events_of_its_own_messages(relay: Relay, token: str) -> None:
    async with relay.stream(token, query={"after": "0"}) as source:
        for account in (ALICE, BOB, "", ALICE, BOB, ""):
            await relay.mail(account)
        seen = ACCOUNTS[token].address if token in ("alice", "bob") else None
        expected = await relay.recorded(seen)
        assert len(expected) == (12 if seen else 36)
        assert sorted(names(await source.events(len(expected)))) == sorted(expected)
        last, _ = await relay.mail(seen or BOB)
        assert {one.data["submission_id"] for one in await source.events(6)} == {last}


@pytest.mark.parametrize("now", [None, Account(ACCOUNTS["operator"].address, role=Role.USER)])
async def test_a_stream_ends_when_the_token_or_the_role_does(
    relay: Relay, now: Account | None, monkeypatch
) -> None:
    monkeypatch.setattr(event_stream, "HEARTBEAT_S", 0.05)
    async with relay.stream() as source, relay.stream("auditor") as other:
        await relay.mail()
        await source.events(EVENTS_OF_MAIL)
        if now is None:
            del relay.accounts["operator"]
        else:
            relay.accounts["operator"] = now
        assert await source.event() is None
        await other.events(EVENTS_OF_MAIL)


async def test_one_message(relay: Relay) -> None:
    submission_id, queue_id = await relay.mail()
    await relay.mail()
    draft = submission_id.partition(".")[0]
    for key in (draft, submission_id, queue_id):
        async with relay.stream("alice", query={"after": "0", "message": key}) as source:
            found = await source.events(EVENTS_OF_MAIL)
            assert {one.data["submission_id"] for one in found} == {submission_id}
    async with relay.stream("bob", query={"message": queue_id}) as source:
        assert source.status == 404


async def test_any_breaks_lose_nothing_and_repeat_nothing(relay: Relay, monkeypatch) -> None:
    """Clients break and continue at random while mail flows whose times go back and forth."""
    monkeypatch.setattr(event_feed, "_PAUSE_S_MAX", 0.01)
    choose = random.Random(11)
    senders = [choose.choice((ALICE, BOB)) for _ in range(40)]

    async def send() -> None:
        for account in senders:
            await relay.mail(account, late_us=choose.randrange(10**9))
            await asyncio.sleep(choose.random() * 0.02)

    async def follow(token: str, account: str | None) -> list[ReceivedEvent]:
        count = EVENTS_OF_MAIL * (senders.count(account) if account else len(senders))
        found: list[ReceivedEvent] = []
        breaks, last = 0, "0"
        while len(found) < count:
            breaks += 1
            options = choose.choice(
                ({"query": {"after": last}}, {"headers": {"last-event-id": last}})
            )
            async with relay.stream(token, **options) as source:
                for _ in range(min(count - len(found), choose.randrange(1, 25))):
                    found += await source.events(1)
                    last = found[-1].id
        assert breaks > 5
        return found

    clients = [("operator", None), ("auditor", None), ("alice", ALICE), ("bob", BOB)]
    *results, _ = await asyncio.gather(*(follow(*one) for one in clients), send())
    for (_, account), found in zip(clients, results, strict=True):
        expected = await relay.recorded(account)
        assert sorted(names(found)) == sorted(expected)
        assert len({one.id for one in found}) == len(found)
        assert {one.type for one in found} == {"message"}


async def test_a_read_for_another_client_repeats_nothing(relay: Relay) -> None:
    """There, a late event of the log may stand before one that the client has already."""
    await relay.mail()
    async with relay.stream(query={"after": "0"}) as source:
        had = await source.events(EVENTS_OF_MAIL)
    await relay.mail(late_us=10**9)
    async with relay.stream(query={"after": "0"}) as other:
        await other.events(2 * EVENTS_OF_MAIL)
        async with relay.stream(query={"after": had[-1].id}) as source:
            had += await source.events(1)
    async with relay.stream(query={"after": had[-1].id}) as source:
        had += await source.events(EVENTS_OF_MAIL - 1)
    assert sorted(names(had)) == sorted(await relay.recorded())


async def test_what_was_pruned_is_a_gap(relay: Relay) -> None:
    for _ in range(3):
        await relay.mail()
    async with relay.stream(query={"after": "0"}) as source:
        old = await source.events(3 * EVENTS_OF_MAIL)
    await relay.spool.maintenance.prune_many(0.0)
    last = old[5].id
    async with relay.stream(headers={"last-event-id": last}) as source:
        gap = await source.event()
        assert (gap.type, gap.id, gap.data["cursor"]) == ("gap", last, last)
        left = await source.events(2 * 4)
        assert {one.data["step"] for one in left} == {1, 2, 3, 4}
        await relay.mail()
        assert {one.type for one in await source.events(6)} == {"message"}
    for after in ("0", old[-1].id):  # the beginning of what is kept, and behind what was removed
        async with relay.stream(query={"after": after}) as source:
            assert (await source.event()).type == "message"


async def test_a_reset_is_a_gap_and_the_stream_goes_on(relay: Relay) -> None:
    async with relay.stream() as source:
        await relay.mail()
        old = await source.events(EVENTS_OF_MAIL)
        relay.log.clear()
        await relay.spool.development.clear()
        await relay.mail()
        first = await source.event()
        assert first.type == "gap"
        new = await source.events(EVENTS_OF_MAIL)
        assert names(new) == await relay.recorded()
    for one in (old[0], old[-1]):
        async with relay.stream(query={"after": one.id}) as source:
            assert (await source.event()).type == "gap"
            assert names(await source.events(EVENTS_OF_MAIL)) == names(new)


async def test_the_streams_of_an_account_are_limited(relay: Relay) -> None:
    async with relay.stream("alice"):
        opened = [relay.stream("alice") for _ in range(event_streams.STREAMS_OF_ACCOUNT_MAX - 1)]
        for one in opened:
            await one.__aenter__()
        async with relay.stream("alice") as source:
            assert (source.status, source.headers["retry-after"]) == (429, "5")
        async with relay.stream("bob") as source:
            assert source.status == 200
        for one in opened:
            await one.__aexit__(None, None, None)
        await until(lambda: relay.streams._open.total == 1)  # a disconnect frees its place
        async with relay.stream("alice") as source:
            assert source.status == 200


async def test_streams_share_what_is_read(relay: Relay) -> None:
    async def follow(after: str) -> list[str]:
        async with relay.stream(query={"after": after}) as source:
            ready.append(source)
            return names(await source.events(10 * EVENTS_OF_MAIL))

    ready: list[EventSource] = []
    for _ in range(5):
        await relay.mail()
    followers = [asyncio.create_task(follow("0")) for _ in range(30)]
    await until(lambda: len(ready) == 30)
    before = relay.feed.reads
    for _ in range(5):
        await relay.mail()
        await asyncio.sleep(0.05)
    found = await asyncio.gather(*followers)
    assert len(set(map(tuple, found))) == 1
    assert relay.feed.reads - before < 30  # not 30 for each of five messages


async def test_the_reader_continues_after_an_error(
    relay: Relay, capfd: pytest.CaptureFixture[str]
) -> None:
    async with relay.stream() as source:
        relay.feed.failures = 2
        await until(lambda: not relay.feed.failures)
        await relay.mail()
        assert len(await source.events(EVENTS_OF_MAIL)) == EVENTS_OF_MAIL
    logged = capfd.readouterr().err
    assert logged.count("events not read") == 1
    assert "the disk fails" in logged
    assert "level=error" not in logged


@each_row(
    "text", ["0", "9" * 18, "5.cli~2026-01-01~0~0~00000000.relay~2026-11-21~649~139~a6fc302d"]
)
def test_a_cursor_is_its_text(text: str) -> None:
    assert str(parse_event_cursor(text)) == text


@each_row(
    "text",
    [
        *("", "-1", "+1", " 1", "1 ", "01", "1.", "\u0661", "1.a~b", "1" * 19),
        *("1.relay~2026-11-21~649~139~A6FC302D", "1.relay~2026-11-21~0649~139~a6fc302d"),
        *("1.relay~2026-11-21~1~1~00000000.relay~2026-11-21~1~1~00000000", "1\n"),
        "1" + ".a" * 9999,
    ],
)
def test_what_is_not_a_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        parse_event_cursor(text)


async def test_all_streams_are_limited(relay: Relay, monkeypatch) -> None:
    monkeypatch.setattr(event_streams, "STREAMS_MAX", 2)
    async with relay.stream(), relay.stream(), relay.stream() as source:
        assert (source.status, source.headers["retry-after"]) == (503, "5")


async def test_the_last_streams_are_for_operators(relay: Relay, monkeypatch) -> None:
    monkeypatch.setattr(event_streams, "STREAMS_MAX", event_streams.STREAMS_RESERVED + 1)
    async with relay.stream("alice"), relay.stream("bob") as user, relay.stream() as operator:
        assert (user.status, operator.status) == (503, 200)


async def test_streams_that_come_at_once_do_not_exceed_the_limit(relay: Relay, monkeypatch) -> None:
    monkeypatch.setattr(event_streams, "STREAMS_OF_ACCOUNT_MAX", 2)
    streams = [(await relay.streams.response(EventView(ALICE))).blocks for _ in range(4)]
    assert [await anext(one, b"") for one in streams] == [b"retry: 2000\n"] * 2 + [b""] * 2
    for one in streams:
        await one.aclose()


async def test_clients_that_read_the_past_again_and_again_take_turns_with_pauses(
    relay: Relay, monkeypatch
) -> None:
    monkeypatch.setattr(event_feed, "pause_after", lambda _cost_s: 0.1)
    await relay.mail()
    async with relay.stream("auditor"):
        began = asyncio.get_running_loop().time()
        for number in range(5):
            relay.streams._recent.clear()
            async with relay.stream(query={"after": str(number)}) as source:
                await source.events(1)
        assert asyncio.get_running_loop().time() - began > 0.15


async def test_what_was_read_for_a_client_goes_with_it(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it reads: one page of the history is in memory, however many wait."""
    page = 100
    monkeypatch.setattr(event_feed, "_NEW_AT_ONCE", page)
    for _ in range(60):
        await relay.mail()

    async def leave(number: int, path: str) -> None:
        address = relay.server.bound[0]
        reader, writer = await asyncio.open_connection(address.host, address.port)
        head = f"GET /relay/v1/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer operator"
        writer.write(f"{head}\r\n\r\n".encode())
        if path.startswith("events"):
            await reader.read(1)
        await asyncio.sleep(number % 10 * 0.02)
        writer.close()

    tasks, search = len(asyncio.all_tasks()), "messages?subject=zz*&after=0"
    for path in (f"{search}&wait=60", search, "events?after=0"):
        await asyncio.gather(*(leave(number, path) for number in range(100)))
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        gc.collect()
        await until(lambda: count_of(RecordedEvent, EventCursor) < 5)
    assert page <= relay.feed.alive < 4 * page
