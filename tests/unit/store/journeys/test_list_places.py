"""Searches in the history, which accounts do in turn."""

import asyncio
from collections import Counter

import pytest

from relay.store.journeys.list_places import ListPlaces
from relay.store.journeys.message_list import FoundPage, MessageSearch


class SlowHistory:
    """A spool and a submission log; pages are found when `may_end` is set."""

    def __init__(self) -> None:
        self.began = Counter[str | None]()
        self.may_end = asyncio.Event()

    async def find_page(self, _: MessageSearch, *, account: str | None, **__: object) -> FoundPage:
        self.began[account] += 1
        await self.may_end.wait()
        return FoundPage((), None)

    async def open_submissions(self) -> list[object]:
        return []


@pytest.mark.parametrize("attackers", [("eve",), ("eve", "mallory")])
@pytest.mark.parametrize("account", ["alice", None])
async def test_the_searches_of_one_or_two_accounts_leave_a_place(attackers, account) -> None:
    history = SlowHistory()
    places = ListPlaces(history, history)

    def search(account: str | None) -> "asyncio.Task[object]":
        found = places.find(MessageSearch(), account=account, limit=5, before=None)
        return asyncio.ensure_future(found)

    many = [search(name) for name in attackers * 100]
    await asyncio.sleep(0)
    used = search(account)
    async with asyncio.timeout(60):
        while not history.began[account]:
            await asyncio.sleep(0)
        assert history.began.total() <= 4
        history.may_end.set()
        assert await asyncio.gather(used, *many) == [([], None)] * (1 + len(many))
