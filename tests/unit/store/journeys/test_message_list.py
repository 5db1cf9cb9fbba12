"""The message list over a real spool and submission log: its pages, and what is after a cursor."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from relay.base.clock import Ids, rfc3339
from relay.store.journeys import journey, list_places, message_list
from relay.store.journeys.event_feed import EventFeed, parse_event_cursor
from relay.store.journeys.events import Step
from relay.store.journeys.journey import Journeys, MessageList
from relay.store.journeys.log_reader import LogReader
from relay.store.journeys.submission_log import SubmissionFacts, SubmissionLog
from tests.support.events import an_event
from tests.support.long_tests import sampled
from tests.support.manual_clock import ManualClock
from tests.support.spools import message_of, spool_on

ALICE = "alice@example.test"


class Messages:
    """Submissions and accepted messages, as the rooms record them."""

    def __init__(self, spool: Any, log: SubmissionLog, clock: ManualClock, directory: Path) -> None:
        self.spool = spool
        self.directory = directory
        self.log = log
        self.clock = clock
        self.ids = Ids(clock)
        self.journeys = Journeys(spool, log, EventFeed(spool, LogReader(directory)), clock=clock)

    def submit(
        self,
        *,
        draft_id: str = "",
        account: str = ALICE,
        number: str = "1",
        send_at_us: int = 0,
        client: str = "",
        **facts: Any,
    ) -> SubmissionFacts:
        """Steps 1 and 2."""
        draft_id = draft_id or self.ids.new()
        values = {"sender": account, "subject": "s", "recipients": ("x@a.test",)} | facts
        made = SubmissionFacts(f"{draft_id}.{number}", draft_id, account, **values)
        now_us = self.clock.time_us()
        notified: dict[str, Any] = {"client": {"address": client}} if client else {}
        notified |= {"deferred_until": rfc3339(send_at_us)} if send_at_us else {}
        events = an_event(Step.CREATED, now_us), an_event(Step.NOTIFIED, now_us, notified)
        self.log.append(made, *events)
        return made

    async def accept(self, submitted: SubmissionFacts | None = None, **changes: Any) -> str:
        """Step 5, after the other steps of a submission or by SMTP; the name of the message."""
        at_us = self.clock.time_us()
        hops = {"mx:a.test": changes.pop("recipients", ["x@a.test"])}
        name = submitted.submission_id if submitted else ""
        values = {"account": ALICE, "reverse_path": ALICE, "submission_id": name} | changes
        queue_id = self.ids.new()
        message = message_of(hops.items(), queue_id=queue_id, now_us=at_us, **values)
        message = replace(message, events=(an_event(Step.POLICY_AND_ROUTING, at_us),))
        await self.spool.accept(message)
        if submitted:
            self.log.append(submitted, an_event(Step.ACCEPTED, at_us), queue_id=queue_id)
        return name or queue_id

    async def listed(
        self, *, limit: int = 100, account: str | None = None, **wanted
    ) -> MessageList:
        if "after" in wanted:
            wanted["after"] = parse_event_cursor(wanted["after"])
        return await self.journeys.search(
            message_list.MessageSearch(**wanted), account=account, limit=limit
        )

    async def names(self, **wanted: Any) -> list[str]:
        found = await self.listed(**wanted)
        return [one.submission_id or one.id for one in found.messages]

    async def cursor(self) -> str:
        return str((await self.listed(limit=1)).cursor)


@pytest.fixture
async def messages(tmp_path: Path) -> AsyncIterator[Messages]:
    clock = ManualClock()
    log = SubmissionLog(tmp_path / "log", role="relay", clock=clock)
    async with spool_on(tmp_path / "spool.sqlite", clock) as spool:
        yield Messages(spool, log, clock, tmp_path / "log")
    log.close()


async def test_a_message_that_is_accepted_between_two_looks_stays_in_the_list(messages: Messages):
    """The spool accepts it after it was asked for its page, and before it is asked for its name."""
    waiting, sent = messages.submit(), messages.submit()
    find_page, pages = messages.spool.find_page, []

    async def find_and_accept(*wanted: Any, **options: Any) -> Any:
        pages.append(await find_page(*wanted, **options))
        if len(pages) == 1:
            await messages.accept(sent)
        return pages[-1]

    messages.spool.find_page = find_and_accept
    assert set(await messages.names()) == {waiting.submission_id, sent.submission_id}


async def test_a_journey_is_found_by_each_of_its_names_the_newest_first(messages: Messages) -> None:
    async def found(key: str, account: str | None = None) -> tuple[str | None, str | None] | None:
        one = await messages.journeys.journey(key, account=account)
        return one and (one.submission_id, one.id)

    first = messages.submit()
    await messages.accept(first)
    [row] = (await messages.journeys.page(message_list.MessageSearch(), account=None, limit=1)).rows
    for key in (first.graph_id, first.submission_id, row.id, "last", ALICE):
        assert await found(key) == (first.submission_id, row.id), key
        assert await found(key, "bob@example.test") is None
    messages.clock.advance(1)
    again = messages.submit(draft_id=first.graph_id, number="2")  # which the spool does not have
    for key in (first.graph_id, "last", ALICE):
        assert await found(key) == (again.submission_id, None), key
    messages.clock.advance(1)
    by_smtp = await messages.accept()
    theirs = messages.submit(account="bob@example.test")
    assert await found("last", ALICE) == await found(ALICE) == (None, by_smtp)
    assert await found(theirs.graph_id, ALICE) is None


async def test_conditions_hold_in_log_and_spool(messages: Messages) -> None:
    one = messages.submit(subject="Invoice 1", recipients=("bob@a.test", "carol@a.test"))
    messages.clock.advance(1)
    other = await messages.accept(subject="Invoice 2", recipients=["dan@b.test"])
    messages.submit(subject="Hello")
    await messages.accept(subject="Hello", reverse_path="app@b.test")
    assert await messages.names(subject="invoice *") == [other, one.submission_id]
    assert await messages.names(to="CAROL@a.test") == [one.submission_id]
    assert await messages.names(to="*@b.test") == [other]
    assert await messages.names(subject="invoice*", sender="app@b.test") == []
    assert await messages.names(state="queued", to="dan@*") == [other]
    assert await messages.names(state="final") == []
    assert await messages.names(subject="invoice*", account="bob@example.test") == []


async def test_a_message_that_is_visible_late_is_behind_one_of_two_cursors(messages: Messages):
    """Its time is earlier than the first list, which does not have it."""
    draft_id, submitted_us = messages.ids.new(), messages.clock.time_us()
    messages.clock.advance(0.5)
    first = await messages.listed()
    facts = SubmissionFacts(f"{draft_id}.1", draft_id, ALICE, ALICE, recipients=("x@a.test",))
    created, notified = an_event(Step.CREATED, submitted_us), an_event(Step.NOTIFIED, submitted_us)
    messages.log.append(facts, created, notified)
    second = await messages.listed(after=str(first.cursor))
    assert [one.submission_id for one in second.messages] == [facts.submission_id]
    assert await messages.names(after=str(second.cursor)) == []


async def test_each_message_is_behind_exactly_one_cursor(messages: Messages) -> None:
    cursor, found, sent = await messages.cursor(), [], []
    for number in range(60):
        sent.append(await messages.accept() if number % 2 else messages.submit().submission_id)
        messages.clock.now_us += (number % 3) * 700_000
        if number % 4 == 0:
            listed = await messages.listed(after=cursor)
            cursor = str(listed.cursor)
            found += [one.submission_id or one.id for one in listed.messages]
    found += await messages.names(after=cursor)
    assert sorted(found) == sorted(sent)


@pytest.mark.parametrize(
    ("count", "step_us"),
    [(25, 0), (25, 40_000), (25, 3_000_000), *sampled([(230, 1), (230, 40_000), (230, 3_000_000)])],
)
async def test_what_a_limit_leaves_out_is_behind_the_next_cursor(messages, step_us, count):
    cursor, found, sent = await messages.cursor(), [], []
    for number in range(count):
        if number % 3 == 0:
            sent.append(await messages.accept())
        else:
            submitted = messages.submit()
            sent.append(submitted.submission_id)
            if number % 3 == 1:
                await messages.accept(submitted)
        messages.clock.now_us += step_us
    while True:
        listed = await messages.listed(after=cursor, limit=10)
        cursor = str(listed.cursor)
        found += [one.submission_id or one.id for one in listed.messages]
        if not listed.messages:
            break
    assert sorted(found) == sorted(sent)


class Reader:
    """Reads page after page of the list."""

    def __init__(self, messages: Messages, **wanted: Any) -> None:
        self.messages = messages
        self.wanted = message_list.MessageSearch(**wanted)
        self.place: message_list.ListPosition | None = None
        self.at_end = False

    async def page(self, limit: int, account: str | None = None) -> list[str]:
        page = await self.messages.journeys.page(
            self.wanted, account=account, limit=limit, before=self.place
        )
        self.place, self.at_end = page.older, page.older is None
        return [row.submission_id or row.name for row in page.rows]

    async def rest(self, limit: int, account: str | None = None) -> list[str]:
        found: list[str] = []
        while not self.at_end:
            found += await self.page(limit, account)
        return found


@pytest.mark.parametrize("step_s", [0, 0.7])
@pytest.mark.parametrize("limit", [1, 7])
async def test_pages_have_each_message_once_while_mail_arrives_and_is_accepted(
    messages: Messages, limit: int, step_s: float
) -> None:
    pending, sent = [], []
    for number in range(24):
        messages.clock.advance(step_s)
        if number % 3:
            submitted = messages.submit()
            sent.append(submitted.submission_id)
            pending.append(submitted) if number % 3 == 1 else await messages.accept(submitted)
        else:
            sent.append(await messages.accept())
    reader = Reader(messages)
    found = await reader.page(limit)
    while not reader.at_end:
        messages.clock.advance(1)
        if pending:
            await messages.accept(pending.pop(len(pending) // 2))
        await messages.accept()  # arrives later: on no page
        found += await reader.page(limit)
    assert len(found) == len(set(found))
    assert set(sent) <= set(found)
    assert found[: len(sent)] == found


async def test_rows_match_words_mailboxes_and_names(messages: Messages) -> None:
    def reader(**wanted: Any) -> Reader:
        return Reader(messages, **wanted)

    one = messages.submit(subject="Grüsse aus Köln", recipients=("bob@a.test",), message_id="<m@x>")
    messages.clock.advance(1)
    other = await messages.accept(subject="Hello", recipients=["Bob@A.test"], message_id="<n@x>")
    messages.clock.advance(1)
    last = await messages.accept(subject="Hello", reverse_path="bob@a.test")
    assert await reader(words=("KÖLN", "bob")).page(5) == [one.submission_id]
    assert await reader(words=("hello",)).page(5) == [last, other]
    assert await reader(words=("hello", "nobody")).page(5) == []
    assert await reader(mailbox="bob@a.test").page(5) == [last, other, one.submission_id]
    assert await reader(mailbox="bob@a").page(5) == []
    assert await reader(key="<m@x>").page(5) == [one.submission_id]
    assert await reader(key="n@x").page(5) == [other]
    assert await reader(key=other).page(5) == [other]
    assert await reader(key="bob@a.test").page(5) == []
    assert await reader(key=other).page(5, account="bob@example.test") == []


async def test_what_is_not_in_the_queue_yet_is_found_and_counted(messages: Messages) -> None:
    send_at_us = messages.clock.time_us() + 3600_000_000
    later = messages.submit(send_at_us=send_at_us)
    messages.clock.advance(1)
    new, sent = messages.submit(), messages.submit(account="bob@example.test")
    queued = await messages.accept(sent, account="bob@example.test")
    assert await messages.names(state="scheduled") == [later.submission_id]
    assert await messages.names(state="converting") == [new.submission_id]
    assert await messages.names(state="queued") == [queued]
    assert await messages.names(state="deferred") == []
    scheduled = message_list.MessageSearch(state="scheduled")
    [row] = (await messages.journeys.page(scheduled, account=None, limit=5)).rows
    assert (row.state, row.next_attempt_us, row.reply) == ("scheduled", send_at_us, "")
    counts = messages.journeys.counts
    everything = {"scheduled": 1, "converting": 1, "queued": 1}
    assert await counts(account=None, limit=10) == (3, everything)
    assert await counts(account="bob@example.test", limit=10) == (1, {"queued": 1})
    assert await messages.journeys.count_before_queue() == {"scheduled": 1, "converting": 1}
    assert await Reader(messages, state="scheduled").page(10) == [later.submission_id]


async def test_a_submission_that_the_spool_has_is_not_counted_before_the_log_says_so(messages):
    sent = messages.submit()
    await messages.accept(submission_id=sent.submission_id)  # step 4 is not recorded
    assert await messages.journeys.count_before_queue() == {"scheduled": 0, "converting": 0}
    assert await messages.names(state="converting") == []


async def test_the_log_is_followed_without_reading_it_again(messages: Messages) -> None:
    first = messages.submit()
    assert await messages.names() == [first.submission_id]
    messages.clock.advance(1)
    second = messages.submit()
    other_role = SubmissionLog(messages.directory, role="graph", clock=messages.clock)
    messages.clock.advance(2 * 86400)
    third = SubmissionFacts(f"{messages.ids.new()}.1", "d", ALICE, ALICE, recipients=("x@a.test",))
    other_role.append(third, an_event(Step.CREATED, 1), an_event(Step.NOTIFIED, 1))
    other_role.close()
    names = [third.submission_id, second.submission_id, first.submission_id]
    assert await messages.names() == names
    messages.log.withdraw(second)
    messages.log.append(third, an_event(Step.ACCEPTED, 1), queue_id="q")
    assert await messages.names() == [first.submission_id]
    messages.log.clear()
    assert await messages.names() == []
    again = messages.submit()
    assert await messages.names() == [again.submission_id]


# -- conditions on contents


class Contents:
    """Knows which messages have the words that their history has not; each request checks `most`."""

    def __init__(self, *texts: str, most: int = 1_000_000) -> None:
        self.texts, self.most = texts, most
        self.asked: list[message_list.FoundMessage] = []

    def begin(self, wanted: message_list.MessageSearch, lookup_s: float) -> Any:
        self.left = self.most
        return self.matching

    async def matching(self, candidates: Sequence[message_list.FoundMessage]) -> list[bool]:
        answered = candidates[: self.left]
        self.left -= len(answered)
        self.asked += answered
        return [not one.words_left or one.name in self.texts for one in answered]


async def test_words_are_in_the_history_or_in_the_text(messages: Messages) -> None:
    text = messages.submit(subject="a")
    messages.clock.advance(1)
    by_subject = await messages.accept(subject="giraffes")
    messages.clock.advance(1)
    in_text = await messages.accept(subject="b", recipients=["x@a.test", "y@a.test"])
    await messages.accept(subject="c")
    contents = Contents(text.submission_id, in_text)
    messages.journeys.places.contents = contents.begin
    wanted = {"words": ("giraffe",), "reader": message_list.ALL_MAILBOXES}
    assert await messages.names(**wanted) == [in_text, by_subject, text.submission_id]
    asked = {one.name: one for one in contents.asked}
    assert asked[by_subject].words_left == ()
    assert asked[text.submission_id].account == ALICE
    assert [each[1:] for each in asked[in_text].recipients] == [
        ("x@a.test", "queued"),
        ("y@a.test", "queued"),
    ]
    assert await messages.names(**wanted, account="bob@example.test") == []
    assert await messages.names(words=("giraffe",), reader=message_list.NO_MAILBOX) == [by_subject]
    messages.journeys.places.contents = None
    for condition in ({"has_attachment": True}, {"is_unread": True}, wanted):
        assert await messages.names(**condition) == []


@pytest.mark.parametrize("chunk", [3, 400])  # with 3, the time also ends between two chunks
@pytest.mark.parametrize("most", [1, 6])
async def test_pages_continue_where_the_time_for_contents_ended(messages, most, chunk, monkeypatch):
    monkeypatch.setattr(list_places, "_CHUNK", chunk)
    names = []
    for number in range(20):
        messages.clock.advance(1)
        if number % 5:
            names.append(await messages.accept(subject=f"m{number}"))
        else:
            names.append(messages.submit(subject=f"m{number}").submission_id)
    expected = names[::-3]
    messages.journeys.places.contents = Contents(*expected, most=most).begin
    wanted = message_list.MessageSearch(words=("giraffe",), reader=message_list.ALL_MAILBOXES)
    found, before, read = [], None, 0
    while True:
        page = await messages.journeys.page(wanted, account=None, limit=2, before=before)
        found += [one.submission_id or one.id for one in page.rows]
        assert len(page.rows) <= 2
        read += 1
        if page.older is None:
            break
        before = page.older
    assert found == expected
    assert read < 25


async def test_the_names_of_all_that_match_are_bounded(messages, monkeypatch):
    monkeypatch.setattr(journey, "_READ_MAX", 3)
    waiting = messages.submit(subject="Invoice")
    expected = [waiting.submission_id]
    for number in range(10):
        messages.clock.advance(1)
        name = await messages.accept(subject="Hello" if number % 2 else "Invoice")
        expected[:0] = [] if number % 2 else [name]
    wanted = message_list.MessageSearch(subject="Invoice")
    names = messages.journeys.names
    assert await names(wanted, account=None, limit=100) == (expected, False)
    assert await names(wanted, account=None, limit=4) == (expected[:4], True)
    assert await names(message_list.MessageSearch(key=expected[2]), account=None, limit=9) == (
        [expected[2]],
        False,
    )
    assert await names(wanted, account="bob@example.test", limit=100) == ([], False)
    assert [row.name for row in await messages.journeys.rows(expected, account=ALICE)] == expected
    assert await messages.journeys.rows(expected, account="bob@example.test") == []
    page = await messages.journeys.log(wanted, account=None, limit=100, pages=1)
    assert [row.name for row in page.rows] == expected[:3]
    assert page.older is not None


async def test_the_neighbours_of_a_message_are_those_of_the_search(messages, monkeypatch):
    monkeypatch.setattr(journey, "_NEIGHBOURS_READ", 2)
    made = []
    for number in range(12):
        messages.clock.advance(1)
        made.append(await messages.accept(subject="Hello" if number % 3 else "Invoice"))
    search = message_list.MessageSearch(subject="Invoice")
    for name, expected in ((made[0], (made[3], "")), (made[3], (made[6], made[0]))):
        place = message_list.position_of(name, "")
        found = await messages.journeys.neighbours(search, place, account=None, begin=None)
        assert found == expected
    newest = message_list.position_of(made[11], "")  # does not match by itself
    found = await messages.journeys.neighbours(search, newest, account=None, begin=None)
    assert found == ("", made[9])
    begin, oldest = message_list.position_of(made[5], ""), message_list.position_of(made[0], "")
    everything = message_list.MessageSearch()
    neighbours = messages.journeys.neighbours
    assert await neighbours(everything, oldest, account=None, begin=begin) == (made[1], "")
    # too far from the newest one: it is not looked for
    assert await neighbours(everything, oldest, account=None, begin=None) == ("", "")


async def test_a_client_by_http_is_known_by_the_submission_log(messages: Messages) -> None:
    waiting = messages.submit(client="192.0.2.7")
    messages.clock.advance(1)
    cursor = await messages.cursor()
    by_smtp = await messages.accept(client="printer [192.0.2.7]")
    messages.clock.advance(1)
    accepted = messages.submit(client="192.0.2.7")
    await messages.accept(accepted)
    other = messages.submit(client="192.0.2.70")
    await messages.accept(other)
    theirs = [accepted.submission_id, by_smtp, waiting.submission_id]
    assert await messages.names(client="192.0.2.7") == theirs
    assert await messages.names(client="192.0.2.7", limit=2) == theirs[:2]
    assert await messages.names(client="192.0.2.?") == theirs
    assert await messages.names(client="192.0.2.7*") == [other.submission_id, *theirs]
    assert await messages.names(client="192.0.2.7", after=cursor) == theirs[:2]
    messages.submit(client="192.0.2.70", account="bob@example.test")  # it waits
    assert await messages.names(client="192.0.2.7", after=cursor) == theirs[:2]
    assert await messages.names(login="bob@*", client="192.0.2.7", after=cursor) == []
    assert await messages.names(client="192.0.2.7", key=waiting.submission_id) == theirs[2:]
    assert await messages.names(client="192.0.2.70", key=waiting.submission_id) == []
    assert await messages.names(client="192.0.2.7", login="bob@*") == []
    assert await messages.names(login=ALICE, state="converting") == theirs[2:]
    assert len(await messages.names(login="bob@*", state="converting")) == 1


async def test_a_page_reads_whole_days_of_the_log_for_a_client(messages, monkeypatch):
    monkeypatch.setattr(message_list, "SCAN_MAX", 3)
    made = []
    for _ in range(4):
        for _ in range(2):
            messages.clock.advance(3600)
            made.insert(0, messages.submit(client="192.0.2.7"))
            await messages.accept(made[0])
            made.insert(0, messages.submit(client="192.0.2.8"))
        messages.clock.advance(86_400)
    theirs = [one.submission_id for one in made[1::2]]
    wanted, pages, before = message_list.MessageSearch(client="192.0.2.7"), [], None
    while (not pages or before) and len(pages) < 10:
        page = await messages.journeys.page(wanted, account=None, limit=100, before=before)
        pages.append([row.submission_id for row in page.rows])
        before = page.older
    assert [name for page in pages for name in page] == theirs
    assert [3 <= len(page) <= 4 for page in pages[:-1]] == [True, True]
    everything = await messages.journeys.log(wanted, account=None, limit=100)
    assert [row.submission_id for row in everything.rows] == theirs
    monkeypatch.setattr(message_list, "SCAN_MAX", 1)  # fewer than there are on a day
    everything = await messages.journeys.log(wanted, account=None, limit=100)
    assert [row.submission_id for row in everything.rows] == theirs
    first_us = message_list.position_of("", theirs[5]).at_us
    some = replace(wanted, from_us=first_us, until_us=first_us + 3600 * 10**6)
    page = await messages.journeys.page(some, account=None, limit=100)
    assert ([row.submission_id for row in page.rows], page.older) == (theirs[5:6], None)


async def test_all_messages_with_a_message_id_are_found_whether_accepted_or_not(messages: Messages):
    name = "<m@a.test>"
    first = await messages.accept(message_id=name)
    messages.clock.advance(1)
    accepted = messages.submit(message_id=name)
    await messages.accept(accepted, message_id=name)
    messages.clock.advance(1)
    waiting = messages.submit(message_id=name)
    theirs = messages.submit(message_id=name, account="bob@example.test")
    mine = [waiting.submission_id, accepted.submission_id, first]
    assert set(await messages.names(key=name)) == {theirs.submission_id, *mine}
    assert await messages.names(key=name, account=ALICE) == mine
    alone = messages.submit(message_id="<only@a.test>")
    assert await messages.names(key="<only@a.test>") == [alone.submission_id]
