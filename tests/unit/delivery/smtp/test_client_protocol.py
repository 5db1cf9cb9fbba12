"""Replies from bytes, wherever they are cut; invalid replies and limits."""

import asyncio
import contextlib
import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.message.outcome import Reply, SessionFailure
from relay.delivery.smtp import client_protocol
from tests.support.tables import each_row

STREAM = (
    b"250-mx.test\r\n250-SIZE 1\r\n250 HELP\r\n354 go\r\n550-5.1.1 no such\r\n550 5.1.1 user\r\n250\r\n"
    b"250 ok\r\n250 ok\r\n250-2.1.5 more\r\n250 ok\r\n250 ok\r\n"
)
REPLIES = [
    Reply(250, "mx.test SIZE 1 HELP"),
    Reply(354, "go"),
    Reply(550, "5.1.1 no such user"),
    Reply(250, ""),
    Reply(250, "ok"),
    Reply(250, "ok"),
    Reply(250, "2.1.5 more ok"),
    Reply(250, "ok"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_replies_do_not_depend_on_where_the_bytes_are_cut(cuts):
    reader, replies = client_protocol.ReplyParser(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        replies += reader.feed(STREAM[start:end])
    assert replies == REPLIES
    assert not reader.has_begun()
    assert reader.fault == ""


@given(st.binary(max_size=200))
def test_the_parser_never_raises(data):
    reader = client_protocol.ReplyParser()
    for reply in reader.feed(data):
        assert 200 <= reply.code < 600
        assert reply.text.isprintable()


@each_row(
    "line", [b"hello", b"25 x", b"2500 x", b"199 x", b"600 x", b"", b"\x80\x81\x82 x", b"250_x"]
)
def test_an_invalid_reply_is_a_fault_and_keeps_earlier_replies(line):
    reader = client_protocol.ReplyParser()
    assert reader.feed(b"250 ok\r\n" + line + b"\r\n250 more\r\n") == [Reply(250, "ok")]
    assert "not an SMTP reply" in reader.fault


@given(
    st.lists(
        st.sampled_from([b"250-a", b"250 b", b"550 c", b"354-d", b"x", b"", b"250_x"]), max_size=9
    )
)
def test_text_never_is_a_reply_and_the_first_line_decides_whether_a_2yz_is_doubted(lines):
    reader = client_protocol.ReplyParser(takes_text=True)
    found = reader.feed(b"".join(line + b"\r\n" for line in lines))
    ends = [n for n, line in enumerate(lines) if line in (b"250 b", b"550 c")]
    begins = [0, *(n + 1 for n in ends)]
    assert [(one.code, one.doubtful) for one in found] == [
        (int(lines[end][:3]), lines[end] == b"250 b" and lines[begin][:4] not in (b"250-", b"250 "))
        for begin, end in zip(begins, ends, strict=False)
    ]
    assert reader.fault == ""


def test_the_last_line_gives_the_code():
    assert client_protocol.ReplyParser().feed(b"250-ok\r\n550 no\r\n") == [Reply(550, "ok no")]


def test_unprintable_text_is_made_safe():
    assert client_protocol.ReplyParser().feed(b"550 a\x00b\x1b[31m\xff\r\n") == [
        Reply(550, "a?b?[31m\ufffd")
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"250-" + b"x" * client_protocol.REPLY_BYTES_MAX,
        b"250-xxxxxxxxxxxxxxxxxxxx\r\n" * (client_protocol.REPLY_BYTES_MAX // 20),
        b"250-\r\n" * (client_protocol.REPLY_LINES_MAX + 1),
    ],
)
def test_a_reply_without_end_is_a_fault(data):
    reader = client_protocol.ReplyParser()
    for start in range(0, len(data), 1000):
        reader.feed(data[start : start + 1000])
    assert "more than" in reader.fault


async def test_what_is_sent_as_the_time_ends_counts_as_sent():
    """Otherwise a host that has the final dot would get the message again."""
    ours, host = socket.socketpair()
    with host:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        wire = client_protocol.SmtpClientProtocol(transport)
        transport.set_protocol(wire)
        wire.send(bytes(300_000), replies=1)
        assert transport.get_write_buffer_size()
        with contextlib.suppress(BlockingIOError):
            while host.recv(1 << 20, socket.MSG_DONTWAIT):
                pass
        await wire.flushed(0.0)  # writes the rest, and the time ends in the same iteration
        with pytest.raises(client_protocol.SmtpProtocolError) as caught:
            await wire.reply(0.1)
        assert caught.value.trouble is SessionFailure.TIMEOUT
        wire.close()
