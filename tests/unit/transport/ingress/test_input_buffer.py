"""The input buffer: command lines, pipelining, bare LF, back-pressure."""

import asyncio

import pytest

from relay.transport.ingress.smtp_session import InputBuffer, LineError


class Transport:
    def __init__(self):
        self.reading = True

    def pause(self):
        self.reading = False

    def resume(self):
        self.reading = True


def make_input(limit_bytes=1000, transport=None) -> InputBuffer:
    transport = transport or Transport()
    return InputBuffer(limit_bytes=limit_bytes, pause=transport.pause, resume=transport.resume)


def lines_of(one: InputBuffer, limit_bytes: int = 20) -> list:
    lines = []
    while (line := one.take_line(limit_bytes)) is not None:
        lines.append(line)
    return lines


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"NOOP", []),
        (b"NOOP\r\n", [b"NOOP"]),
        (b"a\r\nb\r\nc", [b"a", b"b"]),
        (b"\r\n", [b""]),
        (b"x" * 18 + b"\r\n", [b"x" * 18]),
        (b"x" * 19 + b"\r\na\r\n", [LineError.TOO_LONG, b"a"]),
        (b"a\rb\r\nc\r\n", [LineError.BARE, b"c"]),
        (b"a\r\r\n", [LineError.BARE]),
        (b"a\0\r\n", [LineError.BARE]),
    ],
)
def test_take_line(data, lines):
    one = make_input()
    one.feed(data)
    assert lines_of(one) == lines


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "data",
    [
        b"NOOP\nMAIL\r\nRCPT\r\n",
        b"\nMAIL\r\n",
        b"NOOP\r\r\n\nMAIL\r\n",
        b"x" * 50 + b"\nMAIL\r\nRCPT\r\n",
        b"x" * 50 + b"\r\n\nMAIL\r\n",
    ],
    ids=repr,
)
def test_nothing_behind_a_bare_lf_becomes_a_command(data, block_bytes):
    """However the line is cut into segments, and however long it is."""
    one, last = make_input(), None
    for at in range(0, len(data), block_bytes):
        one.feed(data[at : at + block_bytes])
        while last is not LineError.BARE_LF and (line := one.take_line(20)) is not None:
            assert line in (LineError.BARE, LineError.TOO_LONG, LineError.BARE_LF)
            last = line
    assert last is LineError.BARE_LF
    assert one.take_line(20) is LineError.BARE_LF
    assert one.is_empty


@pytest.mark.parametrize("block_bytes", [1, 7, 30])
def test_a_long_line_is_one_error_and_is_not_kept(block_bytes):
    one = make_input()
    data = b"x" * 500 + b"\r\nNOOP\r\n"
    lines = []
    for at in range(0, len(data), block_bytes):
        one.feed(data[at : at + block_bytes])
        lines += lines_of(one)
        assert len(one._data) <= 60
    assert lines == [LineError.TOO_LONG, b"NOOP"]


def test_what_is_put_back_comes_next():
    one = make_input()
    one.feed(b"content\r\n.\r\nNOOP\r\nQU")
    assert one.take_all(100) == b"content\r\n.\r\nNOOP\r\nQU"
    one.put_back(b"NOOP\r\nQU")
    one.feed(b"IT\r\n")
    assert lines_of(one) == [b"NOOP", b"QUIT"]
    assert one.is_empty


async def test_more_waits_for_new_data():
    one = make_input()
    one.feed(b"NO")
    assert lines_of(one) == []
    waiting = asyncio.ensure_future(one.more())
    await asyncio.wait({waiting}, timeout=0.01)
    assert not waiting.done()
    one.feed(b"OP\r\n")
    assert await waiting is True
    assert lines_of(one) == [b"NOOP"]


async def test_more_does_not_wait_if_data_has_arrived():
    one = make_input()
    assert lines_of(one) == []
    one.feed(b"NOOP\r\n")
    assert await asyncio.wait_for(one.more(), 1) is True


async def test_data_before_the_end_is_still_read():
    one = make_input()
    assert lines_of(one) == []
    one.feed(b"QUIT\r\n")
    one.feed_end()
    assert await one.more() is True
    assert lines_of(one) == [b"QUIT"]
    assert await one.more() is False


async def test_reading_pauses_while_too_much_is_buffered():
    transport = Transport()
    one = make_input(10, transport)
    one.feed(b"0123456789")
    assert transport.reading
    one.feed(b"\r\n")
    assert not transport.reading
    assert lines_of(one) == [b"0123456789"]
    waiting = asyncio.ensure_future(one.more())
    await asyncio.wait({waiting}, timeout=0.01)
    assert transport.reading
    one.feed_end()
    assert await waiting is False


def test_the_octets_of_many_chunks_are_taken_without_copying_the_rest():
    one = make_input()
    one.feed(b"BDAT 3\r\nabcBDAT 2 LAST\r\nde")
    buffered = one._data
    assert one.take_line(100) == b"BDAT 3"
    assert one.take_all(3) == b"abc"
    assert one.take_all(0) == b""
    assert one.take_line(100) == b"BDAT 2 LAST"
    assert one._data is buffered
    assert one.take_all(2) == b"de"
    assert one.is_empty
