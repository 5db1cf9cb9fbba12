"""The content of DATA and BDAT: its end, dot-stuffing, bare CR and LF, size and memory limits."""

import asyncio
import random
import re
from collections.abc import Iterator

import pytest
import uvloop

from relay.base.message.content import BLOCK_BYTES, LARGE_BYTES, LargeContent, read_all
from relay.base.shares import Shares
from relay.transport.ingress.data import (
    ChunkFraming,
    ContentCollector,
    ContentRejection,
    DotFraming,
)
from relay.transport.ingress.session_limits import SessionLimits
from tests.support.ingress import MemoryArrival
from tests.support.smuggling import SEQUENCES
from tests.support.tables import each_row


class Receiver(ContentCollector):
    """A collector with the framing of DATA before it, as in SmtpSession.read_content()."""

    def __init__(self, *, normalizes=False, **options):
        super().__init__(**options)
        self.framing = DotFraming(normalizes=normalizes)

    def feed(self, block: bytes) -> bytes | None:
        return self.take(block, self.framing)


def receiver(
    *,
    size_max_bytes=1000,
    line=100,
    budget=None,
    arrival=MemoryArrival,
    large_bytes=1000,
    normalizes=False,
) -> Receiver:
    return Receiver(
        normalizes=normalizes,
        size_max_bytes=size_max_bytes,
        limits=SessionLimits(
            header_line_bytes=line, body_line_bytes=2 * line, large_bytes=large_bytes
        ),
        budget=budget or Shares("contents", 10_000),
        arrival=arrival,
    )


def feed_in_blocks(one: Receiver, data: bytes, block_bytes: int) -> bytes | None:
    """Return what follows the end of data, with the blocks not fed; None without an end."""
    for at in range(0, len(data), block_bytes):
        rest = one.feed(data[at : at + block_bytes])
        if one.needs_spill:
            uvloop.run(one.spill(asyncio.to_thread))
        if rest is not None:
            return rest + data[at + block_bytes :]
    return None


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 1000])
@each_row("sequence", SEQUENCES.values())
def test_only_crlf_dot_crlf_ends_the_data(sequence, block_bytes):
    one = receiver()
    hidden = b"MAIL FROM:<evil@other.test>\r\n"
    rest = feed_in_blocks(one, b"a" + sequence + hidden + b"\r\n.\r\nQUIT\r\n", block_bytes)
    assert rest == b"QUIT\r\n"
    assert one.rejection is ContentRejection.BARE
    assert one.hand_over().content == b""


@pytest.mark.parametrize("block_bytes", [1, 50, 1000])
@each_row(
    "lines, rejection",
    [
        (b"x" * 100 + b"\r\n", None),
        (b"x" * 101 + b"\r\n", ContentRejection.LONG_LINE),
        (b"a\r\n" + b"x" * 100 + b"\r\nb\r\n", None),
        (b"a\r\n" + b"x" * 101 + b"\r\nb\r\n", ContentRejection.LONG_LINE),
        (b"x" * 900 + b"\r\n", ContentRejection.LONG_LINE),
        (b"\r\n" + b"x" * 200 + b"\r\n", None),
        (b"x" * 100 + b"\r\n\r\n" + b"x" * 200 + b"\r\n", None),
        (b"\r\n" + b"x" * 201 + b"\r\n", ContentRejection.LONG_LINE),
        (b"x" * 101 + b"\r\n\r\n", ContentRejection.LONG_LINE),
        (b"12345678\r\n" * 100, None),
        (b"12345678\r\n" * 100 + b"\r\n", ContentRejection.TOO_BIG),
        (b"..345678\r\n" * 111, None),  # 999 octets without the stuffed dots
        (b"." + b"." * 100 + b"\r\n", None),  # a doubled dot is no part of the line
        (b"." + b"." * 101 + b"\r\n", ContentRejection.LONG_LINE),
    ],
)
def test_line_length_and_message_size_limits(lines, rejection, block_bytes):
    one = receiver()
    assert feed_in_blocks(one, lines + b".\r\n", block_bytes) == b""
    assert one.rejection is rejection


