"""Hosts that break off, stall, dribble or talk too much at any place of a session: what becomes of each recipient."""

import asyncio
import contextlib
import socket
import struct

import pytest
from msgspec import structs

from relay.base.message.outcome import (
    DeferralClass,
    Deferred,
    Delivered,
    Failed,
    Indeterminate,
    Relayed,
)
from relay.delivery.smtp import connection as connection_module
from relay.delivery.smtp.client_protocol import REPLY_BYTES_MAX, TOO_LONG, ReplyParser
from relay.delivery.smtp.connect import ConnectError, Target, connect
from relay.delivery.smtp.connection import Timeouts
from tests.support.events import until
from tests.support.remote_mx import EXTENSIONS, RemoteMx

STEP_BY_STEP = [word for word in EXTENSIONS if word != "PIPELINING"]
SHORT_S = 0.6
SHORT = Timeouts(
    connect_s=SHORT_S, command_s=SHORT_S, data_s=SHORT_S, block_s=SHORT_S, dot_s=SHORT_S, quit_s=0.1
)
LONG = Timeouts(quit_s=0.1)
AT_DOT = Timeouts(dot_s=SHORT_S, quit_s=0.1)  # what comes before may take longer
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST


def replies_of(*, lmtp, pipelining):
    """What the host says in a session for two recipients: (command, reply) each."""
    hello = b"250-mx.test\r\n250 PIPELINING\r\n" if pipelining else b"250 mx.test\r\n"
    dots = [(b".", b"250 2.0.0 taken\r\n")] * (2 if lmtp else 1)
    begin = [
        (b"", b"220 mx.test\r\n"),
        (b"LHLO" if lmtp else b"EHLO", hello),
        (b"MAIL", b"250 ok\r\n"),
    ]
    return [
        *begin,
        (b"RCPT", b"250 ok\r\n"),
        (b"RCPT", b"250-ok\r\n250 ok\r\n"),
        (b"DATA", b"354 go\r\n"),
        *dots,
    ]


class CutHost:
    """Says `replies` up to the octet `cut` of them all, then resets the connection, stalls or dribbles."""

    def __init__(self, replies, cut, action):
        self.replies, self.cut, self.action = replies, cut, action
        self.open = 0

    async def __call__(self, reader, writer):
        self.open += 1
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            await self._converse(reader, writer)
        if self.action == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
        self.open -= 1

    async def _converse(self, reader, writer):
        left, last = self.cut, b""
        for command, reply in self.replies:
            if command == b"." and last != b".":
                await reader.readuntil(b"\r\n.\r\n")
            elif command not in (b"", b"."):
                line = await reader.readuntil(b"\r\n")
                if not line.startswith((command, b"HELO")):
                    return
            last = command
            if not left:
                break
            writer.write(reply[:left])
            left -= len(reply)
            if left < 0:
                break
        await writer.drain()
        while self.action == "dribble" and not reader.at_eof() and not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        if self.action == "stall":
            await reader.read()


async def outcomes_of(host, message, *, lmtp, timeouts):
    """The outcomes of two recipients at this host."""
    server = await asyncio.start_server(host, "127.0.0.1", 0)
    async with server:
        target = Target("mx.test", *server.sockets[0].getsockname(), lmtp=lmtp)
        try:
            connection = await connect(target, ehlo_name="relay.test", timeouts=timeouts)
        except ConnectError as error:
            outcomes = [error.outcome] * 2
        else:
            result = await connection.transact(message("a@y.test", "b@y.test"))
            outcomes = [result.outcomes[0], result.outcomes[1]]
            await connection.quit()
        await until(lambda: not host.open)
    await asyncio.sleep(0)
    return outcomes


@pytest.mark.parametrize("action", ["reset", "stall", "dribble"])
@pytest.mark.parametrize(
    ("lmtp", "pipelining"), [(False, True), (False, False), (True, True), (True, False)]
)
async def test_a_session_cut_anywhere_is_never_delivered_without_a_final_2yz_and_never_lost(
    message, lmtp, pipelining, action
):
    replies = replies_of(lmtp=lmtp, pipelining=pipelining)
    expected, found, begin = {}, {}, 0
    success = Delivered if lmtp else Relayed
    answered = 0
    for place, (command, reply) in enumerate(replies):
        # "250 ..." and a dribble have no end: the rest is never a reply
        for inside in (0, 2, len(reply) - 2) if action == "dribble" else (0, 2, len(reply) - 1):
            after = [success] * answered + [Indeterminate] * (2 - answered)
            expected[place, begin + inside] = after if command == b"." else [Deferred] * 2
        begin += len(reply)
        answered += command == b"."

    async def look(place, cut):
        host = CutHost(replies, cut, action)
        timeouts = AT_DOT if replies[place][0] == b"." else SHORT
        timeouts = LONG if action == "reset" else timeouts
        found[place, cut] = await outcomes_of(host, message, lmtp=lmtp, timeouts=timeouts)

    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for place, cut in expected:
            group.create_task(look(place, cut))
    kinds = {place: [type(one) for one in outcomes] for place, outcomes in found.items()}
    if action == "reset":  # it may destroy what was on its way
        for place, after in expected.items():
            kinds[place] = [
                after[n] if kind is Indeterminate and after[n] is success else kind
                for n, kind in enumerate(kinds[place])
            ]
    assert kinds == expected


