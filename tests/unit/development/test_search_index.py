"""What terms find in the search index: parts of fields, literally, without regard to case and accents."""

import asyncio
import smtplib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest.mock import Mock

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.development import search_index
from relay.development.relay import DevelopmentRelay
from relay.development.search_index import SearchIndex, folded
from relay.store.journeys.message_list import (
    FIELDS,
    IndexFailedError,
    SearchedNumber,
    SearchTerm,
    TextSearch,
)
from tests.support.development_relay import development_relay
from tests.support.events import until
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row
from tests.support.vfs import FaultyDisk

Dev = tuple[DevelopmentRelay, httpx.AsyncClient, FaultyDisk]
TEXTS = (
    'Grüße aus Köln,\r\n the "quick" brown fox',
    "a NEAR(b c) * d\0e AND NOT f",
    "日本語 x",
    "",
)


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Iterator[SearchIndex]:
    path = tmp_path_factory.mktemp("index") / "search-index"
    made = SearchIndex(path, Mock(clock=ManualClock()), None)
    made._open()
    write(made, *(row(f"{number}", body=text) for number, text in enumerate(TEXTS)))
    yield made
    made._end()


def row(queue_id: str, *, size: int = 5, attachments: int = 0, inline: int = 0, **texts: str):
    found = tuple(folded(texts.get(name, "")) for name in FIELDS)
    return (queue_id, int(queue_id), size, attachments, inline, "", b""), found, (), False


def write(index: SearchIndex, *rows) -> None:
    index._write(rows)


def ids(index: SearchIndex, *conditions: SearchTerm | SearchedNumber) -> list[int]:
    terms = tuple(one for one in conditions if isinstance(one, SearchTerm))
    numbers = tuple(one for one in conditions if isinstance(one, SearchedNumber))
    return [int(one) for one, _ in index._query(TextSearch(terms, numbers))]


@each_row(
    "text, found",
    [
        ("koln", [0]),
        ("KÖLN", [0]),
        ("rüSSe", [0]),
        ("ox", [0]),
        ('uick" bro', [0]),
        ("Köln, the", [0]),
        ("near(b", [1]),
        ("near(c", []),
        ("*", [1]),
        ("* d", [1]),
        ("and not", [1]),
        ("AND OR", []),
        ("d\0e", [1]),
        ("\0", [1]),
        ('"', [0]),
        ('""', []),
        ("body : fox", []),
        ("日本", [2]),
        ("本語 x", [2]),
        ("語本", []),
        ("-", []),
        ("%", []),
        ("_", []),
        ("fox" * 4000, []),
        ("\ud800", []),
        ("'; DROP TABLE text", []),
    ],
)
def test_a_term_is_a_part_of_the_text_and_nothing_else(index, text, found) -> None:
    assert ids(index, SearchTerm(text)) == found
    rest = [one for one in (3, 2, 1, 0) if one not in found]
    assert ids(index, SearchTerm(text, is_excluded=True)) == rest


LETTERS = st.text(alphabet='ab" *(:\0-é', max_size=12)


@given(text=LETTERS, term=LETTERS.filter(folded))
def test_every_term_is_found_as_python_finds_it(index, text, term) -> None:
    write(index, row("9", subject=text, body="zz"))
    try:
        assert (9 in ids(index, SearchTerm(term))) == (folded(term) in folded(text))
        assert 9 not in ids(index, SearchTerm(term, fields=("body",)))
    finally:
        index._remove({"9"})