def judged_whole(sent: bytes) -> tuple[bytes | None, bytes]:
    """The content of DATA, None if it must be rejected, and what follows its end."""
    content, _, rest = (b"\r\n" + sent).partition(b"\r\n.\r\n")
    content = (content + b"\r\n").replace(b"\r\n.", b"\r\n")[len(b"\r\n") :]
    is_bad = re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content)
    return (None if is_bad else content), rest


def random_data(rng: random.Random) -> bytes:
    """Data of a few octets and sequences; about half of it has a bare CR, a bare LF or a NUL."""
    some = rng.sample([b"\r\n", b"\r\n.", b".", b"a", b"\xff", b"text\r\n"], k=rng.randint(1, 4))
    some += rng.sample([b"\r", b"\n", b"\0", *SEQUENCES.values()], k=rng.choice((0, 0, 1, 2)))
    return b"".join(rng.choices(some, k=rng.randint(1, 12))) + b"\r\n.\r\nNOOP\r\n"


def normalized_whole(sent: bytes) -> bytes | None:
    """The content of DATA with LF for CRLF, None if it must be rejected."""
    content = (b"\r\n" + sent).partition(b"\r\n.\r\n")[0]
    content = re.sub(rb"(?<!\r)\n", b"\r\n", content + b"\r\n")
    if b"\r\n.\r\n" in content or re.search(rb"\r(?!\n)|\0", content):
        return None
    return content.replace(b"\r\n.", b"\r\n")[len(b"\r\n") :]


def cut(octets: bytes, rng: random.Random) -> Iterator[bytes]:
    while octets:
        at = rng.choice((1, 1, 2, 3, 5, 8, 100))
        yield octets[:at]
        octets = octets[at:]


@each_row("seed", range(5))
def test_random_data_is_judged_alike_however_it_is_cut(seed):
    rng, accepted, normalized = random.Random(seed), 0, 0
    for _ in range(200):
        sent = random_data(rng)
        (strict, follows), lenient = judged_whole(sent), normalized_whole(sent)
        for normalizes, meant in ((False, strict), (True, lenient)):
            one, rest, pieces = receiver(normalizes=normalizes), None, cut(sent, rng)
            while rest is None:
                rest = one.feed(next(pieces))
            assert rest + b"".join(pieces) == follows, sent
            assert one.rejection is (ContentRejection.BARE if meant is None else None), sent
            assert one.hand_over().content == (meant or b""), sent
        accepted += strict is not None
        normalized += strict is None and lenient is not None
    assert 40 <= accepted <= 160, "the data is too good or too bad"
    assert normalized >= 1


def chunked(content: bytes, rng: random.Random, *, normalizes: bool) -> ContentCollector:
    """Receive content in chunks and segments cut anywhere; the last chunk may be empty."""
    one, framing = receiver(), ChunkFraming(normalizes=normalizes)
    chunks = [*cut(content, rng), *rng.choice(([], [b""]))] or [b""]
    for number, chunk in enumerate(chunks, start=1):
        framing.begin(len(chunk), is_last=number == len(chunks))
        rest, segments = None, cut(chunk, rng)
        while rest is None:
            octets, rest = framing.take(next(segments, b""))
            one.add(octets, is_last=number == len(chunks) and rest is not None)
        assert (rest, next(segments, None), framing.wanted_bytes) == (b"", None, 0)
    return one


@each_row("seed", range(5))
def test_chunks_have_the_octets_of_data_however_they_are_cut(seed):
    rng, accepted = random.Random(seed), 0
    for _ in range(200):
        content = random_data(rng).removesuffix(b".\r\nNOOP\r\n")
        if rng.random() < 0.3:
            content = content.removesuffix(b"\r\n")  # it comes back
        is_bad = re.search(rb"\r(?!\n)|\0", content)
        for normalizes in (True, False):
            one = chunked(content, rng, normalizes=normalizes)
            lines = re.sub(rb"(?<!\r)\n", b"\r\n", content)
            if is_bad or (lines != content and not normalizes):
                assert one.rejection is ContentRejection.BARE, content
                continue
            lines += b"" if lines.endswith(b"\r\n") or not lines else b"\r\n"
            by_data = receiver()
            stuffed = (b"\r\n" + lines).replace(b"\r\n.", b"\r\n..")[len(b"\r\n") :]
            assert by_data.feed(stuffed + b".\r\n") == b""
            found = one.hand_over().content
            assert (one.rejection, found) == (None, by_data.hand_over().content), content
            accepted += 1
    assert 60 <= accepted <= 340, "the data is too good or too bad"


