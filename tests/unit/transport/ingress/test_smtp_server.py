"""SMTP sessions over sockets: time-outs, limits, TLS, shutdown, connections that break."""

import asyncio
import base64
import contextlib
import gc
import ssl
import stat
import weakref

import pytest

from relay.base.accounts.account import Account, LoginDelayedError
from relay.base.accounts.accounts_file import load_accounts
from relay.base.pressure import PressureLevel, PressureReason, PressureState
from relay.base.socket_address import Address
from relay.transport.ingress.listener_role import PICKUP
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.smtp_session import SmtpSession
from tests.support.events import until
from tests.support.ingress import OPENING, Client, inside
from tests.support.logs import capture_logs

MESSAGE = "Subject: hello\r\n\r\ntext\r\n."


async def test_a_disconnect_during_the_commit_keeps_the_mail(relay, listening):
    relay.spool.gate = asyncio.Event()
    server = await listening()
    client = await Client.connect(server.address)
    await client.open_transaction()
    client.writer.write(MESSAGE.encode() + b"\r\n")
    await relay.spool.committing.wait()
    client.reset()
    await until(lambda: not server.sessions)
    assert relay.spool.accepted == []
    relay.spool.gate.set()
    await server.drain(1)
    assert len(relay.spool.accepted) == 1


async def test_a_half_closed_client_gets_every_reply(relay, listening):
    client = await Client.connect((await listening()).address)
    await client.reply()
    lines = [*OPENING, MESSAGE, "NOOP"]
    client.writer.write("".join(f"{line}\r\n" for line in lines).encode())
    client.writer.write_eof()
    said = (await asyncio.wait_for(client.reader.read(), 120)).splitlines()
    assert [line[:3] for line in said[-6:]] == [b"250", b"250", b"250", b"354", b"250", b"250"]
    assert len(relay.spool.accepted) == 1


async def test_an_idle_client_gets_421(listening):
    client = await Client.connect((await listening(timeout=0.1)).address)
    await client.reply()
    assert await client.reply() == "421 4.4.2 Time is up, closing the connection"
    assert await client.reply() == ""


async def test_a_slow_upload_does_not_time_out(relay, listening):
    client = await Client.connect((await listening(timeout=2)).address)
    await client.open_transaction()
    for line in (b"Subject: slow\r\n", b"\r\n", *[b"text\r\n"] * 4):
        client.writer.write(line)
        await asyncio.sleep(0.5)  # more than two seconds in total
    assert (await client.say(".")).startswith("250 2.0.0 ")


async def test_a_busy_session_ends_after_its_maximum_time(listening):
    limits = SessionLimits(session_s=0.2, last_reply_s=0.2)
    client = await Client.connect((await listening(timeout=0.1, limits=limits)).address)
    await client.reply()
    async with asyncio.timeout(120):
        while (said := await client.say("NOOP")) == "250 2.0.0 Ok":
            await asyncio.sleep(0.01)
    assert said in ("421 4.4.2 Time is up, closing the connection", "")


async def test_a_client_that_does_not_read_is_disconnected(listening):
    """Until then its commands wait: few of their replies are kept for it."""
    server = await listening(trusted_networks=("127.0.0.0/8",), timeout=0.2)
    client = await Client.connect(server.address, limit=100)
    await until(lambda: server.sessions)
    (session,) = inside(server).shared.places.sessions
    await client.reply()
    kept_bytes = []

    def has_ended() -> bool:
        if server.sessions:
            kept_bytes.append(session.transport.get_write_buffer_size())
        return not server.sessions

    client.writer.write(b"EHLO client.test\r\n" * 100_000)
    await until(has_ended)
    assert 0 < max(kept_bytes) < 200_000
    await until(lambda: not vars(session))  # its memory is free without the garbage collection
    client.writer.transport.abort()


async def test_shutdown_closes_idle_sessions_and_finishes_transactions(relay, listening):
    server = await listening()
    idle, busy = await Client.connect(server.address), await Client.connect(server.address)
    await idle.reply()
    await busy.open_transaction()
    draining = asyncio.ensure_future(server.drain(5))
    assert (await idle.reply()).startswith("421 4.3.2 ")
    assert await idle.reply() == ""
    assert (await busy.say(MESSAGE)).startswith("250 2.0.0 ")
    assert (await busy.reply()).startswith("421 4.3.2 ")
    await asyncio.wait_for(draining, 120)
    assert len(relay.spool.accepted) == 1
    with pytest.raises(OSError):
        await Client.connect(server.address)


