"""What Relay itself says by IMAP and POP3, on real sockets: all until a login succeeds."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from relay.base.socket_address import Address
from relay.base.sockets import open_listener
from relay.development.accounts import DevelopmentAccounts
from relay.development.mail_access import server, session
from relay.development.mail_access.dovecot import Dovecot
from relay.development.mail_access.imap_login import login_of, plain_login
from relay.development.mail_access.server import MailAccess
from tests.support.tables import each_row

CAPABILITY = b"CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"
IMAP = b"* OK [%s] Relay\r\n" % CAPABILITY
POP3 = b"+OK Relay\r\n"
WRONG = b" NO [AUTHENTICATIONFAILED] User or password is wrong\r\n"
BAD_IMAP = b" BAD Expected LOGIN, or AUTHENTICATE PLAIN\r\n"
BAD = b"-ERR Expected USER, then PASS\r\n"
PLAIN_MALLORY = b"AG1hbGxvcnkAeA=="  # NUL mallory NUL x


@asynccontextmanager
async def listening(
    folder: Path, protocol: str, *, early: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, int]]:
    """A client of a relay with a token. `early` is sent before the connection is accepted."""

    async def nothing(address: str) -> Path:
        raise AssertionError(f"nobody logs in: {address}")

    access = MailAccess(
        Dovecot("/imap", "/pop3", "2.4"),
        check_login=DevelopmentAccounts(token="secret").by_smtp_login,
        open_mailbox=nothing,
        run=folder,
        max_message_size=1,
    )
    listener = open_listener(Address("127.0.0.1", 0), backlog=10)
    port = listener.address.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(early)
    await writer.drain()
    await access.serve(protocol, listener.sockets, None)
    try:
        yield reader, writer, port
    finally:
        writer.close()
        await access.stop()
        listener.close()


async def said(folder: Path, protocol: str, sent: bytes, **options: Any) -> bytes:
    """All that a client gets for what it sends, until the session has ended."""
    async with listening(folder, protocol, **options) as (reader, writer, _):
        if not options.get("early"):
            greeting = await reader.readline()
            writer.write(sent)
            writer.write_eof()
            return greeting + await reader.read()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        return b""


@each_row(
    "sent, expected",
    [
        (b"a capability\r\n", b"* %s\r\na OK Completed\r\n" % CAPABILITY),
        (
            b'a ID ("name" "x")\r\nb NOOP\r\n',
            b'* ID ("name" "Relay")\r\na OK Completed\r\nb OK Completed\r\n',
        ),
        (b"a LOGOUT\r\nb NOOP\r\n", b"* BYE Logging out\r\na OK Completed\r\n"),
        (b"a LOGIN mallory x\r\n", b"a" + WRONG),
        (b'a LOGIN "mallory" "\\"x\\\\"\r\n', b"a" + WRONG),
        (b"a LOGIN {7}\r\nmallory {1}\r\nx\r\n", b"+ OK\r\n+ OK\r\na" + WRONG),
        (b"a LOGIN {7+}\r\nmallory {1+}\r\nx\r\nb NOOP\r\n", b"a" + WRONG + b"b OK Completed\r\n"),
        (b"a AUTHENTICATE PLAIN %s\r\n" % PLAIN_MALLORY, b"a" + WRONG),
        (b"a AUTHENTICATE PLAIN\r\n%s\r\n" % PLAIN_MALLORY, b"+ \r\na" + WRONG),
        (
            b"a LOGIN u a\r\nb LOGIN u b\r\nc LOGIN u c\r\nd NOOP\r\n",
            b"a%sb%sc%s* BYE Too many failed logins\r\n" % (WRONG, WRONG, WRONG),
        ),
        (
            b"a STARTTLS\r\nb SELECT x\r\nx\r\nc NOOP\r\n",
            b"a%sb%s*%s* BYE Too many unknown commands\r\n" % ((BAD_IMAP,) * 3),
        ),
        (b"a" * 8200, b"* BYE A line is longer than 8192 octets\r\n"),
        (b"a LOGIN {4097+}\r\n", b"* BYE A literal is longer than 4096 octets\r\n"),
        (
            b"a ID {4096+}\r\n%s{0+}\r\n%s{1}\r\n" % ((b"x" * 4096,) * 2),
            b"* BYE A literal is longer than 4096 octets\r\n",
        ),
        (b"a LOGIN \xff x\r\n", b"* BYE Expected UTF-8\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\na LOGIN x secret\r\n", b""),
        (b"host: x\r\na LOGIN x secret\r\n", b""),
    ],
)
async def test_imap_before_the_login(
    sent: bytes, expected: bytes, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_FAILURE_DELAY_S", 0.0)
    assert await said(tmp_path, "imap", sent) == IMAP + expected


@each_row(
    "sent, expected",
    [
        (
            b"CAPA\r\n",
            b"+OK\r\nUSER\r\nTOP\r\nUIDL\r\nPIPELINING\r\nRESP-CODES\r\nAUTH-RESP-CODE\r\n.\r\n",
        ),
        (
            b"user mallory\r\npass x\r\nPASS x\r\n",
            b"+OK\r\n-ERR [AUTH] User or password is wrong\r\n" + BAD,
        ),
        (b"QUIT\r\nCAPA\r\n", b"+OK Logging out\r\n"),
        (b"STLS\r\nSTAT\r\nAPOP x y\r\n", BAD * 3 + b"-ERR Too many unknown commands\r\n"),
        (b"GET / HTTP/1.1\r\n", b""),
    ],
)
async def test_pop3_before_the_login(
    sent: bytes, expected: bytes, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_FAILURE_DELAY_S", 0.0)
    assert await said(tmp_path, "pop3", sent) == POP3 + expected


async def test_a_client_that_speaks_first_gets_nothing(tmp_path: Path) -> None:
    assert await said(tmp_path, "imap", b"", early=b"POST / HTTP/1.1\r\n") == b""


async def test_guesses_of_the_token_are_delayed_and_so_is_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_FAILURE_DELAY_S", 0.0)
    monkeypatch.setattr(session, "_FAILURES_MAX", 100)
    tries = b"".join(b"a LOGIN u %d\r\n" % number for number in range(30))
    answers = await said(tmp_path, "imap", tries + b"b LOGIN u secret\r\n")
    assert b"b NO [UNAVAILABLE] Too many wrong tokens, try again in " in answers


async def test_who_does_not_log_in_is_ended_in_time_and_by_those_who_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SESSIONS_MAX", 1)
    async with listening(tmp_path, "imap") as (first, _, port):
        assert await first.readline() == IMAP
        second, its_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await first.read() == b""
        assert await second.readline() == IMAP
        monkeypatch.setattr(session, "_LOGIN_S", 0.01)
        third, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await third.read() == IMAP + b"* BYE Expected a login within 0.01 seconds\r\n"
        writer.close()
        its_writer.close()


@each_row(
    "parse, text, login",
    [
        (login_of, "u p", ("u", "p")),
        (login_of, '"a \\"b\\\\" ""', ('a "b\\', "")),
        (login_of, "u", None),
        (login_of, "u p q", None),
        (login_of, '"u p', None),
        (plain_login, "AHUAcA==", ("u", "p")),
        (plain_login, "VQB1AHA=", ("u", "p")),
        (plain_login, "eAB1AHA=", None),  # x acts for u
        (plain_login, "AHU=", None),
        (plain_login, "AP8AcA==", None),
        (plain_login, "*", None),
    ],
)
def test_user_and_password(
    parse: Callable[[str], tuple[str, str] | None], text: str, login: tuple[str, str] | None
) -> None:
    assert parse(text) == login