ODD = [
    ("250-2.0.0 ok\r\nqueued as 17\r\n250 2.0.0 done", Relayed),
    ("250-2.0.0 ok\r\n\r\n250", Relayed),
    ("250-ok\r\n550-no\r\n250 done", Relayed),
    ("queued as 17\r\n250 2.0.0 done", Indeterminate),
    ("550-no\r\n250 2.0.0 done", Indeterminate),
    ("354-go\r\n250 2.0.0 done", Indeterminate),
    ("250-ok\r\nqueued\r\n550 5.7.1 no", Failed),
    ("queued\r\n451 4.3.0 later", Deferred),
    ("250-ok\r\nqueued as 17", Indeterminate),
    ("queued as 17", Indeterminate),
    ("250-ok\r\n354 go", Indeterminate),
]


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize(("reply", "expected"), ODD)
async def test_text_in_the_reply_to_the_dot(connected, message, reply, expected, lmtp):
    async with RemoteMx(extensions=STEP_BY_STEP, replies={"DOT": reply}, lmtp=lmtp) as mx:
        connection = await connected(mx, timeouts=AT_DOT)
        result = await connection.transact(message())
    success = Delivered if lmtp and expected is Relayed else expected
    assert type(result.outcomes[0]) is success
    assert "queued as 17" in result.outcomes[0].evidence.reply or reply != ODD[0][0]


@pytest.mark.parametrize("reply", [ODD[0][0], ODD[7][0]])
async def test_text_is_no_reply_where_commands_are_pipelined(connected, message, reply):
    async with RemoteMx(replies={"DOT": reply}) as mx:
        result = await (await connected(mx)).transact(message())
    assert isinstance(result.outcomes[0], Indeterminate)


@pytest.mark.parametrize("text", [b"x\r\n", b"\n"])
def test_text_before_a_command_is_bounded(text):
    parser = ReplyParser(takes_text=True)
    for _ in range(REPLY_BYTES_MAX + 1):
        parser.feed(text)
        assert not parser.has_begun() or parser.fault
    assert parser.fault == TOO_LONG


@pytest.mark.parametrize("after", ["250 ok", "250-ok\r\nwell", "well\r\n250 ok", "2"])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
async def test_a_second_reply_is_never_that_of_the_next_command(connected, message, stage, after):
    go = "354 go" if stage == "DATA" else "250 ok"
    said = {stage: f"{go}\r\n{after}", "DOT": "550 5.7.1 no"}
    for extensions in (EXTENSIONS, STEP_BY_STEP):
        async with RemoteMx(extensions=extensions, replies=said) as mx:
            result = await (await connected(mx, timeouts=SHORT)).transact(message())
        assert isinstance(result.outcomes[0], Deferred | Failed)


async def test_text_in_other_replies_and_none_of_it_is_an_extension(connected, message):
    said = {
        "MAIL": "250-hello\r\nwell\r\n250 ok",
        "RCPT": "250-ok\r\nwell\r\n250 ok",
        "DATA": "354-go\r\non\r\n354 go",
    }
    said |= {
        "CONNECT": "220-mx.test\r\nno spam\r\n220 mx.test",
        "EHLO": "250-mx\r\nPIPELINING\r\n250 DSN",
    }
    async with RemoteMx(replies=said) as mx:
        connection = await connected(mx)
        assert (connection.extensions.pipelining, connection.extensions.dsn) == (False, True)
        result = await connection.transact(message())
        assert isinstance(result.outcomes[0], Relayed)
        assert result.reusable


