"""The process that serves a session: what it gets, its limits, and its end."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relay.development.mail_access import session
from relay.development.mail_access.dovecot import launcher
from relay.development.mail_access.imap_login import ImapLogin
from relay.store.mailbox.maildir import list_names

GREETING = r"printf '* PREAUTH [CAPABILITY x] hello\r\n'; "


@asynccontextmanager
async def client() -> AsyncIterator[tuple[ImapLogin, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A dialogue, and its client."""
    ends = [await asyncio.open_unix_connection(sock=sock) for sock in socket.socketpair()]
    try:
        yield ImapLogin(*ends[0]), *ends[1]
    finally:
        for _, writer in ends:
            writer.close()


async def served(mailbox: Path, script: str, sent: bytes) -> tuple[bytes, str]:
    """What a client gets from a process for what it sends, and the error of the process."""
    (mailbox / ".Sent" / "tmp").mkdir(parents=True)
    async with client() as (dialogue, reader, writer):
        writer.write(sent)
        writer.write_eof()
        command = [*launcher(1000), "sh", "-c", script]
        error = await session.serve(dialogue, command, mailbox=mailbox, user="a@b.test")
        dialogue.writer.close()
        return await reader.read(), error


async def test_it_gets_the_octets_behind_the_login_and_only_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "x")
    said = await served(tmp_path, f"{GREETING} env | grep -v ^PWD= | sort; cat", b"a SELECT x\r\n")
    expected = f"* OK [CAPABILITY x] hello\r\nHOME={tmp_path}\nUSER=a@b.test\na SELECT x\r\n"
    assert said == (expected.encode(), "")


async def test_a_file_that_gets_too_large_is_its_error_and_is_removed(tmp_path: Path) -> None:
    others, here = "9.M1P$$.elsewhere 9.M1P1$$.$(hostname) 9.M1P$$", "9.M1P$$.$(hostname)"
    script = f"cd $HOME/.Sent/tmp; touch {others}; head -c 9999 /dev/zero >{here}; ls; cat"
    said = await served(tmp_path, GREETING + script, b"")
    assert "File too large" in said[1]
    kept = set(said[0].decode().split("\n")[1:-1])
    assert len(kept - set(list_names(tmp_path / ".Sent" / "tmp"))) == 1


async def test_it_is_killed_if_it_does_not_greet_or_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_END_S", 0.05)
    monkeypatch.setattr(session, "_GREETING_S", 0.05)
    with pytest.raises(OSError, match=r"^no$"):
        await served(tmp_path / "1", "echo no >&2; exec sleep 600", b"")
    assert (await served(tmp_path / "2", f"{GREETING} exec sleep 600", b""))[1] == ""


async def test_what_it_says_to_a_client_that_has_left_is_lost(tmp_path: Path) -> None:
    script, faults = f"{GREETING} cat; for n in 1 2 3; do echo bye; sleep 0.05; done", []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with client() as (dialogue, _, writer):
        writer.transport.abort()
        command = ["sh", "-c", script]
        assert await session.serve(dialogue, command, mailbox=tmp_path, user="a@b.test") == ""
        dialogue.say("* BYE")
    gc.collect()
    assert faults == []


async def test_a_client_without_a_line_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_IDLE_S", 0.05)
    async with client() as (dialogue, _, writer):
        writer.write(b"a")
        command = ["sh", "-c", f"{GREETING} cat"]
        assert await session.serve(dialogue, command, mailbox=tmp_path, user="a@b.test") == ""
