"""The message list over a real spool and submission log: what is behind a cursor."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.clock import Ids, ManualClock
from relay.journeys.events import Event, Step
from relay.journeys.journey import Journeys, MessageList
from relay.journeys.message_search import MessageSearch, parse_cursor
from relay.journeys.submission_log import SubmissionFacts, SubmissionLog
from tests.support.spools import message_of, spool_on

ALICE = "alice@example.test"


class Messages:
    """Submissions and accepted messages, as the rooms record them."""

    def __init__(self, spool: Any, log: SubmissionLog, clock: ManualClock) -> None:
        self.spool = spool
        self.log = log
        self.clock = clock
        self.ids = Ids(clock)
        self.journeys = Journeys(spool, log, clock=clock)

    def submit(self, *, draft_id: str = "", account: str = ALICE, **facts: Any) -> SubmissionFacts:
        """Steps 1 and 2."""
        draft_id = draft_id or self.ids.new()
        values = {"sender": account, "subject": "s", "recipients": ("x@a.test",)} | facts
        made = SubmissionFacts(f"{draft_id}.1", draft_id, account, **values)
        now_us = self.clock.time_us()
        self.log.append(made, Event(Step.CREATED, now_us), Event(Step.NOTIFIED, now_us))
        return made

    async def accept(self, submitted: SubmissionFacts | None = None, **changes: Any) -> str:
        """Step 5, after the other steps of a submission or by SMTP; the name of the message."""
        at_us = self.clock.time_us()
        hops = {"mx:a.test": changes.pop("recipients", ["x@a.test"])}
        name = submitted.submission_id if submitted else ""
        values = {"account": ALICE, "reverse_path": ALICE, "submission_id": name} | changes
        queue_id = self.ids.new()
        message = message_of(hops.items(), queue_id=queue_id, now_us=at_us, **values)
        message = replace(message, events=(Event(Step.POLICY_AND_ROUTING, at_us),))
        await self.spool.accept(message)
        if submitted:
            self.log.append(submitted, Event(Step.ACCEPTED, at_us), queue_id=queue_id)
        return name or queue_id

    async def listed(
        self, *, limit: int = 100, account: str | None = None, **wanted
    ) -> MessageList:
        if "after" in wanted:
            wanted["after"] = parse_cursor(wanted["after"], now_us=self.clock.time_us())
        return await self.journeys.search(MessageSearch(**wanted), account=account, limit=limit)

    async def names(self, **wanted: Any) -> list[str]:
        found = await self.listed(**wanted)
        return [one["submission_id"] or one["id"] for one in found.messages]

    async def cursor(self) -> str:
        return str((await self.listed(limit=1)).cursor)


@pytest.fixture
async def messages(tmp_path: Path) -> AsyncIterator[Messages]:
    clock = ManualClock()
    log = SubmissionLog(tmp_path / "log", role="relay", clock=clock)
    async with spool_on(tmp_path / "spool.sqlite", clock) as spool:
        yield Messages(spool, log, clock)
    log.close()


async def test_the_newest_come_first_from_log_and_spool(messages: Messages) -> None:
    waiting = messages.submit()
    messages.clock.advance(1)
    received = await messages.accept()
    messages.clock.advance(1)
    sent = messages.submit()
    await messages.accept(sent)
    assert await messages.names() == [sent.submission_id, received, waiting.submission_id]
    assert await messages.names(limit=2) == [sent.submission_id, received]


async def test_conditions_hold_in_log_and_spool(messages: Messages) -> None:
    one = messages.submit(subject="Invoice 1", recipients=("bob@a.test", "carol@a.test"))
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


async def test_a_subject_that_rules_changed_is_the_one_to_ask_for(messages: Messages) -> None:
    cursor = await messages.cursor()
    sent = messages.submit(subject="plain")
    await messages.accept(sent, subject="[EXT] plain")
    for after in ({}, {"after": cursor}):
        assert await messages.names(subject="[ext] plain", **after) == [sent.submission_id]
        assert await messages.names(subject="plain", **after) == []


async def test_what_came_before_a_cursor_is_never_behind_it(messages: Messages) -> None:
    accepted, pending = messages.submit(), messages.submit()
    await messages.accept(accepted)
    await messages.accept()
    cursor = await messages.cursor()
    await messages.accept(pending)  # the clock stands: the same microsecond
    assert await messages.names(after=cursor) == []
    messages.clock.advance(1)
    assert await messages.names(after=cursor) == []


@pytest.mark.parametrize("pause_s", [0, 0.0001, 1, 3600])
async def test_what_comes_after_a_cursor_is_behind_it(messages: Messages, pause_s: float) -> None:
    messages.submit()
    await messages.accept()
    cursor = await messages.cursor()
    messages.clock.advance(pause_s)
    sent, waiting = messages.submit(), messages.submit()
    names = {waiting.submission_id, await messages.accept(sent), await messages.accept()}
    assert set(await messages.names(after=cursor)) == names


async def test_a_message_that_is_visible_late_is_behind_one_of_two_cursors(
    messages: Messages,
) -> None:
    """Its time is earlier than the first list, which does not have it."""
    draft_id, submitted_us = messages.ids.new(), messages.clock.time_us()
    messages.clock.advance(0.5)
    first = await messages.listed()
    facts = SubmissionFacts(f"{draft_id}.1", draft_id, ALICE, ALICE, recipients=("x@a.test",))
    created, notified = Event(Step.CREATED, submitted_us), Event(Step.NOTIFIED, submitted_us)
    messages.log.append(facts, created, notified)
    second = await messages.listed(after=str(first.cursor))
    assert [one["submission_id"] for one in second.messages] == [facts.submission_id]
    assert await messages.names(after=str(second.cursor)) == []


async def test_an_old_draft_that_was_sent_after_the_cursor_is_behind_it(messages: Messages) -> None:
    draft_id = messages.ids.new()
    messages.clock.advance(3600)
    cursor = await messages.cursor()
    sent = messages.submit(draft_id=draft_id)
    assert await messages.names(after=cursor) == [sent.submission_id]


async def test_other_accounts_messages_are_before_a_cursor_as_well(messages: Messages) -> None:
    messages.submit(account="bob@example.test")
    cursor = str((await messages.listed(account=ALICE)).cursor)
    assert await messages.names(after=cursor) == []


async def test_each_message_is_behind_exactly_one_cursor(messages: Messages) -> None:
    cursor, found, sent = await messages.cursor(), [], []
    for number in range(60):
        sent.append(await messages.accept() if number % 2 else messages.submit().submission_id)
        messages.clock.now_us += (number % 3) * 700_000
        if number % 4 == 0:
            listed = await messages.listed(after=cursor)
            cursor = str(listed.cursor)
            found += [one["submission_id"] or one["id"] for one in listed.messages]
    found += await messages.names(after=cursor)
    assert sorted(found) == sorted(sent)


@pytest.mark.parametrize(
    ("count", "step_us"),
    [(25, 0), (25, 40_000), (25, 3_000_000), (230, 1), (230, 40_000), (230, 3_000_000)],
)
async def test_what_a_limit_leaves_out_is_behind_the_next_cursor(
    messages: Messages, step_us: int, count: int
) -> None:
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
        found += [one["submission_id"] or one["id"] for one in listed.messages]
        if not listed.messages:
            break
    assert sorted(found) == sorted(sent)


async def test_a_submission_that_was_withdrawn_is_not_listed(messages: Messages) -> None:
    cursor = await messages.cursor()
    messages.log.withdraw(messages.submit())
    assert await messages.names() == await messages.names(after=cursor) == []


async def test_a_cursor_reaches_behind_a_change_of_the_day(messages: Messages) -> None:
    cursor = await messages.cursor()
    first = messages.submit()
    messages.clock.advance(2 * 86400)
    second = messages.submit()
    names = [second.submission_id, first.submission_id]
    assert await messages.names(after=cursor) == names