async def test_a_search_ends_and_a_damaged_index_is_built_later(tmp_path, monkeypatch) -> None:
    path, clock = tmp_path / "index", ManualClock()
    made = SearchIndex(path, Mock(clock=clock), None)
    do = made._do
    for pause_s in (0, 60, 120, 240, 480, 960, 1920, 3600, 3600, 0, 60):
        clock.advance(0 if pause_s else 7200)  # it was well for long
        path.write_bytes(b"not an index" * 1000)
        for left_s in (pause_s, 1)[: 1 + bool(pause_s)]:
            with pytest.raises(IndexFailedError, match="closed: file is not a database"):
                await do(made._open)
            assert list(tmp_path.iterdir()) == []
            clock.advance(max(1, left_s - 1))
        await do(lambda: write(made, *(row(f"{one}", body="x" * 500) for one in range(500))))
        assert len(await do(lambda: ids(made, SearchTerm("xxx")))) == 500
        await do(made._end)
    monkeypatch.setattr(search_index, "_QUERY_S", -1)
    with pytest.raises(IndexFailedError, match="too long"):
        await do(lambda: ids(made, SearchTerm("y")))
    await made.close()


@pytest.fixture
async def dev(short_path: Path) -> AsyncIterator[Dev]:
    with FaultyDisk() as disk:
        async with development_relay(short_path / "dev") as relay:
            address = f"http://{relay.addresses.http}"
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=120) as http:
                yield relay, http, disk


def send(relay: DevelopmentRelay, messages: int) -> None:
    """Send texts of 500 kB, which are more than SQLite keeps in memory."""
    with smtplib.SMTP(str(relay.addresses.smtp.host), relay.addresses.smtp.port) as session:
        for number in range(messages):
            text = "\r\n".join(f"{number * 10_007 + line * line:050x}" for line in range(10_000))
            session.sendmail("a@far.test", ["b@far.test"], f"Subject: large\r\n\r\n{text}\r\n")


async def total_of(http: httpx.AsyncClient, query: str) -> int:
    """Repeat a search until it is answered. The index may not be closed."""
    async with asyncio.timeout(60):
        while (answer := await http.get("/api/v1/search", params={"query": query})).is_error:
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1"), answer.text
    return int(answer.json()["messages_count"])


async def test_a_text_is_written_once_though_who_wanted_it_leaves(dev: Dev, monkeypatch) -> None:
    monkeypatch.setattr(search_index, "_WAIT_S", 0.2)
    relay, http, _ = dev
    go_on, write, written = threading.Event(), SearchIndex._write, []

    def held(index: SearchIndex, rows: list) -> None:
        written.extend(rows)
        assert go_on.wait(30)
        write(index, rows)

    monkeypatch.setattr(SearchIndex, "_write", held)
    await asyncio.to_thread(send, relay, 1)
    await until(lambda: written)
    relay._tasks.cancel()
    asked = asyncio.create_task(total_of(http, "subject:large"))
    await until(relay._index._thread._work_queue.qsize)
    go_on.set()
    assert await asked == len(written) == 1


async def test_an_index_that_is_damaged_while_it_runs_is_built_anew_at_once(dev: Dev) -> None:
    relay, http, _ = dev
    await asyncio.to_thread(send, relay, 12)
    assert await total_of(http, "zz") == 0
    for path in relay.folder.path.glob("search-index*"):
        if path.suffix != "-shm":
            path.write_bytes(b"\xff" * path.stat().st_size)
    answer = await http.get("/api/v1/search?query=zz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert await total_of(http, "subject:large") == 12


async def test_an_index_that_the_disk_rejects_is_tried_again_after_ten_seconds(dev: Dev) -> None:
    relay, http, disk = dev
    await asyncio.to_thread(send, relay, 1)
    assert await total_of(http, "subject:large") == 1
    disk.refuses("full", suffix="search-index-wal")
    await asyncio.to_thread(send, relay, 1)
    await until(lambda: disk.refusals["full"])
    answer = await http.get("/api/v1/search?query=zz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    disk.is_well()
    await relay.advance_clock(10)
    assert await total_of(http, "subject:large") == 2


@pytest.mark.parametrize(
    ("sizes", "count"), [([1] * 250, 250), ([50 << 20] * 250, 8), ([9, 8 << 20, 1], 3), ([], 1)]
)
def test_texts_that_are_read_together_have_a_size(sizes: list[int], count: int) -> None:
    summaries = [Mock(size_bytes=one) for one in sizes]
    some, others = search_index._split(summaries)
    assert (some, others) == (summaries[:count], summaries[count:])