def test_rejected_content_is_not_kept():
    one = receiver(size_max_bytes=1000)
    for _ in range(1000):
        assert one.feed(b"12345678\r\n" * 10) is None
        assert one.size_bytes <= 1000
        assert sum(map(len, one._chunks)) + len(one.framing._rest) <= 1200
    assert one.feed(b".\r\n") == b""
    assert one.rejection is ContentRejection.TOO_BIG


def test_lines_sent_alone_count_their_overhead():
    one = receiver(budget=Shares("contents", 1000))
    for _ in range(14):
        one.feed(b"x" * 62 + b"\r\n")  # 896 octets
    assert one.rejection is ContentRejection.NO_ROOM
    assert one.size_bytes == 0


def test_octets_sent_alone_share_their_overhead():
    budget = Shares("contents", 2000)
    one = receiver(budget=budget)
    for _ in range(300):
        for octet in (b"a", b"\r", b"\n"):
            one.feed(octet)
    assert one.rejection is None
    assert not budget.has_room(None, 2000 - 900)
    one.release()
    assert budget.has_room(None, 2000)


def test_a_client_gets_half_of_the_memory():
    budget = Shares("contents", 2000)
    one, other = (receiver(budget=budget, line=1000, size_max_bytes=9000) for _ in range(2))
    one.key = "192.0.2.1"
    for each, size_bytes in ((one, 700), (one, 600), (other, 900)):
        each.feed(b"x" * size_bytes + b"\r\n")
    assert (one.rejection, other.rejection) == (ContentRejection.NO_ROOM, None)
    other.release()
    assert budget.taken == 0


HEADER = b"Subject: large\r\nX-Folded: a\r\n b\r\n"
LARGE = {
    "plain": (HEADER + b"\r\n" + b"text\r\n" * 20, HEADER, False),
    "dots": (HEADER + b"\r\n" + b"..dot\r\n..\r\nx\r\n" * 9, HEADER, False),
    "blank lines": (HEADER + b"\r\n" * 90, HEADER, False),
    "eight bit at once": (HEADER + b"\r\n\xff\r\n" + b"text\r\n" * 20, HEADER, True),
    "eight bit at last": (HEADER + b"\r\n" + b"text\r\n" * 20 + b"\xff\r\n", HEADER, True),
    "eight bit in the header": (
        b"Subject: \xff\r\n\r\n" + b"text\r\n" * 20,
        b"Subject: \xff\r\n",
        False,
    ),
    "an empty header": (b"\r\n" + b"text\r\n" * 20, b"", False),
}


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 7, 64, 1000])
@each_row("sent, header, eight_bit", LARGE.values())
def test_large_content_does_not_depend_on_the_block_size(
    sent, header, eight_bit, block_bytes, monkeypatch
):
    monkeypatch.setattr("relay.transport.ingress.data.BLOCK_BYTES", 30 + block_bytes)
    one = receiver(large_bytes=70)
    assert feed_in_blocks(one, sent + b".\r\nNOOP\r\n", block_bytes) == b"NOOP\r\n"
    content = one.hand_over().content
    assert isinstance(content, LargeContent)
    assert (content.header, content.eight_bit) == (header, eight_bit)
    assert read_all(content) == sent.replace(b"\r\n..", b"\r\n.")
    assert content.size == one.size_bytes


def test_large_content_without_a_header_gets_a_blank_line():
    one = receiver(large_bytes=50)
    assert feed_in_blocks(one, b"no field\r\n" * 20 + b".\r\n", 7) == b""
    content = one.hand_over().content
    assert (content.header, read_all(content)) == (b"", b"\r\n" + b"no field\r\n" * 20)


