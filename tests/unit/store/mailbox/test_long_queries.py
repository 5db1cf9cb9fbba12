"""Long queries are interrupted, in SQL and while messages are read, and do not block others."""

import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.store.mailbox.errors import QueryTooLongError, StoreUnavailableError
from relay.store.mailbox.index import content_index
from relay.store.mailbox.index import database as index_database
from relay.store.mailbox.index.indexes import Indexes
from relay.store.mailbox.query import (
    NEWEST_FIRST,
    AnyOf,
    Compare,
    Condition,
    HasWords,
    MessageQuery,
    Operator,
    Property,
    SearchIn,
    SortOrder,
)
from relay.store.mailbox.threads import QUERY_TIME_MAX_S, QueryTimeLimit
from tests.support.manual_clock import ManualClock
from tests.support.stores import blocking
from tests.unit.store.mailbox.conftest import ALICE, Place

MESSAGES = 12
ZEBRA = HasWords(SearchIn.ANYWHERE, "zebra")
ENDINGS = tuple(
    Compare(Property.SUBJECT, Operator.ENDS_WITH, f"never {number}") for number in range(200)
)


@dataclass
class HastyClock(ManualClock):
    """A clock on which a query's time passes each time that somebody looks."""

    looks: int = 0

    def real_s(self) -> float:
        self.looks += 1
        return self.looks * (QUERY_TIME_MAX_S + 1)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is looked at every few steps."""
    monkeypatch.setattr(index_database, "_STEPS_BETWEEN_CHECKS", 20)


@pytest.fixture
def mailbox(place: Place) -> Path:
    """Twelve messages, each of 6,000 words that begin with the same four letters."""
    store = place.store()
    blocking(store.folders.every)(ALICE)
    mailbox = place.root / "example.test/alice"
    for number in range(MESSAGES):
        words = "\r\n".join(f"aaaa{number}x{word}" for word in range(6_000))
        text = f"From: <b@b.test>\r\nSubject: {number}\r\n\r\n{words}\r\n"
        (mailbox / "cur" / f"{number}.M1.h:2,").write_text(text, newline="")
    return mailbox


@pytest.fixture
def index(place: Place) -> Indexes:
    return (place.stores or [place.store()])[0].messages.index


def beginning(letters: str) -> Condition:
    return HasWords(SearchIn.ANYWHERE, letters, prefix=True)


@pytest.mark.parametrize(
    "query",
    [
        MessageQuery(condition=AnyOf((beginning("aaaa"),) * 10)),
        MessageQuery(condition=AnyOf((beginning("aaaa"), *ENDINGS))),
        MessageQuery(condition=AnyOf(ENDINGS)),
        MessageQuery(condition=AnyOf(ENDINGS), count=True),
        MessageQuery(condition=AnyOf(ENDINGS), order=(SortOrder(Property.SUBJECT),)),
    ],
    ids=["words", "words among others", "filter", "count", "order"],
)
def test_sql_that_takes_too_long_is_broken_off(mailbox: Path, index: Indexes, query: MessageQuery):
    index.query(mailbox, MessageQuery(condition=ZEBRA))  # everything is read
    clock = HastyClock()
    with pytest.raises(QueryTooLongError, match="longer than 10 seconds"):
        index.query(mailbox, query, QueryTimeLimit(clock))
    assert clock.looks
    assert len(index.query(mailbox, MessageQuery(top=20)).hits) == MESSAGES


def test_others_use_the_index_during_a_query(mailbox: Path, index: Indexes, place: Place) -> None:
    index.query(mailbox, MessageQuery(condition=ZEBRA))
    began, go_on = threading.Event(), threading.Event()

    class Held(QueryTimeLimit):
        def is_over(self) -> bool:
            began.set()
            return not go_on.wait(30)

    def ask() -> None:
        found.append(index.query(mailbox, MessageQuery(condition=beginning("aaaa")), limit))

    limit, found = Held(place.clock), []
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert began.wait(30)
        (mailbox / "cur" / "new.M1.h:2,").write_text("Subject: new\r\n\r\n")
        newest = MessageQuery(order=NEWEST_FIRST, top=20)
        others = threading.Thread(target=lambda: found.append(index.query(mailbox, newest)))
        others.start()
        others.join(30)
        assert [len(one.hits) for one in found] == [MESSAGES + 1]
    finally:
        go_on.set()
        thread.join(30)
    assert len(found) == 2
    assert len(found[1].hits) == 10


@pytest.mark.parametrize(
    ("condition", "reader", "hits"),
    [
        (ZEBRA, "read_text", 0),
        (Compare(Property.SUBJECT, Operator.CONTAINS, "ever"), "read_header_data", 1),
    ],
    ids=["search", "filter"],
)
@pytest.mark.parametrize("error", [StoreUnavailableError, QueryTooLongError])
def test_messages_are_read_on_after_the_time_or_the_client_and_the_next_request_waits_for_them(
    mailbox, index, place, monkeypatch, condition, reader, hits, error
) -> None:
    (mailbox / "cur" / "0.M1.h:2,").write_text("Subject: never\r\n\r\n", newline="")
    limit, query = QueryTimeLimit(place.clock), MessageQuery(condition=condition)
    read: list[Path] = []
    is_read_on, go_on, found = threading.Event(), threading.Event(), []
    real = getattr(content_index, reader)

    def reading(path: Path, **more: str) -> object:
        read.append(path)
        if len(read) == 3:
            limit.is_stopped = error is QueryTooLongError
            place.clock.advance(60)
        if len(read) == 4:
            is_read_on.set()
            assert go_on.wait(30)
        return real(path, **more)

    monkeypatch.setattr(content_index, reader, reading)
    with pytest.raises(error):
        index.query(mailbox, query, limit)
    assert is_read_on.wait(30)
    second = threading.Thread(target=lambda: found.append(index.query(mailbox, query)))
    second.start()
    go_on.set()
    second.join(30)
    assert len(found[0].hits) == hits
    assert len(read) == len(set(read)) == MESSAGES


def test_short_beginnings_are_looked_up_and_not_merged(mailbox: Path, index: Indexes) -> None:
    index.query(mailbox, MessageQuery(condition=ZEBRA))

    def work(letters: str) -> int:
        clock = CountingClock()
        found = index.query(
            mailbox, MessageQuery(condition=beginning(letters)), QueryTimeLimit(clock)
        )
        assert len(found.hits) == 10
        return clock.looks

    merged = work("aaaa")
    for letters in ("a", "aa", "aaa"):
        assert work(letters) < merged / 2


@dataclass
class CountingClock(ManualClock):
    """A clock that stands still and counts who looks."""

    looks: int = 0

    def real_s(self) -> float:
        self.looks += 1
        return 0.0


def test_few_octets_are_read_before_they_are_written_down(mailbox, index, monkeypatch):
    monkeypatch.setattr(content_index, "_BYTES_AT_ONCE", 1)
    read, real = [], content_index.read_text

    def reading(path: Path) -> object:
        read.append(path)
        if len(read) == 4:
            raise RuntimeError
        return real(path)

    monkeypatch.setattr(content_index, "read_text", reading)
    with pytest.raises(RuntimeError):
        index.query(mailbox, MessageQuery(condition=ZEBRA))
    index.query(mailbox, MessageQuery(condition=ZEBRA))
    assert len(read) == MESSAGES + 1
