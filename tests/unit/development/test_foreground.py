"""The follower prints each step of a journey once, in the order in which steps become known."""

import asyncio
from types import SimpleNamespace

import pytest

from relay.development.foreground import Follower, is_settled
from relay.journeys.changes import ChangeNotifier
from relay.journeys.message_list import MessageSearch
from relay.refusals.refusal import RecentRefusals, Refusal, RefusalReason
from tests.support.journeys import made_journey
from tests.support.manual_clock import ManualClock


class Journeys:
    """The newest first, as the real ones; counts how far back each look went."""

    def __init__(self):
        self.all = []
        self.limits = []

    async def search(self, wanted, *, account, limit):
        assert (wanted, account) == (MessageSearch(), None)
        self.limits.append(limit)
        return SimpleNamespace(messages=list(reversed(self.all))[:limit])


def journey(name, *steps, state="delivered", sender="alice@example.test"):
    return made_journey(
        id=name, sender=sender, recipients=[{"address": "b@x.test", "state": state}],
        steps=[{"step": number, "at": f"0{at}"} for number, at in steps],
    )  # fmt: skip


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
def follower(journeys, changes, shown):
    base = SimpleNamespace(
        journeys=journeys, changes=changes, clock=ManualClock(), refusals=RecentRefusals()
    )
    return Follower(
        SimpleNamespace(base=base),
        lambda found, step: shown.append((found.id, step.step)),
        lambda refusal: shown.append((refusal.reply, 0)),
    )


async def test_each_refusal_is_shown_once_and_earlier_ones_are_not(follower, shown):
    store, at = follower._daemon.base.refusals, "2026-11-22T10:00:00.000000Z"
    store.record(Refusal(at=at, reply="before", reason=RefusalReason.SYNTAX))
    await follower.update(quietly=True)
    for reply in ("first", "second"):
        store.record(Refusal(at=at, reply=reply, reason=RefusalReason.SYNTAX))
    await follower.update()
    await follower.update()
    assert shown == [("first", 0), ("second", 0)]


async def test_a_step_that_is_written_late_is_shown_and_none_twice(follower, journeys, shown):
    journeys.all = [journey("q1", (1, 1), (5, 3))]
    await follower.update()
    journeys.all = [journey("q1", (1, 1), (4, 2), (5, 3), (6, 4))]
    await follower.update()
    await follower.update()
    assert shown == [("q1", 1), ("q1", 5), ("q1", 4), ("q1", 6)]


async def test_earlier_messages_are_not_shown(follower, journeys, shown):
    journeys.all = [journey("q1", (1, 1))]
    await follower.update(quietly=True)
    journeys.all.append(journey("q2", (5, 2)))
    await follower.update()
    assert shown == [("q2", 5)]


async def test_a_burst_is_followed_back_to_what_is_known(follower, journeys, shown):
    await follower.update(quietly=True)
    journeys.all = [journey(f"q{n:03}", (5, 1)) for n in range(300)]
    await follower.update()
    assert [name for name, _ in shown] == [f"q{n:03}" for n in range(300)]
    journeys.limits.clear()
    await follower.update()
    assert journeys.limits == [50]


async def test_it_ends_when_the_given_number_has_settled(follower, journeys, changes):
    journeys.all = [journey("old", (6, 1))]
    await follower.update(quietly=True)
    running = asyncio.create_task(follower.run(until_settled=2))
    journeys.all += [
        journey("q1", (6, 2)), journey("q2", (5, 3), state="queued"),
        journey("report", (6, 4), sender=""),
    ]  # fmt: skip
    changes.notify()
    done, _ = await asyncio.wait({running}, timeout=0.3)
    assert not done, "one has settled, one is queued, one is a report"
    journeys.all[2] = journey("q2", (5, 3), (6, 5), state="captured")
    changes.notify()
    await asyncio.wait_for(running, 30)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (journey("q", state="delivered"), True),
        (journey("q", state="failed"), True),
        (journey("q", state="captured"), True),
        (journey("q", state="deferred"), False),
        (journey("q", state="failed", sender=""), False),
        (made_journey(sender="alice@example.test"), False),
    ],
)
def test_is_settled(found, expected):
    assert is_settled(found) is expected