async def test_the_memory_budget_is_checked_at_mail_and_during_data(listening):
    limits = SessionLimits(buffered_bytes=7000)
    server = await listening(limits=limits, max_message_size=4096)
    first, second, third, again = [
        await Client.connect(server.address, local_addr=(f"127.0.0.{n}", 0)) for n in (2, 3, 4, 2)
    ]
    for client in (first, second):
        await client.open_transaction()
    for client in (first, second):
        client.writer.write(b"x" * 2000 + b"\r\n")
    await until(lambda: inside(server).shared.listener.budget.taken > 4000)
    for client in (third, again):
        assert (await client.reply())[:3] == "220"
        await client.say("EHLO client.test")
    assert (await third.say("MAIL FROM:<> SIZE=4000")).startswith("452 4.3.1 ")
    assert (await again.say("MAIL FROM:<> SIZE=1000")).startswith("452 4.3.1 ")
    assert (await first.say("."))[:3] == "250"
    assert (await third.say("MAIL FROM:<> SIZE=4000"))[:3] == "250"


async def test_a_message_uses_the_budget_until_it_is_accepted(relay, listening):
    relay.spool.gate = asyncio.Event()
    server = await listening(limits=SessionLimits(buffered_bytes=4096), max_message_size=2048)
    client = await Client.connect(server.address)
    await client.open_transaction()
    client.writer.write(b"x" * 900 + b"\r\n" + b"x" * 900 + b"\r\n.\r\n")
    await relay.spool.committing.wait()
    client.reset()
    await until(lambda: not server.sessions)
    budget = inside(server).shared.listener.budget
    assert not budget.has_room(None, 4096)
    relay.spool.gate.set()
    await server.drain(1)
    assert budget.has_room(None, 4096)
    assert not budget.has_room(None, 4097)


