"""The input buffer: bare LF, and back-pressure."""

import asyncio
from itertools import product

from relay.transport.ingress.smtp_session import InputBuffer, LineError
from tests.support.tables import each_row

BARE = (
    b"NOOP\nMAIL\r\nRCPT\r\n",
    b"\nMAIL\r\n",
    b"NOOP\r\r\n\nMAIL\r\n",
    b"x" * 50 + b"\nMAIL\r\nRCPT\r\n",
    b"x" * 50 + b"\r\n\nMAIL\r\n",
)


@each_row("data, block_bytes", product(BARE, (1, 2, 3, 7, 100)))
def test_nothing_behind_a_bare_lf_becomes_a_command(data, block_bytes):
    """However the line is cut into segments, and however long it is."""
    one, last = InputBuffer(limit_bytes=1000, pause=int, resume=int), None
    for at in range(0, len(data), block_bytes):
        one.feed(data[at : at + block_bytes])
        while last is not LineError.BARE_LF and (line := one.take_line(20)) is not None:
            assert line in (LineError.BARE, LineError.TOO_LONG, LineError.BARE_LF)
            last = line
    assert last is LineError.BARE_LF
    assert one.take_line(20) is LineError.BARE_LF
    assert one.is_empty


async def test_reading_pauses_while_too_much_is_buffered():
    asked = []
    one = InputBuffer(
        limit_bytes=10, pause=lambda: asked.append("pause"), resume=lambda: asked.append("resume")
    )
    one.feed(b"0123456789")
    assert asked == []
    one.feed(b"\r\n")
    assert asked == ["pause"]
    assert one.take_line(20) == b"0123456789"
    waiting = asyncio.ensure_future(one.more())
    await asyncio.wait({waiting}, timeout=0.01)
    assert asked[-1] == "resume"
    one.feed_end()
    assert await waiting is False


def test_a_long_line_is_one_error_and_is_not_kept():
    asked = []
    one = InputBuffer(limit_bytes=1000, pause=lambda: asked.append("pause"), resume=int)
    for _ in range(9):
        one.feed(b"x" * 500)
        assert one.take_line(20) is None
    one.feed(b"\r\nNOOP\r\n")
    assert [one.take_line(20) for _ in range(2)] == [LineError.TOO_LONG, b"NOOP"]
    assert asked == []
