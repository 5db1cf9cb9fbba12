"""The packets of the milter protocol: what is read from any cut of the octets, and what is a fault."""

import random
import struct

import pytest

from relay.transport.milter import codec
from relay.transport.milter.codec import (
    FieldChange,
    MilterFaultError,
    MilterPacket,
    PacketReader,
    PathChange,
)
from tests.support.tables import each_row


def read(octets, cuts=()):
    reader, packets = PacketReader(), []
    for start, end in zip((0, *cuts), (*cuts, len(octets)), strict=True):
        reader.feed(octets[start:end])
        while (packet := reader.next()) is not None:
            packets.append(packet)
    return packets, reader


def test_packets_are_the_same_wherever_the_octets_are_cut():
    sent = [
        (b"c", b""),
        (b"h", b"X-A\0a\0"),
        (b"p", b""),
        (b"q", b"why\0"),
        (b"b", b""),
        (b"a", b""),
    ]
    octets = b"".join(codec.encode(*one) for one in sent)
    dice = random.Random(54)
    cuts = [tuple(range(1, len(octets)))]
    cuts += [sorted(dice.sample(range(1, len(octets)), dice.randint(0, 9))) for _ in range(300)]
    for each in cuts:
        packets, reader = read(octets, each)
        assert [(one.command, one.data) for one in packets] == sent
        assert reader.is_empty


def test_a_body_comes_in_pieces_as_it_arrives():
    octets = codec.encode(b"b", b"0123456789") + codec.encode(b"c")
    packets, _ = read(octets, (8, 11))
    assert packets == [
        MilterPacket(b"b", b"012"),
        MilterPacket(b"b", b"345"),
        MilterPacket(b"b", b"6789"),
        MilterPacket(b"c"),
    ]
    _, reader = read(octets[:11])
    assert not reader.is_empty  # the packet has not ended


@each_row(
    "octets",
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\x10\0\x01c", b"\xff\xff\xff\xffb", b"\0\0\0\0b"],
)
def test_a_length_is_checked_before_anything_is_kept(octets):
    with pytest.raises(MilterFaultError, match="octets, expected 1 to"):
        read(octets)


def answer(version=6, actions=0, steps=0, rest=b""):
    return MilterPacket(b"O", struct.pack(">III", version, actions, steps) + rest)


def test_negotiation():
    lists = struct.pack(">I", 2) + b"i, {auth_authen}\0" + struct.pack(">I", 3) + b" \0"
    wants = codec.negotiated(answer(2, 0x11, 0x1FFFFF, lists))
    assert (wants.version, wants.actions, wants.steps) == (2, 0x11, 0x1FF7FF)  # what was offered
    assert wants.macros == {2: ["i", "{auth_authen}"]}  # an empty list is none, as for Postfix


@each_row(
    "packet, said",
    [
        (MilterPacket(b"c"), "instead of a negotiation"),
        (MilterPacket(b"O", b"\0\0\0\6\0\0\0\0"), "instead of a negotiation"),
        (answer(7), "version 7"),
        (answer(1), "version 1"),
        (answer(actions=0x200), "actions 0x200"),
        (answer(rest=b"\0\0\0\2i"), "a list of macros"),
        (answer(rest=b"\0"), "a list of macros"),
    ],
)
def test_a_faulty_negotiation(packet, said):
    with pytest.raises(MilterFaultError, match=said):
        codec.negotiated(packet)


