"""The first queries of a mailbox that other programs have filled: they read it into its index."""

from pathlib import Path

import pytest

from relay.base.clock import SystemClock
from relay.store.mailbox.errors import StoreUnavailableError
from relay.store.mailbox.index import content_index
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.query import Compare, HasWords, MessageQuery, Operator, Property, SearchIn
from tests.support.stores import store_on
from tests.unit.store.mailbox.conftest import ALICE

MESSAGES = 240
FILTER = MessageQuery(condition=Compare(Property.SUBJECT, Operator.EQ, "report 7"), count=True)
SEARCH = MessageQuery(condition=HasWords(SearchIn.ANYWHERE, "word7"), count=True)


@pytest.fixture
def mailbox(tmp_path: Path) -> Path:
    mailbox = tmp_path / "mail/example.test/alice"
    for name in ("cur", "new", "tmp"):
        (mailbox / name).mkdir(parents=True)
    for number in range(MESSAGES):
        content = f"From: s@a.test\r\nSubject: Report {number}\r\n\r\nText with word{number}.\r\n"
        (mailbox / "cur" / f"{1_600_000_000 + number}.M1P1.other:2,S").write_text(content)
    return mailbox


@pytest.mark.usefixtures("mailbox")
@pytest.mark.parametrize("query", [FILTER, SEARCH])
async def test_a_query_without_time_and_readers_reads_on_where_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: MessageQuery
) -> None:
    monkeypatch.setattr(content_index, "READ_TIME_MAX_S", -1.0)
    refused = 0
    with store_on(tmp_path / "mail", SystemClock()) as store:
        monkeypatch.setattr(store.messages.index, "_read_on", lambda *_: None)
        while True:
            try:
                page = await store.lists.query(ALICE, query)
                break
            except StoreUnavailableError:
                refused += 1
    assert (page.total, len(page.messages)) == (1, 1)
    assert 1 < refused <= 2 * MESSAGES


def test_a_stop_ends_the_first_listing(mailbox: Path) -> None:
    index = Indexes(SystemClock())
    try:
        index.stop()
        with pytest.raises(StoreUnavailableError, match="stopping"):
            index.folders(mailbox)
    finally:
        index.close()
