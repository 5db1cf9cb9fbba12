"""What terms find in the search index: parts of fields, literally, without regard to case and accents."""

from collections.abc import Iterator
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.development import search_index
from relay.development.search_index import SearchIndex, folded
from relay.store.journeys.message_list import (
    FIELDS,
    IndexFailedError,
    SearchedNumber,
    SearchTerm,
    TextSearch,
)
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

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


async def test_a_search_ends_and_a_full_disk_ends_the_index(tmp_path, monkeypatch) -> None:
    path = tmp_path / "index"
    path.write_bytes(b"not an index" * 1000)
    made = SearchIndex(path, Mock(clock=ManualClock()), None)
    do = made._do
    await do(made._open)
    await do(lambda: write(made, *(row(f"{one}", body="x" * 500) for one in range(500))))
    assert len(await do(lambda: ids(made, SearchTerm("xxx")))) == 500
    monkeypatch.setattr(search_index, "_QUERY_S", -1)
    with pytest.raises(IndexFailedError, match="too long"):
        await do(lambda: ids(made, SearchTerm("y")))
    (pages,) = made._fetch("PRAGMA page_count")[0]
    made._fetch(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(IndexFailedError):
        await do(lambda: write(made, *(row(f"{one}", body="y" * 500) for one in range(500, 999))))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexFailedError, match="until the next start"):
        await made.search(TextSearch())
    await made.close()


@pytest.mark.parametrize(
    ("sizes", "count"), [([1] * 250, 250), ([50 << 20] * 250, 8), ([9, 8 << 20, 1], 3), ([], 1)]
)
def test_texts_that_are_read_together_have_a_size(sizes: list[int], count: int) -> None:
    summaries = [Mock(size_bytes=one) for one in sizes]
    some, others = search_index._split(summaries)
    assert (some, others) == (summaries[:count], summaries[count:])