@each_row(
    "command, data, change",
    [
        (b"h", b"X-A\0a\n\tb\0", FieldChange(b"h", 0, b"X-A", b"a\n\tb")),
        (b"i", b"\0\0\0\2X-A\0\0", FieldChange(b"i", 2, b"X-A", b"")),
        (b"m", b"\0\0\0\1Subject\0 j\xc3\xb6\0", FieldChange(b"m", 1, b"Subject", b" j\xc3\xb6")),
        (b"b", b"a\r\n\0", b"a\r\n\0"),
        (b"q", b"bad\nword\0", "bad?word"),
        (b"q", b"x" * 200 + b"\0", "x" * 100),
        (b"+", b"<B@Y.test>\0", PathChange(b"+", "B@y.test")),
        (b"+", b"b@y.test\0", PathChange(b"+", "b@y.test")),  # as rspamd writes it
        (b"2", b"<b@y.test>\0NOTIFY=NEVER\0", PathChange(b"2", "b@y.test")),
        (b"2", b"<b@y.test>\0", PathChange(b"2", "b@y.test")),
        (b"-", "<jörg@y.test>\0".encode(), PathChange(b"-", "jörg@y.test")),
        (b"e", b"<>\0", PathChange(b"e", "")),
        (b"e", b"<a@x.test>\0RET=HDRS\0", PathChange(b"e", "a@x.test")),
    ],
)
def test_a_change(command, data, change):
    assert codec.change_of(MilterPacket(command, data)) == change


@each_row(
    "command, data",
    [
        (b"h", b"X-A\0a"),
        (b"h", b"X-A\0"),
        (b"h", b"X-A\0a\0b\0"),
        (b"h", b"X:A\0a\0"),
        (b"h", b"X A\0a\0"),
        (b"h", b"X\xc3\xa4\0a\0"),
        (b"h", b"\0a\0"),
        (b"h", b"X-A\0a\nBcc: b@y.test\0"),
        (b"h", b"X-A\0a\n\0"),
        (b"h", b"X-A\0a\r\n b\0"),
        (b"m", b"\0\0\0\1X-A\0a\rb\0"),
        (b"i", b"\0\0"),
        (b"+", b"<b@y.test>\0NOTIFY=NEVER\0"),
        (b"+", b"<b@y.test>\r\nDATA\0"),
        (b"+", b"<b y.test>\0"),
        (b"-", b"<\xff@y.test>\0"),
        (b"e", b"<a@x.test>\0RET=\nHDRS\0"),
        (b"q", b"why"),
        (b"q", b"\xff\0"),
    ],
)
def test_a_change_that_is_a_fault(command, data):
    with pytest.raises(MilterFaultError, match=r"the answer b'."):
        codec.change_of(MilterPacket(command, data))


@each_row(
    "data, text",
    [
        (b"550 5.7.1 no 100%% sure\0", "550 5.7.1 no 100% sure"),
        (b"451 try %x later", "451 try x later"),
        (b"550 ", "550 "),
        (b"550-5.7.1 one\r\n550 5.7.1 two\0", "550-5.7.1 one\r\n550 5.7.1 two"),
        (b"550 j\xc3\xb6\tx\0", "550 j?? x"),
        (b"550 " + b"x" * 600 + b"\0", "550 " + "x" * 506),
    ],
)
def test_a_reply(data, text):
    assert codec.reply_of(MilterPacket(b"y", data)) == text


@each_row(
    "data",
    [
        b"\0",
        b"250 ok\0",
        b"350 go\0",
        b"55 no\0",
        b"550no\0",
        b"5\xd9\xa05 no\0",
        b"550 4.7.1 no\0",
        b"451 5.7.1 no\0",
        b"550 no\rRCPT\0",
        b"550 no\nRCPT\0",
        b"550 no\r\n\0",
        b"550 one\r\n550 two\0",
        b"550-one\r\n551 two\0",
        b"550-one\0",
        b"550 a\0b\0",
        b"\r\n".join([b"550-" + b"x" * 900] * 40) + b"\r\n550 x\0",
    ],
)
def test_a_malformed_reply(data):
    with pytest.raises(MilterFaultError, match="reply"):
        codec.reply_of(MilterPacket(b"y", data))


@pytest.mark.parametrize(
    ("command", "data"), [(b"c", b"\0"), (b"Z", b""), (b"O", b""), (b"p", b"1")]
)
def test_an_answer_that_is_none(command, data):
    with pytest.raises(MilterFaultError, match="the answer"):
        codec.check_bare(MilterPacket(command, data))
