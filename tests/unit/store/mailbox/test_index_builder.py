"""Large mailboxes are read into their indexes before the first query."""

import asyncio
import contextlib
import shutil
from collections import Counter
from pathlib import Path

import apsw
import pytest

from relay.base.clock import SystemClock
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.index import background, content_index
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.query import Compare, HasWords, MessageQuery, Operator, Property, SearchIn
from tests.support.stores import store_on
from tests.unit.store.mailbox.conftest import ALICE

MESSAGES = 240
FILTER = MessageQuery(condition=Compare(Property.SUBJECT, Operator.EQ, "report 7"), count=True)
SEARCH = MessageQuery(condition=HasWords(SearchIn.ANYWHERE, "word7"), count=True)
WAIT_S = 120.0


def fill(mailbox: Path, count: int = MESSAGES) -> None:
    """Write messages as another program does."""
    for name in ("cur", "new", "tmp"):
        (mailbox / name).mkdir(parents=True)
    for number in range(count):
        content = (
            f"From: s{number % 9}@a.test\r\nTo: {ALICE}\r\nSubject: Report {number}\r\n"
            f"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\n\r\nText with word{number}.\r\n"
        )
        (mailbox / "cur" / f"{1_600_000_000 + number}.M1P1.other:2,S").write_text(content)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LARGE_MESSAGES", 100)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mailbox = tmp_path_factory.mktemp("filled") / "alice"
    fill(mailbox)
    return mailbox


@pytest.fixture
def mailbox(tmp_path: Path, filled: Path) -> Path:
    mailbox = tmp_path / "mail/example.test/alice"
    shutil.copytree(filled, mailbox)
    return mailbox


@pytest.fixture
def store(tmp_path: Path):
    with store_on(tmp_path / "mail", SystemClock()) as opened:
        yield opened


def levels(mailbox: Path) -> Counter[int]:
    """Return how many messages the index has, by content level; nothing before it is there."""
    if not (mailbox / "relay-index").exists():
        return Counter()
    # not sqlite3: a second SQLite in the process would release the locks of the first
    opened = apsw.Connection(str(mailbox / "relay-index"), flags=apsw.SQLITE_OPEN_READONLY)
    with contextlib.closing(opened) as connection:
        if not list(connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'message'")):
            return Counter()
        sql = "SELECT content_level, count(*) FROM message GROUP BY 1"
        return Counter(dict(list(connection.execute(sql))))


async def until_built(mailbox: Path, count: int = MESSAGES) -> None:
    async with asyncio.timeout(WAIT_S):
        while levels(mailbox) != {2: count}:
            await asyncio.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that have to read more than a few messages are refused."""
    monkeypatch.setattr(content_index, "READ_TIME_MAX_S", -1.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("query", [FILTER, SEARCH])
async def test_the_first_query_finds_all_messages_read(store, mailbox, query):
    with pytest.raises(StoreUnavailableError):  # what happens without a builder
        await store.lists.query(ALICE, query)
    building = asyncio.create_task(store.build_indexes())
    try:
        await until_built(mailbox)
        page = await store.lists.query(ALICE, query)
        assert (page.total, len(page.messages)) == (1, 1)
    finally:
        building.cancel()


@pytest.mark.usefixtures("impatient")
async def test_a_large_mailbox_is_read_after_its_first_delivery(store, tmp_path, filled):
    at_start, mailbox = (tmp_path / "mail/example.test" / name for name in ("adam", "alice"))
    fill(at_start, 100)
    building = asyncio.create_task(store.build_indexes())
    try:
        await until_built(at_start, 100)
        shutil.copytree(filled, mailbox)
        content = b"Subject: Report 7\r\n\r\nx\r\n"
        await store.deliver(ALICE, unique="06gzfe4wx1m5qnr0.1", content=content)
        await until_built(mailbox, MESSAGES + 1)
        assert (await store.lists.query(ALICE, FILTER)).total == 2
    finally:
        building.cancel()


def test_a_stop_ends_the_first_listing(mailbox: Path) -> None:
    index = Indexes(SystemClock())
    try:
        index.stop()
        with pytest.raises(StoreUnavailableError, match="stopping"):
            index.read_some(mailbox, 10)
    finally:
        index.close()
    again = Indexes(SystemClock())
    try:
        assert again.read_some(mailbox, 10)
        assert levels(mailbox) == {0: MESSAGES - 10, 1: 10}
    finally:
        again.close()


async def test_nothing_is_read_under_pressure(store, mailbox, monkeypatch):
    monkeypatch.setattr(background, "_BUSY_PAUSE_S", 0.01)
    looks = 0

    def calm() -> bool:
        nonlocal looks
        looks += 1
        assert looks > 5 or not (mailbox / "relay-index").exists()
        return looks > 5

    building = asyncio.create_task(store.build_indexes(calm))
    try:
        await until_built(mailbox)
        assert looks > 5
    finally:
        building.cancel()