async def test_the_pickup_socket_accepts_all_recipients_and_bounces_failures(
    relay, listening, tmp_path
):
    path = tmp_path / "pickup.sock"
    server = await listening(listener_role=PICKUP, listen=Address(path=str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    queue_ids = []
    for _ in range(2):
        client = await Client.connect(server.address)
        await client.reply()
        assert "AUTH" not in await client.say("EHLO relay")
        await client.say("MAIL FROM:<alice@example.test> ENVID=abc.1")
        assert (await client.say("RCPT TO:<nobody@example.test>"))[:3] == "250"
        assert (await client.say("RCPT TO:<x@other.test>"))[:3] == "250"
        await client.say("DATA")
        queue_ids.append((await client.say(MESSAGE)).rpartition(" ")[2])
    assert queue_ids[0] == queue_ids[1]
    (message,) = relay.spool.accepted
    assert (message.facts.submission_id, message.facts.account) == ("abc.1", "alice@example.test")
    assert [each.status for each in message.final_recipients] == ["5.1.1"]
    assert [each.entries[0].recipients[0].path.address for each in relay.spool.reports] == [
        "alice@example.test"
    ]


async def test_an_unknown_host_is_an_error_at_start(relay):
    with pytest.raises(OSError, match=r"cannot listen on nowhere\.invalid:25: "):
        await relay.server(listen=Address("nowhere.invalid", 25)).start()


async def test_only_a_unix_socket_counts_as_loopback(relay, listening, tmp_path):
    networks = ("127.0.0.0/8",)
    by_tcp = await listening(trusted_networks=networks)
    by_path = await listening(listen=Address(path=str(tmp_path / "s")), trusted_networks=networks)
    # uvloop has no peer name after a disconnect
    assert [server._owner("").is_trusted for server in (by_tcp, by_path)] == [False, True]


async def test_a_client_that_leaves_during_the_handshake_leaves_nothing(listening, certificate):
    server = await listening(tls=certificate, role="submissions")
    client = await Client.connect(server.address)
    await until(lambda: inside(server)._beginning)
    client.reset()
    await until(lambda: not inside(server)._beginning)
    client = await Client.connect((server := await listening(tls=certificate)).address)
    await client.reply()
    await client.say_all("EHLO client.test", "STARTTLS")
    client.reset()
    await until(lambda: not server.sessions)


async def test_handshakes_are_limited_as_sessions_are(listening, certificate):
    server = await listening(tls=certificate, role="submissions", max_sessions=2)
    waiting = [await Client.connect(server.address) for _ in range(2)]
    further = await Client.connect(server.address)
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(further.reader.read(), 120) == b""
    assert len(waiting) == 2


async def test_a_closed_session_is_freed(listening):
    server = await listening(limits=SessionLimits(last_reply_s=60))
    client = await Client.connect(server.address)
    await client.reply()
    (session,) = (weakref.ref(one) for one in inside(server).shared.places.sessions)
    assert (await client.say("QUIT")).startswith("221")
    assert await client.reply() == ""
    client.writer.close()
    async with asyncio.timeout(120):
        while session() is not None:
            await asyncio.sleep(0.01)
            gc.collect()


ACCOUNTS = """\
[[account]]
address = "alice@example.test"
password = "plain:right"
"""


async def log_in(client: Client, password: str, user: str = "alice@example.test") -> str:
    await client.reply()
    await client.say("EHLO client.test")
    credentials = base64.b64encode(f"\0{user}\0{password}".encode()).decode()
    return await client.say(f"AUTH PLAIN {credentials}")


async def test_wrong_passwords_from_one_address_do_not_block_another(relay, listening, tmp_path):
    file = tmp_path / "accounts.toml"
    file.write_text(ACCOUNTS)
    file.chmod(0o600)
    relay.accounts = load_accounts(file, ["example.test"], clock=relay.clock, environ={})
    address = (await listening()).address
    untrusted = {"local_addr": ("127.0.0.2", 0)}
    with capture_logs() as lines:
        for number in range(3):
            client = await Client.connect(address, **untrusted)
            assert (await log_in(client, f"guess {number}")).startswith("535 5.7.8 ")
        reply = await log_in(await Client.connect(address, **untrusted), "right")
    assert reply == "454 4.7.0 Too many failed logins, try again in 1 second"
    found = [
        (one["client"], one["user"], one["reply"][:3])
        for one in lines
        if one["event"] == "rejected"
    ]
    assert found == [("127.0.0.2", "alice@example.test", code) for code in ("535",) * 3 + ("454",)]
    assert (await log_in(await Client.connect(address), "right")).startswith("235 ")
    relay.clock.advance(1.1)
    client = await Client.connect(address, **untrusted)
    assert (await log_in(client, "right")).startswith("235 ")
    relay.accounts.close()


async def test_a_password_that_was_not_checked_is_no_failed_login(relay, listening):
    async def wait_in_vain(_user, _password, *, client):
        raise LoginDelayedError("Too many logins at once", 1.0)

    relay.accounts.by_smtp_login = wait_in_vain
    client = await Client.connect((await listening()).address)
    busy = "454 4.7.0 Too many logins at once, try again in 1 second"
    assert await log_in(client, "right") == busy
    for _ in range(SessionLimits().auth_failures):
        assert await client.say("AUTH PLAIN AGFsaWNlAHJpZ2h0") == busy


async def test_mail_with_its_final_dot_is_answered_before_an_ended_login(relay, listening):
    relay.spool.gate = asyncio.Event()
    client = await Client.connect((await listening()).address)
    assert (await log_in(client, "alice")).startswith("235 ")
    for line in OPENING[1:]:
        await client.say(line)
    client.writer.write(MESSAGE.encode() + b"\r\n")
    await relay.spool.committing.wait()
    changed = Account("alice@example.test", credentials=b"another password")
    relay.accounts.by_address = lambda _address: changed
    relay.spool.gate.set()
    assert (await client.reply()).startswith("250 2.0.0 ")
    assert (await client.say(OPENING[1])).startswith(
        "421 4.7.0 The account or its password was changed"
    )
    assert await client.reply() == ""
    assert len(relay.spool.accepted) == 1


@pytest.mark.parametrize(
    ("declared", "reply"), [("SIZE=1000", "250"), ("SIZE=1001", "452"), ("", "250")]
)
async def test_the_declared_size_counts_against_the_free_space(relay, listening, declared, reply):
    relay.pressure.state = PressureState(room_bytes=1000)
    client = await Client.connect((await listening()).address)
    await client.reply()
    lines = OPENING[0], f"{OPENING[1]} {declared}".rstrip()
    assert (await client.say_all(*lines))[-1].startswith(reply)


async def test_neither_pickup_nor_an_open_transaction_is_refused_because_of_pressure(
    relay, listening, tmp_path
):
    client = await Client.connect((await listening()).address)
    await client.reply()
    await client.say_all(*OPENING[:3])
    refuse = {PressureReason.SPOOL_DISK: PressureLevel.REFUSE}
    relay.pressure.state = PressureState(refuse, room_bytes=0)
    assert (await client.say_all("DATA", MESSAGE))[-1].startswith("250 2.0.0 ")
    pickup = await listening(listener_role=PICKUP, listen=Address(path=str(tmp_path / "s")))
    client = await Client.connect(pickup.address)
    assert (await client.reply()).startswith("220 ")
    said = await client.say_all(OPENING[0], f"{OPENING[1]} SIZE=1000", *OPENING[2:], MESSAGE)
    assert said[-1].startswith("250 2.0.0 ")


async def test_a_stop_ends_transactions_after_the_grace_time(listening):
    server = await listening()
    client = await Client.connect(server.address)
    await client.open_transaction()
    await asyncio.wait_for(server.drain(0.05), 120)
    assert (await client.reply()).startswith("421 4.3.2 ")
    assert server.sessions == 0


async def test_what_is_sent_in_clear_late_after_starttls_is_discarded(
    listening, certificate, monkeypatch
):
    """It arrives while the 220 is written, because the client is slow to read."""
    flush, discarded = SmtpSession._flush, asyncio.Event()

    async def slow_flush(session):
        is_last_in_clear = b"220 2.0.0" in b"".join(session._replies)
        await flush(session)
        async with asyncio.timeout(120):
            while is_last_in_clear and session._input.is_empty:
                await asyncio.sleep(0)
        if is_last_in_clear:
            discarded.set()

    monkeypatch.setattr(SmtpSession, "_flush", slow_flush)
    client = await Client.connect((await listening(tls=certificate)).address)
    await client.reply()
    await client.say_all("EHLO client.test", "STARTTLS")
    client.writer.write(b"NOOP\r\n")
    await asyncio.wait_for(discarded.wait(), 120)
    context = ssl.create_default_context(cafile=certificate.certificate)
    await client.writer.start_tls(context, server_hostname="localhost")
    assert await client.say("EHLO client.test") == "250 DSN"


async def test_a_reply_with_a_text_of_the_client_has_at_most_512_octets(listening):
    """RFC 5321 4.5.3.1.5: a letter of the client may be ten octets of the reply."""
    client = await Client.connect((await listening()).address)
    await log_in(client, "alice")
    letters = "\N{MATHEMATICAL SANS-SERIF BOLD SMALL A}" * 60
    replies = await client.say_all(
        f"MAIL FROM:<{letters}",
        f"MAIL FROM:<x@{letters[:40]}._{'c' * 50}.test> SMTPUTF8",
        f"MAIL FROM:<x@a.test> {letters}",
        f"MAIL FROM:<{letters[:15]}@a.test> SMTPUTF8",
        "MAIL FROM:<alice@example.test> SMTPUTF8",
        f"RCPT TO:<{letters}",
        f"RCPT TO:<SRS0={letters[:50]}@example.test>",
    )
    for author in (f"x@{letters * 2}.test", f'"{letters * 2}'):
        await client.say_all("RCPT TO:<bob@example.test>", "DATA")
        replies.append(await client.say(f"From: {author}\r\n\r\nx\r\n."))
        await client.say("MAIL FROM:<alice@example.test>")
    expected = ["501", "501", "501", "553", "250", "501", "550", "553", "553"]
    assert [reply[:3] for reply in replies] == expected
    assert max(map(len, replies)) <= 510


async def test_the_user_name_in_the_log_is_bounded(listening):
    client = await Client.connect((await listening()).address)
    with capture_logs() as lines:
        assert (await log_in(client, "x", user="a\r\nb" * 500)).startswith("535 ")
    (user,) = [one["user"] for one in lines if "user" in one]
    assert user == ("a  b" * 500)[:100]