@pytest.mark.parametrize(
    ("bad", "rejection"),
    [
        (b"a\nb\r\n", ContentRejection.BARE),
        (b"x" * 201 + b"\r\n", ContentRejection.LONG_LINE),
        (b"12345678\r\n" * 100, ContentRejection.TOO_BIG),
    ],
)
def test_the_file_of_rejected_content_is_removed_at_once(bad, rejection):
    arrival = MemoryArrival()
    one = receiver(arrival=lambda: arrival, large_bytes=20)
    one.feed(b"A: b\r\n\r\n" + b"text\r\n" * 10)
    uvloop.run(one.spill(asyncio.to_thread))
    assert arrival.written
    one.feed(bad)
    assert (one.rejection, one.needs_spill, arrival.discarded) == (rejection, False, 1)
    one.feed(b"text\r\n.\r\n")
    one.release()
    assert (len(arrival.written), arrival.discarded) == (1, 1)


CROWDED = SessionLimits(large_bytes=1000, calm_bytes=2000, crowded_bytes=200)


def crowded(*, others_bytes: int) -> Receiver:
    """Receives while the contents of others take so much memory."""
    budget = Shares("contents", 10_000)
    assert budget.take(None, others_bytes)
    return Receiver(size_max_bytes=5000, limits=CROWDED, budget=budget, arrival=MemoryArrival)


@pytest.mark.parametrize(
    ("others_bytes", "size_bytes", "is_large"),
    [(0, 400, False), (2001, 190, False), (2001, 400, True), (2001, 4000, True)],
)
def test_while_others_take_much_memory_a_smaller_body_goes_into_a_file(
    others_bytes, size_bytes, is_large
):
    one = crowded(others_bytes=others_bytes)
    sent = b"A: b\r\n\r\n" + b"x" * (size_bytes - 10) + b"\r\n"
    held = []
    for at in range(0, size_bytes, 50):
        one.feed(sent[at : at + 50])
        if one.needs_spill:
            uvloop.run(one.spill(asyncio.to_thread))
        held.append(one.budget.taken - others_bytes)
    feed_in_blocks(one, b".\r\n", 5)
    content = one.hand_over().content
    assert isinstance(content, LargeContent) is is_large
    assert (read_all(content) if is_large else content) == sent
    assert not is_large or max(held) < 500


@pytest.mark.parametrize(
    ("others_bytes", "rejection"), [(0, None), (2001, ContentRejection.NO_ROOM)]
)
def test_while_others_take_much_memory_a_long_header_is_deferred(others_bytes, rejection):
    for blank in (b"", b"\r\nbody\r\n"):
        one = crowded(others_bytes=others_bytes)
        feed_in_blocks(one, b"X-Filling: x\r\n" * 20 + blank + b".\r\n", 1000)
        assert one.rejection is rejection


def test_large_content_uses_memory_only_for_its_buffers():
    budget = Shares("contents", LARGE_BYTES + 4 * BLOCK_BYTES)
    one = receiver(size_max_bytes=10**9, line=10**6, budget=budget, large_bytes=LARGE_BYTES)
    block = b"0123456789abcdef" * 4 * 1024 + b"\r\n"
    one.feed(b"A: b\r\n\r\n")
    for _ in range(100):
        one.feed(block)
        if one.needs_spill:
            uvloop.run(one.spill(asyncio.to_thread))
    one.feed(b".\r\n")
    uvloop.run(one.spill(asyncio.to_thread))
    assert one.rejection is None
    received = one.hand_over()
    assert received.content.size == 8 + 100 * len(block)
    one.release()
    assert not budget.has_room(None, LARGE_BYTES + 4 * BLOCK_BYTES), "the header is in memory still"
    received.release()
    assert budget.has_room(None, LARGE_BYTES + 4 * BLOCK_BYTES)
    assert not budget.has_room(None, LARGE_BYTES + 4 * BLOCK_BYTES + 1), "given back twice"
