import pytest

from relay.ingress.data import ContentReader, Refusal
from relay.ingress.limits import Budget, Limits
from tests.support.smuggling import SEQUENCES

PLAIN = {
    "empty": (b".\r\n", b""),
    "blank line": (b"\r\n.\r\n", b"\r\n"),
    "a line": (b"a\r\n.\r\n", b"a\r\n"),
    "stuffed first": (b"..\r\n.\r\n", b".\r\n"),
    "stuffed": (b"a\r\n..b\r\n...\r\n.\r\n", b"a\r\n.b\r\n..\r\n"),
    "dot and text": (
        b".x\r\n.\r\n",
        b"x\r\n",
    ),  # RFC 5321 4.5.2: a leading dot goes, whatever follows
    "dots inside": (b"a.\r\n b.c\r\n.\r\n", b"a.\r\n b.c\r\n"),
    "eight bit": (b"\xff\xc3\xa4\r\n.\r\n", b"\xff\xc3\xa4\r\n"),
}


def reader(*, size_max_bytes=1000, line=100, budget_bytes=10_000) -> ContentReader:
    return ContentReader(
        size_max_bytes=size_max_bytes,
        limits=Limits(text_line_bytes=line),
        budget=Budget(budget_bytes),
    )


def feed_in_blocks(one: ContentReader, data: bytes, block_bytes: int) -> bytes | None:
    """What is behind the end of data, with the blocks that were not fed; None if it never ended."""
    for at in range(0, len(data), block_bytes):
        rest = one.feed(data[at : at + block_bytes])
        if rest is not None:
            return rest + data[at + block_bytes :]
    return None


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 4, 5, 7, 1000])
@pytest.mark.parametrize(("sent", "meant"), PLAIN.values(), ids=PLAIN)
def test_content_is_the_same_however_it_is_cut(sent, meant, block_bytes):
    one = reader()
    assert feed_in_blocks(one, sent + b"NOOP\r\n", block_bytes) == b"NOOP\r\n"
    assert one.refusal is None
    assert one.content() == meant
    assert one.size_bytes == len(meant)


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 1000])
@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_only_crlf_dot_crlf_ends_the_data(sequence, block_bytes):
    one = reader()
    hidden = b"MAIL FROM:<evil@other.test>\r\n"
    rest = feed_in_blocks(one, b"a" + sequence + hidden + b"\r\n.\r\nQUIT\r\n", block_bytes)
    assert rest == b"QUIT\r\n"
    assert one.refusal is Refusal.BARE
    assert one.content() == b""


@pytest.mark.parametrize("block_bytes", [1, 50, 1000])
@pytest.mark.parametrize(
    ("lines", "refusal"),
    [
        (b"x" * 100 + b"\r\n", None),
        (b"x" * 101 + b"\r\n", Refusal.LONG_LINE),
        (b"a\r\n" + b"x" * 100 + b"\r\nb\r\n", None),
        (b"a\r\n" + b"x" * 101 + b"\r\nb\r\n", Refusal.LONG_LINE),
        (b"x" * 900 + b"\r\n", Refusal.LONG_LINE),
        (b"12345678\r\n" * 100, None),
        (b"12345678\r\n" * 100 + b"\r\n", Refusal.TOO_BIG),
        (b"..345678\r\n" * 111, None),  # 999 octets without the stuffed dots
    ],
)
def test_limits(lines, refusal, block_bytes):
    one = reader()
    assert feed_in_blocks(one, lines + b".\r\n", block_bytes) == b""
    assert one.refusal is refusal


def test_what_is_refused_is_not_kept():
    one = reader(size_max_bytes=1000)
    for _ in range(1000):
        assert one.feed(b"12345678\r\n" * 10) is None
        assert one.size_bytes <= 1000
        assert sum(map(len, one._chunks)) + len(one._rest) <= 1200
    assert one.feed(b".\r\n") == b""
    assert one.refusal is Refusal.TOO_BIG


def test_memory_is_taken_from_the_budget_and_given_back():
    budget = Budget(250)
    readers = [ContentReader(size_max_bytes=1000, limits=Limits(), budget=budget) for _ in range(3)]
    for one in readers[:2]:
        assert one.feed(b"x" * 98 + b"\r\n.\r\n") == b""
    assert [one.refusal for one in readers] == [None, Refusal.NO_ROOM, None]
    readers[0].release()
    assert budget.has(250)
    assert not budget.has(251)
    readers[0].release()
    assert not budget.has(251), "given back twice"


def test_a_client_that_sends_line_by_line_pays_for_every_one():
    one = reader(budget_bytes=1000)
    for _ in range(100):
        one.feed(b"a\r\n")
    assert one.refusal is Refusal.NO_ROOM
    assert one.size_bytes == 0
