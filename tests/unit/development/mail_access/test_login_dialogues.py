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
from tests.support.tables import each_row, rows_of

SHORT = {
    "imap": "* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN] Relay~",
    "wrong": "NO [AUTHENTICATIONFAILED] User or password is wrong~",
    "bad": "BAD Expected LOGIN, or AUTHENTICATE PLAIN~",
    "err": "-ERR Expected USER, then PASS~",
    "long": "x" * 4096,
}
# What is sent, and the answers: "~" ends a line. AG1hbGxvcnkAeA== is NUL mallory NUL x.
DIALOGUES = r"""
a capability~ | %(imap)s* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN~a OK Completed~
a ID ("name" "x")~b NOOP~ | %(imap)s* ID ("name" "Relay")~a OK Completed~b OK Completed~
a LOGIN u secret~ | %(imap)sa NO [UNAVAILABLE] The mailbox cannot be opened now~
a LOGOUT~b NOOP~ | %(imap)s* BYE Logging out~a OK Completed~
a LOGIN mallory x~ | %(imap)sa %(wrong)s
a LOGIN "mallory" "\"x\\"~ | %(imap)sa %(wrong)s
a LOGIN {7}~mallory {1}~x~ | %(imap)s+ OK~+ OK~a %(wrong)s
a LOGIN {7+}~mallory {1+}~x~b NOOP~ | %(imap)sa %(wrong)sb OK Completed~
a AUTHENTICATE PLAIN AG1hbGxvcnkAeA==~ | %(imap)sa %(wrong)s
a AUTHENTICATE PLAIN~AG1hbGxvcnkAeA==~ | %(imap)s+ ~a %(wrong)s
a LOGIN u a~b LOGIN u b~c LOGIN u c~d NOOP~ | %(imap)sa %(wrong)sb %(wrong)sc %(wrong)s* BYE Too many failed logins~
a STARTTLS~b SELECT x~x~c NOOP~ | %(imap)sa %(bad)sb %(bad)s* %(bad)s* BYE Too many unknown commands~
%(long)s%(long)sx | %(imap)s* BYE A line is longer than 8192 octets~
a LOGIN {4097+}~ | %(imap)s* BYE A literal is longer than 4096 octets~
a ID {4096+}~%(long)s{0+}~%(long)s{1}~ | %(imap)s* BYE A literal is longer than 4096 octets~
a LOGIN ÿ x~ | %(imap)s* BYE Expected UTF-8~
POST / HTTP/1.1~Host: x~~a LOGIN x secret~ | %(imap)s
host: x~a LOGIN x secret~ | %(imap)s
CAPA~ | +OK Relay~+OK~USER~TOP~UIDL~PIPELINING~RESP-CODES~AUTH-RESP-CODE~.~
user mallory~pass x~PASS x~ | +OK Relay~+OK~-ERR [AUTH] User or password is wrong~%(err)s
QUIT~CAPA~ | +OK Relay~+OK Logging out~
STLS~STAT~APOP x y~ | +OK Relay~%(err)s%(err)s%(err)s-ERR Too many unknown commands~
GET / HTTP/1.1~ | +OK Relay~
"""


@asynccontextmanager
async def listening(
    folder: Path, protocol: str, *, early: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, int]]:
    """A client of a relay with a token. `early` is sent before the connection is accepted."""

    async def nothing(address: str) -> Path:
        assert access.is_open(address)
        raise OSError("no mailbox")

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
    await access.serve(protocol, listener, None)
    try:
        yield reader, writer, port
    finally:
        writer.close()
        await access.stop()


async def said(folder: Path, protocol: str, sent: bytes) -> bytes:
    """All that a client gets for what it sends before the greeting, until the session has ended."""
    async with listening(folder, protocol, early=sent) as (reader, writer, _):
        writer.write_eof()
        return await reader.read()


@each_row("sent, expected", rows_of(DIALOGUES % SHORT))
async def test_before_the_login(
    sent: str, expected: str, *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_FAILURE_DELAY_S", 0.0)
    protocol = "imap" if expected.startswith("*") else "pop3"
    octets = sent.replace("~", "\r\n").replace("\\xff", "\xff").encode("latin-1")
    answers = await said(tmp_path, protocol, octets)
    assert answers.decode().replace("\r\n", "~") == expected


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
        greeting = await first.readline()
        second, its_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await first.read() == b""
        assert await second.readline() == greeting
        monkeypatch.setattr(session, "_LOGIN_S", 0.01)
        third, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await third.read() == greeting + b"* BYE Expected a login within 0.01 seconds\r\n"
        writer.close()
        its_writer.close()


@each_row(
    "parse, text, login",
    [
        (login_of, '"a \\"b\\\\" ""', ('a "b\\', "")),
        (login_of, "u p q", None),
        (login_of, '"u p', None),
        (plain_login, "VQB1AHA=", ("u", "p")),
        (plain_login, "eAB1AHA=", None),  # x acts for u
        (plain_login, "*", None),
    ],
)
def test_user_and_password(parse: Callable[[str], Any], text: str, login: Any) -> None:
    assert parse(text) == login
