"""A child process that answers requests: what it may do, and that its input and its time end."""

from pathlib import Path

import pytest
from msgspec import msgpack

from relay.base.child_process import AnsweringProcess
from relay.base.sandbox import available
from relay.transport.checks import check_child
from relay.transport.policy import archive_child
from tests.support.attempting_child import ATTEMPTS, Attempt, Outcome

DENIED, REFUSED = "Permission denied", "Operation not permitted"
IN_THE_SANDBOX = dict.fromkeys(("write", "read", "list"), DENIED)
IN_THE_SANDBOX |= dict.fromkeys(("connect", "unix", "exec", "fork", "signal"), REFUSED)
EVERYWHERE = {"codec": "\u0430", "memory": "no memory"}
MODULE = "tests.support.attempting_child"


@pytest.mark.skipif(bool(available()), reason="the kernel lacks a part of the sandbox")
async def test_it_opens_connects_and_starts_nothing_and_its_cpu_time_ends() -> None:
    child = AnsweringProcess(MODULE)
    try:
        outcomes = {
            name: msgpack.decode(await child.ask(Attempt(name)), type=Outcome).text
            for name in ATTEMPTS.keys() - {"spin"}
        }
        assert outcomes == IN_THE_SANDBOX | EVERYWHERE
        assert child.is_idle
        with pytest.raises(EOFError):
            await child.ask(Attempt("spin", cpu_s=1))
        assert child.how_it_ended() == "it ended with signal 27"
        assert not child.is_idle
    finally:
        child.end()


async def test_one_that_opens_files_may_do_that() -> None:
    child = AnsweringProcess(MODULE, "opens files")
    try:
        await child.started()
        assert msgpack.decode(await child.ask(Attempt("read")), type=Outcome).text == "done"
    finally:
        child.end()


async def test_one_that_cannot_start_says_how_it_ended() -> None:
    child = AnsweringProcess("tests.support.no_such_module")
    try:
        with pytest.raises(OSError, match="did not start: it ended with exit code 1"):
            await child.started()
    finally:
        child.end()


@pytest.mark.skipif(bool(available()), reason="the kernel lacks a part of the sandbox")
@pytest.mark.parametrize("module", [check_child, archive_child])
async def test_those_that_read_what_strangers_send_are_in_the_sandbox(module) -> None:
    child = AnsweringProcess(module.__name__)
    try:
        await child.started()
        process = Path(f"/proc/{child.process.pid}")
        status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert f" {module.MEMORY_BYTES_MAX} " in (process / "limits").read_text()
    finally:
        child.end()
