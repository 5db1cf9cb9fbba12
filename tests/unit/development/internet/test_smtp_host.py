"""A simulated mail host: what its behaviour decides, its limits, and clients that do not behave."""

import asyncio
import contextlib
import ssl

import pytest

from relay.base.clock import SystemClock
from relay.base.shares import Shares
from relay.base.socket_address import Address
from relay.development.internet.behaviour import Action
from relay.development.internet.smtp_host import HostOptions, SmtpHost
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

MESSAGE = b"MAIL FROM:<a@x.test>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\n"


class Scripted:
    """One action for a stage; the others are ordinary."""

    def __init__(self, **actions):
        self.actions = actions
        self.moments = []

    def at(self, moment):
        self.moments.append(moment)
        return self.actions.get(moment.stage, Action())


class HeldClock(ManualClock):
    """Its timers fire only when they are released."""

    def __init__(self):
        super().__init__()
        self.timers = []

    def call_later(self, seconds, callback, *args, slack_s=0.0):
        self.timers.append((seconds, callback, args))
        return super().call_later(1000, callback, *args)


class Client:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def reply(self):
        lines = []
        while not lines or lines[-1][3:4] == "-":
            async with asyncio.timeout(120):
                lines.append((await self.reader.readuntil(b"\r\n")).decode().rstrip())
        return "\n".join(lines)

    async def ask(self, *commands):
        self.writer.write("".join(f"{one}\r\n" for one in commands).encode())
        return [await self.reply() for _ in commands]

    async def rest(self):
        async with asyncio.timeout(120):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def session(behaviour=None, *, clock=None, on_mail=None, greeted=True, **options):
    clock = clock or SystemClock()
    host = SmtpHost(
        "mx.y.test",
        (behaviour or Scripted()).at,
        clock=clock,
        options=HostOptions(**options),
        on_mail=on_mail,
    )
    address = host.listen(Address("127.0.0.1", 0))
    await host.start()
    client = Client(*await asyncio.open_connection(address.host, address.port))
    try:
        if greeted:
            assert await client.reply() == "220 mx.y.test ESMTP"
        yield host, client
    finally:
        client.writer.close()
        await host.stop()
    assert host.open == 0


async def until(condition):
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stage", ["BANNER", "MAIL", "CONTENT", "DOT"])
async def test_a_dropped_connection_ends_without_a_reply(stage):
    async with session(Scripted(**{stage: Action(drop=True)}), greeted=False) as (_, client):
        if stage != "BANNER":
            client.writer.write(MESSAGE)
        said = (await client.rest()).decode().splitlines()
    expected = ["220", "250", "250", "354"][: {"BANNER": 0, "MAIL": 1}.get(stage, 4)]
    assert [one[:3] for one in said] == expected


async def test_a_delay_ends_by_the_clock_and_keeps_what_the_client_sends():
    clock = HeldClock()
    async with session(Scripted(MAIL=Action(delay_s=3600)), clock=clock) as (host, client):
        client.writer.write(MESSAGE[:30])
        await until(lambda: host.delayed)
        client.writer.write(MESSAGE[30:])
        [(seconds, release, args)] = clock.timers
        assert seconds == 3600
        release(*args)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
        assert host.delayed == 0


@pytest.mark.parametrize("action", [Action(stall=True), Action(delay_s=3600)])
async def test_a_session_that_waits_ends_when_its_client_leaves(action):
    behaviour = Scripted(MAIL=action)
    async with session(behaviour, clock=HeldClock()) as (host, client):
        client.writer.write(MESSAGE)
        await until(lambda: behaviour.moments[-1].stage == "MAIL")
        assert host.open == 1
        client.writer.close()
        await until(lambda: host.open == 0)


@pytest.mark.parametrize(
    ("options", "code"),
    [({"size_bytes_max": 150_000}, "552"), ({"memory": Shares("contents", 150_000)}, "452")],
)
async def test_content_is_bounded_and_read_to_its_end(options, code):
    async with session(**options) as (_, client):
        for _ in range(2):
            client.writer.write(MESSAGE.replace(b"..dot", b"x" * 1_000_000))
            assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", code]
        # what was held is free for the next one
        client.writer.write(MESSAGE.replace(b"..dot", b"x" * 100_000))
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]


async def test_recipients_and_sessions_are_bounded():
    async with session(recipients_max=2, sessions_max=1) as (_, client):
        await client.ask("MAIL FROM:<>")
        said = await client.ask(*[f"RCPT TO:<{number}@y.test>" for number in range(3)])
        assert [one[:3] for one in said] == ["250", "250", "452"]
        place = client.writer.get_extra_info("peername")
        other = Client(*await asyncio.open_connection(*place))
        assert await other.rest() == b"421 4.7.0 too many connections\r\n"
        other.writer.close()


@each_row("line", [b"x" * 100_000, b"\xff\xfe\r\nMAIL\r\nRCPT TO\r\nAUTH\r\n" * 99])
async def test_nonsense_ends_in_replies_or_the_session_and_never_in_a_log_line(line, caplog):
    async with session(users={"u": "p"}) as (_, client):
        client.writer.write(line)
        client.writer.write_eof()
        await client.rest()
    assert caplog.records == []


async def test_a_client_that_leaves_before_the_reply_leaves_no_log_line(caplog):
    async def leave(_mail):
        client.writer.transport.abort()  # a reset: it has not read the replies
        for _ in range(10):  # turns of the event loop, until its host has seen it
            await asyncio.sleep(0)

    async with session(on_mail=leave) as (host, client):
        client.writer.transport.pause_reading()
        client.writer.write(MESSAGE)
        await until(lambda: host.open == 0)
    assert caplog.records == []


async def test_a_silent_client_is_closed():
    async with session(idle_s=0.05) as (_, client):
        assert await client.rest() == b""


async def start_tls(client, context):
    assert (await client.ask("EHLO r.test"))[0].endswith("250 STARTTLS")
    assert await client.ask("STARTTLS") == ["220 2.0.0 go"]
    await client.writer.start_tls(context, server_hostname="mx.y.test")


async def test_starttls_has_the_good_certificate_or_the_bad_one(authority):
    behaviour, mails = Scripted(), []

    async def keep(mail):
        mails.append(mail)

    context = ssl.create_default_context(cafile=authority.certificate)
    offered = {
        "tls": authority.issue("DNS:mx.y.test").server_context(),
        "bad_tls": authority.issue("DNS:other.test").server_context(),
    }
    async with session(behaviour, on_mail=keep, **offered) as (_, client):
        await start_tls(client, context)
        [hello] = await client.ask("EHLO r.test")
        assert "STARTTLS" not in hello
        client.writer.write(MESSAGE)
        assert [(await client.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
        assert mails[0].tls == "TLSv1.3"
        assert behaviour.moments[-1].tls
    behaviour.actions = {"STARTTLS": Action(bad_certificate=True)}
    async with session(behaviour, **offered) as (_, client):
        with pytest.raises(ssl.SSLCertVerificationError):
            await start_tls(client, context)


async def test_what_is_sent_ahead_of_the_handshake_is_no_command(authority):
    heard = []
    tls = authority.issue("DNS:mx.y.test").server_context()
    async with session(tls=tls) as (host, client):
        host.heard = heard.append
        client.writer.write(b"STARTTLS\r\nMAIL FROM:<evil@x.test>\r\n")
        assert await client.reply() == "220 2.0.0 go"
        context = ssl.create_default_context(cafile=authority.certificate)
        await client.writer.start_tls(context, server_hostname="mx.y.test")
        await client.ask("NOOP")
    assert heard == ["STARTTLS", "NOOP"]