@pytest.mark.parametrize("stage", ["CONNECT", "EHLO", "MAIL", "DOT"])
@pytest.mark.parametrize(
    "reply",
    ["2" + "x" * 1_000_000, "250-x\r\n" * 10_000, "x\r\n" * 10_000, "\x16\x03\x01\x02\x00\x01\x0b"],
    ids=["1 MB", "10,000 lines", "10,000 lines without a code", "TLS"],
)
async def test_no_reply_is_too_large_or_too_strange(connected, message, stage, reply):
    async with RemoteMx(extensions=STEP_BY_STEP, replies={stage: reply}) as mx:
        try:
            timeouts = AT_DOT if stage == "DOT" else SHORT
            result = await (await connected(mx, timeouts=timeouts)).transact(message())
        except ConnectError as error:
            outcome = error.outcome
        else:
            outcome = result.outcomes[0]
    assert type(outcome) is (Indeterminate if stage == "DOT" else Deferred)
    assert len(outcome.evidence.reply) < 500


async def test_all_steps_of_a_session_together_have_a_time(message):
    host = CutHost(replies_of(lmtp=False, pipelining=False), 4, "dribble")  # "220 " and no end
    timeouts = Timeouts(session_s=SHORT_S)
    (outcome, _) = await outcomes_of(host, message, lmtp=False, timeouts=timeouts)
    assert (type(outcome), outcome.kind) == (Deferred, DeferralClass.SITE)
    assert outcome.evidence.reply.endswith(f"banner: no session within {SHORT_S:g} s")


async def test_a_transaction_has_a_time_and_the_final_reply_one_of_its_own(
    connected, message, monkeypatch
):
    timeouts = structs.replace(LONG, transaction_s=0.2)
    large = b"x" * 12_000_000  # more than sockets hold

    async def outcome(stage, slowest_bytes_s, *, opens_after_s, rcpt_s=0.0, content=large):
        """That of a message to a host that waits at a stage."""
        monkeypatch.setattr(connection_module, "SLOWEST_BYTES_S", slowest_bytes_s)
        monkeypatch.setattr(connection_module, "RCPT_S", rcpt_s)
        gate = asyncio.Event()
        async with RemoteMx(gates={stage: gate}) as mx:
            connection = await connected(mx, timeouts=timeouts)
            timer = asyncio.get_running_loop().call_later(opens_after_s, gate.set)
            result = await connection.transact(message(content=content))
            timer.cancel()
            gate.set()
        return result.outcomes[0]

    assert isinstance(await outcome("DOT", 10**9, opens_after_s=0.5, content=b"x"), Relayed)
    assert isinstance(
        await outcome("RCPT", 1_500_000, opens_after_s=0.5), Relayed
    )  # 8 s for its size
    assert isinstance(await outcome("RCPT", 10**9, opens_after_s=0.5, rcpt_s=8.0), Relayed)
    for stage in ("RCPT", "CONTENT"):
        slow = await outcome(stage, 10**9, opens_after_s=9)
        assert (type(slow), slow.kind) == (Deferred, DeferralClass.SITE)
        assert slow.evidence.reply == "the transaction was not sent within 0.2 s"


@pytest.mark.parametrize("extensions", [EXTENSIONS, STEP_BY_STEP])
async def test_the_limits_of_the_host_split_a_transaction(connected, message, extensions):
    limits = "LIMITS RCPTMAX=2 MAILMAX=3 RCPTDOMAINMAX=1 X RCPTMAXX=9"
    async with RemoteMx(extensions=[*extensions, limits]) as mx:
        connection = await connected(mx)
        first = await connection.transact(message("a@y.test", "b@y.test", "c@y.test"))
        assert ([*first.outcomes], first.again) == ([0, 1], (2,))
        second = await connection.transact(message("a@y.test", "b@z.test", "c@y.test"))
        assert (second.again, connection.is_worn) == ((1,), False)
        third = await connection.transact(message("a@y.test", "b@y.test", "c@y.test", whole=True))
        assert (len(third.outcomes), third.again, connection.is_worn) == (3, (), True)
        assert [one.addresses for one in mx.envelopes][:2] == [
            ["a@y.test", "b@y.test"],
            ["a@y.test", "c@y.test"],
        ]


@pytest.mark.parametrize(
    ("stage", "reply"), [("MAIL", "550 no"), ("MAIL", "421 bye"), ("RCPT", "421 bye")]
)
async def test_what_ends_a_transaction_counts_for_those_who_were_not_asked(
    connected, message, stage, reply
):
    async with RemoteMx(extensions=["LIMITS RCPTMAX=1"], replies={stage: reply}) as mx:
        result = await (await connected(mx)).transact(message("a@y.test", "b@y.test"))
        assert (len(result.outcomes), result.again) == (2, ())
