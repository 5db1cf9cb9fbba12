"""The follower shows each state of a message, or each step of its journey, once."""

import asyncio
from types import SimpleNamespace

import pytest

from relay.development.foreground import Follower, is_settled
from relay.store.journeys.event_feed import ChangeNotifier
from relay.store.journeys.message_list import ListPosition, MessageSearch, MessageSummary
from relay.transport.refusals.refusal import RecentRefusals, Refusal, RefusalReason
from tests.support.journeys import made_journey
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row


class Journeys:
    """The newest first, as the real ones; counts how far back each look went."""

    def __init__(self):
        self.all = []
        self.steps = {}
        self.limits = []

    async def page(self, wanted, *, account, limit):
        assert (wanted, account) == (MessageSearch(kind="mail"), None)
        self.limits.append(limit)
        return SimpleNamespace(rows=tuple(reversed(self.all))[:limit])

    async def journey(self, name, *, account):
        steps = [{"step": number, "at": f"0{at}"} for number, at in self.steps[name]]
        return made_journey(id=name, steps=steps)


def row(name, state="delivered", *, sender="alice@example.test", count=1):
    return MessageSummary(ListPosition(0, name), name, None, "", sender, "", state, (), count)


@pytest.fixture
def shown():
    return []


@pytest.fixture
def journeys():
    return Journeys()


@pytest.fixture
def changes():
    return ChangeNotifier()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def view(shown):
    return SimpleNamespace(
        has_steps=False,
        step=lambda found, step: shown.append((found.id, step.step)),
        message=lambda row: shown.append((row.id, row.state)),
        refused=lambda refusal: shown.append(refusal.reply),
    )


@pytest.fixture
def follower(journeys, changes, clock, view):
    base = SimpleNamespace(
        journeys=journeys, changes=changes, clock=clock, refusals=RecentRefusals()
    )
    return Follower(SimpleNamespace(base=base), view)


async def test_each_refusal_is_shown_once_and_earlier_ones_are_not(follower, shown):
    store, at = follower._base.refusals, "2026-11-22T10:00:00.000000Z"
    store.record(Refusal(at=at, reply="before", reason=RefusalReason.SYNTAX))
    await follower.update(quietly=True)
    for reply in ("first", "second"):
        store.record(Refusal(at=at, reply=reply, reason=RefusalReason.SYNTAX))
    await follower.update()
    await follower.update()
    assert shown == ["first", "second"]


async def test_a_message_is_shown_once_in_each_state(follower, journeys, shown):
    for state in ("queued", "deferred", "deferred", "relayed", "relayed"):
        journeys.all = [row("q1", state)]
        await follower.update()
    assert shown == [("q1", "deferred"), ("q1", "relayed")]


@pytest.mark.parametrize("has_steps", [False, True])
async def test_earlier_messages_are_not_shown(follower, journeys, view, shown, has_steps):
    view.has_steps, journeys.all = has_steps, [row("q1")]
    journeys.steps = {"q1": [(5, 1)], "q2": [(5, 2)]}
    await follower.update(quietly=True)
    journeys.all.append(row("q2"))
    await follower.update()
    assert shown == [("q2", 5 if has_steps else "delivered")]


async def test_it_ends_when_the_given_number_has_settled(follower, journeys, changes):
    journeys.all = [row("old")]
    await follower.update(quietly=True)
    running = asyncio.create_task(follower.run(until_settled=2))
    journeys.all += [row("q1"), row("q2", "queued"), row("report", sender="")]
    changes.notify()
    done, _ = await asyncio.wait({running}, timeout=0.3)
    assert not done, "one has settled, one is queued, one is a report"
    journeys.all[2] = row("q2", "captured")
    changes.notify()
    await asyncio.wait_for(running, 30)


@each_row(
    "found, expected",
    [
        (row("q"), True),
        (row("q", "failed"), True),
        (row("q", "captured"), True),
        (row("q", "deferred"), False),
        (row("q", "failed", sender=""), False),
        (row("q", "discarded", count=0), False),
    ],
)
def test_is_settled(found, expected):
    assert is_settled(found) is expected
