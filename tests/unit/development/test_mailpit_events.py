"""Mailpit's events: what a look at the list sends."""

import json
from unittest.mock import Mock

import pytest

from relay.base.clock import SystemClock
from relay.development.mailpit_events import Listing, MailpitEvents
from relay.store.journeys.event_feed import ChangeNotifier


@pytest.mark.parametrize(("count", "gone"), [(200, ["delete"] * 200), (201, ["prune"])])
async def test_more_than_200_that_go_between_two_looks_are_one_event(count, gone):
    sent, changes = [], ChangeNotifier()
    names = frozenset(map(str, range(count)))
    listings = iter([Listing(names, unread=names), Listing()])

    async def read():
        return next(listings)

    async def rows(names, _):
        return [{"ID": name} for name in names]

    events = MailpitEvents(read, rows, changes=changes, clock=SystemClock())
    events._open.add(Mock(send=lambda event: sent.append(json.loads(event.data))))
    for kinds in (["new"] * count + ["stats"], [*gone, "stats"]):
        changes.notify()
        await events.look(at_once=True)
        assert [event["Type"] for event in sent] == kinds
        sent.clear()
