"""A Dovecot that misbehaves: logins are put off, with the cause; what is open at once has a limit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.base.accounts.account import LoginDelayedError
from relay.base.accounts.password_schemes import parse_password
from relay.base.accounts.passwords import QUESTIONS_MAX, DovecotPassword, PasswordChecker
from tests.support.manual_clock import ManualClock

HELLO = b"VERSION\t1\t2\nMECH\tPLAIN\tplaintext\nSPID\t7\nCUID\t1\nCOOKIE\tx\nDONE\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def dovecot(folder: Path, serve: Serve) -> AsyncIterator[str]:
    path = str(folder / "auth-client")
    async with await asyncio.start_unix_server(serve, path):
        yield path


def saying(*parts: bytes) -> Serve:
    """Say the first part at once, each other one after a line of the client; then hang up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number, part in enumerate(parts):
            while number and not (await reader.readline()).startswith(b"AUTH"):
                pass
            writer.write(part)
        await writer.drain()
        writer.close()

    return serve


async def login(checker: PasswordChecker, path: str, *, client: str = "192.0.2.1") -> bool:
    stored = DovecotPassword(path, "eve@example.test", client)
    return await checker.check("eve@example.test", stored, "secret", client=client)


@pytest.mark.parametrize(
    ("parts", "is_right"),
    [
        ((HELLO, b"OK\t1\tuser=eve@example.test\tx=y\n"), True),
        ((HELLO, b"OK\t1\tuser=Eve@Example.test\n"), True),
        ((HELLO, b"OK\t1\tuser=alice@example.test\n"), False),
        ((HELLO, b"OK\t1\n"), False),
        ((HELLO, b"FAIL\t1\tuser=eve@example.test\treason=no\n"), False),
        ((HELLO, b"FAIL\t1\tuser=eve@example.test\tcode=user_disabled\n"), False),
        ((HELLO.replace(b"1\t2", b"1\t9"), b"NEW\twords\nOK\t1\tuser=eve@example.test\n"), True),
    ],
)
async def test_an_answer(
    checker: PasswordChecker, short_path: Path, parts: tuple[bytes, ...], is_right: bool
) -> None:
    async with dovecot(short_path, saying(*parts)) as path:
        assert await login(checker, path) is is_right


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ((b"",), "auth-client: "),  # closed, or reset: it has not read what was sent
        (
            (HELLO.replace(b"VERSION\t1", b"VERSION\t2"),),
            "found version ['2'] of the protocol, expected 1",
        ),
        ((HELLO.replace(b"PLAIN", b"CRAM-MD5"),), "does not offer PLAIN"),
        ((b"MECH\tPLAIN\n" * 200,), "more than 100 lines"),
        ((b"x" * 100_000,), "limit"),
        ((b"\xff\n",), "utf-8"),
        ((HELLO, b""), "without an answer"),
        ((HELLO, b"OK\t1\tuser=eve@example.test"), "without an answer"),  # no whole line
        ((HELLO, b"CONT\t1\t\n"), "without an answer"),
        ((HELLO, b"FAIL\t1\tuser=eve@example.test\ttemp\n"), "temporary failure"),
        ((HELLO, b"FAIL\t1\tuser=eve@example.test\tcode=temp_fail\n"), "temporary failure"),
    ],
)
async def test_what_says_nothing_of_the_password(
    checker: PasswordChecker, short_path: Path, parts: tuple[bytes, ...], told: str
) -> None:
    async with dovecot(short_path, saying(*parts)) as path:
        for _ in range(5):  # none of them is a failed login
            with pytest.raises(LoginDelayedError, match="could not be checked") as delayed:
                await login(checker, path)
            assert told in str(delayed.value.__cause__)
            assert path in str(delayed.value.__cause__)


async def test_a_dovecot_that_is_silent(
    checker: PasswordChecker, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.base.accounts.passwords._ANSWER_S", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with dovecot(short_path, serve) as path:
        with pytest.raises(LoginDelayedError) as delayed:
            await login(checker, path)
    assert "no answer of Dovecot in 0.05 s" in str(delayed.value.__cause__)


async def test_so_many_questions_are_open_at_once(
    checker: PasswordChecker, clock: ManualClock, short_path: Path
) -> None:
    """Each has a connection. Half of them are for who has logged in before; who has an account here
    waits for none.
    """
    asked, may_answer = asyncio.Semaphore(0), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.release()
        await may_answer.wait()
        await saying(HELLO, b"OK\t1\tuser=eve@example.test\n")(reader, writer)

    async with dovecot(short_path, serve) as path:

        def ask(number: int) -> asyncio.Task[bool]:
            client = f"192.0.2.{number}"
            stored = DovecotPassword(path, "eve@example.test", client)
            check = checker.check(f"u{number}@example.test", stored, "secret", client=client)
            return asyncio.create_task(check)

        async def are_asked(count: int) -> None:
            for _ in range(count):
                await asyncio.wait_for(asked.acquire(), 120)

        may_answer.set()
        assert await ask(0) is True
        await are_asked(1)
        clock.advance(61)  # its password is not remembered any more
        may_answer.clear()
        strangers = [ask(number) for number in range(1, QUESTIONS_MAX)]
        try:
            await are_asked(QUESTIONS_MAX // 2)
            known = ask(0)
            await are_asked(1)
            own = parse_password("plain:secret")
            assert await checker.check("a@example.test", own, "secret", client="192.0.2.1") is True
            assert asked.locked()  # nobody else has asked
        finally:
            may_answer.set()
        assert await asyncio.gather(known, *strangers) == [True] * QUESTIONS_MAX
