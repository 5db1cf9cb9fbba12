"""A child process of this program with a socket as its input and output: start it, ask it, end it.

An AnsweringProcess gets requests and gives answers, as Structs in MessagePack with their lengths
before them; a first, empty answer says that it is ready. relay/base/child_main.py is its main.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, finalize

from msgspec import Struct, msgpack

if TYPE_CHECKING:
    import asyncio

LENGTH_BYTES = 4
_READ_BYTES = 1 << 20
_END_S = 0.1  # between closing its files and its end
_STATUS_BYTES = 8192
_encoder = msgpack.Encoder(enc_hook=os.fsencode)  # a Path as its octets


class ChildRequest(Struct, frozen=True, kw_only=True):
    """What a child process is asked. An answer that takes more CPU time ends the process."""

    cpu_s: int = 2


class ChildTask(Struct, frozen=True):
    """What a child process does: it answers requests of a kind, in the sandbox unless it
    `opens_files`. `answer` gets a request, and the descriptor that was sent with it, if any.
    """

    kind: type[ChildRequest]
    answer: Callable[..., Struct]
    memory_bytes: int
    opens_files: bool = False


def framed(message: Struct) -> bytearray:
    """Return a Struct as it is sent."""
    frame = bytearray(LENGTH_BYTES)
    _encoder.encode_into(message, frame, LENGTH_BYTES)
    frame[:LENGTH_BYTES] = (len(frame) - LENGTH_BYTES).to_bytes(LENGTH_BYTES)
    return frame


class ChildProcess:
    """A process that runs a module of this program; it shares only `socket` with this process."""

    def __init__(
        self, module: str, *words: str, descriptors: Sequence[int] = (), has_log: bool = False
    ) -> None:
        """Start the process. Raises OSError.

        It inherits `descriptors` too, and with `has_log` the standard error of this process.
        """
        self.socket, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-P", "-m", module, *words],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=None if has_log else subprocess.DEVNULL,
                pass_fds=descriptors,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C must not reach it: it ends when its input ends
            )
        except OSError:
            self.socket.close()
            raise
        finally:
            theirs.close()
        with suppress(OSError):  # only Linux has it
            # opened now, since later it is hidden in a unit with ProtectProc=
            self._status = os.open(f"/proc/{self.process.pid}/status", os.O_RDONLY)
            finalize(self, os.close, self._status).atexit = False
            _children[self.process.pid] = self

    def status(self) -> bytes:
        """Return what the kernel says about it (proc(5)), b"" if it has ended."""
        with suppress(OSError):
            return os.pread(self._status, _STATUS_BYTES, 0)
        return b""

    def has_ended(self, wait_s: float = 0) -> bool:
        """Return whether it has ended; wait up to `wait_s` for that."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        return self.process.returncode is not None

    def how_it_ended(self) -> str:
        """Return the signal or exit code with which it ended, after it has closed its files."""
        self.has_ended(_END_S)
        code = self.process.returncode
        if code is None:
            return "it ended"
        return f"it ended with signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def kill(self) -> None:
        """Kill the process, and close the socket."""
        self.process.kill()
        self.socket.close()

    def end(self) -> None:
        """Kill the process, and reap it."""
        self.kill()
        self.process.wait()


_children = WeakValueDictionary[int, ChildProcess]()  # by their process ids


def status_of_children() -> list[bytes]:
    """Return the status of each child process."""
    children = [reference() for reference in _children.valuerefs()]  # threads start some, too
    return [child.status() for child in children if child is not None]


class AnsweringProcess(ChildProcess):
    """A process that answers requests, one at a time: task() of a module says how."""

    def __init__(self, module: str, *words: str) -> None:
        """Start the process. Raises OSError."""
        super().__init__("relay.base.child_main", module, *words)
        self._is_idle = False
        self._reader: asyncio.StreamReader | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it has started, and answered the last request."""
        return self._is_idle and self._reader is not None and not self._reader.at_eof()

    async def started(self) -> None:
        """Wait until it is idle. Raises OSError."""
        import asyncio  # noqa: PLC0415 - commands without an event loop start faster

        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self.socket, limit=_READ_BYTES
        )
        try:
            await self._answer()
        except EOFError:
            raise OSError(f"the process did not start: {self.how_it_ended()}") from None

    async def ask(self, request: ChildRequest) -> bytes:
        """Return the answer to a request, after the start. Raises OSError, EOFError."""
        if self._reader is None:
            await self.started()
        self._is_idle = False
        self._writer.write(framed(request))
        return await self._answer()

    async def _answer(self) -> bytes:
        assert self._reader is not None
        length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
        answer = await self._reader.readexactly(length)
        self._is_idle = True
        return answer

    def kill(self) -> None:
        """Kill it, and close the socket."""
        self._is_idle = False
        if self._reader is not None:
            self._writer.transport.abort()
            self.process.kill()
        else:
            super().kill()
