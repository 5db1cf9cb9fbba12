"""The threads that read contents: shared fairly between visitors, with bounds."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from relay.base.accounts.account import Role
from relay.front_door.api.dependencies import Principal
from relay.front_door.pages.content_pages import ContentPages

ANN, BOB = Principal("ann", Role.USER), Principal("bob", Role.USER)


class Costly:
    """Work that goes on until it is ended; counts how often it began."""

    def __init__(self) -> None:
        self.began = 0
        self.end = threading.Event()

    def __call__(self) -> str:
        self.began += 1
        assert self.end.wait(20)
        return "done"


@pytest.fixture
def costly() -> Iterator[Costly]:
    made = Costly()
    yield made
    made.end.set()


async def test_costly_messages_of_one_visitor_leave_a_thread_for_others(costly: Costly) -> None:
    pages = ContentPages(None)
    hers = [asyncio.ensure_future(pages.in_thread(ANN, costly)) for _ in range(5)]
    async with asyncio.timeout(120):
        while not costly.began:
            await asyncio.sleep(0.01)
        assert await pages.in_thread(BOB, lambda: "his") == "his"
        assert costly.began == 1
        costly.end.set()
        assert await asyncio.gather(*hers) == ["done"] * 5
