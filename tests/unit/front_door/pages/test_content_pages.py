"""The threads that read contents: shared fairly between visitors, with bounds."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from relay.base.accounts.account import Role
from relay.front_door.api.dependencies import Principal
from relay.front_door.pages.content_pages import ContentPages

ANN, BOB, EVE = (Principal(name, Role.USER) for name in ("ann", "bob", "eve"))


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


@pytest.mark.parametrize("others", [(ANN,), (ANN, EVE)])
async def test_costly_messages_of_one_or_two_visitors_delay_no_other(costly, others) -> None:
    pages = ContentPages(None)
    theirs = [asyncio.ensure_future(pages.in_thread(who, costly)) for who in others * 50]
    async with asyncio.timeout(120):
        while costly.began < len(others):
            await asyncio.sleep(0.01)
        his = [asyncio.ensure_future(pages.in_thread(BOB, lambda: "his")) for _ in range(3)]
        if len(others) == 1:  # a thread is free
            assert await asyncio.gather(*his) == ["his"] * 3
            assert costly.began == 1
        costly.end.set()
        assert await asyncio.gather(*his) == ["his"] * 3
        assert costly.began < 20
        assert await asyncio.gather(*theirs) == ["done"] * len(theirs)
