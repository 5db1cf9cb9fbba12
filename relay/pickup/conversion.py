"""Conversion in processes that can be killed; only what is short text is converted in this one.

On the path: handling asks for a note's MIME, step 3.
Holds: nothing is parsed in this process, and no thread is used. A conversion ends in its time, or
its process does. An account has at most one note at once in the processes that all share.
Fails: ConversionError for a message that cannot be sent; UnfinishedError for one that takes long or
goes wrong, which is then converted alone; UnsafeNoteError if that does not help; OSError when its
file cannot be read, or no process be started.
Standards: docs/design.md 1; POSIX setrlimit.
"""

import asyncio
import json
import os
import pickle
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Protocol
from weakref import WeakValueDictionary

from relay.clock import Clock
from relay.mailbox.types import PendingSubmission
from relay.message.content import Octets
from relay.mime.converted import Converted
from relay.mime.draft import FIRST_FIELD_BYTES, private_length
from relay.pickup.conversion_child import LENGTH_BYTES, READY, Answer

PLAIN_BYTES_MAX = 64 * 1024
_SHARED_MAX = 2
_SHARE_OF_ACCOUNT = 1  # of the shared processes, so that another account's mail is converted
_LIMIT_S = 2.0  # for almost all; each further MiB has more
_LIMIT_S_PER_MIB = 0.1
_ALONE_LIMIT_S = 10.0
_ALONE_LIMIT_S_PER_MIB = 1.0
_START_LIMIT_S = 30.0  # says nothing of a note: the machine is busy
_IDLE_S = 600.0
_NOTES_MAX = 1000  # converted by one process: what it may have lost of memory comes back
_NICE = 10
_READ_BYTES = 1024 * 1024
_REAPED_AFTER_S = 1.0
_END_S = 0.1  # from a process's closing its files to its end
_PLAIN = b'"body_type":"text"'  # in the block, where quotes within strings are escaped


class Converter(Protocol):
    """relay.mime.convert.convert, or what a test has in its place: a function of a module."""

    __name__: str

    def __call__(self, note: bytes | Octets, *, now_us: int, hostname: str) -> Converted:
        """Return what is submitted. Raises ConversionError, OSError."""
        ...


class UnfinishedError(Exception):
    """A conversion did not end in the time that is enough for almost all, or went wrong.

    `fault` is for the log: what went wrong in the relay.
    """

    def __init__(self, text: str, fault: str = "") -> None:
        super().__init__(text)
        self.fault = fault


class UnsafeNoteError(Exception):
    """A conversion went wrong, or did not end, in a process of its own too; the text says how."""


class Conversion:
    """Converts notes, each where it can do no harm."""

    def __init__(self, convert: Converter, *, hostname: str, clock: Clock) -> None:
        self._convert = convert
        self._hostname = hostname
        self._clock = clock
        self._shared = asyncio.Semaphore(_SHARED_MAX)
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._idle: list[_Child] = []
        self._killed: list[_Child] = []
        self._is_closed = False

    async def converted(self, note: PendingSubmission, content: Octets) -> Converted:
        """Convert a note if that takes no longer than it does for almost all.

        Raises ConversionError, UnfinishedError, OSError.
        """
        if is_plain(content):
            return self._convert(content, now_us=self._clock.time_us(), hostname=self._hostname)
        share = self._shares.setdefault(note.account, asyncio.Semaphore(_SHARE_OF_ACCOUNT))
        async with share, self._shared:
            child = self._waiting() or await self._start()
            limit_s = _LIMIT_S + _LIMIT_S_PER_MIB * content.size / (1 << 20)
            try:
                made = await child.ask(note, now_us=self._clock.time_us(), limit_s=limit_s)
            finally:
                self._put_back(child)
        return _read_answer(made)

    async def converted_alone(self, note: PendingSubmission, content: Octets) -> Converted:
        """Convert a note that was not finished, in a process of its own and with more time.

        Raises ConversionError, UnsafeNoteError, OSError.
        """
        limit_s = _ALONE_LIMIT_S + _ALONE_LIMIT_S_PER_MIB * content.size / (1 << 20)
        child = await self._start()
        child.be_nice()
        try:
            made = await child.ask(note, now_us=self._clock.time_us(), limit_s=limit_s)
            return _read_answer(made)
        except UnfinishedError as error:
            raise UnsafeNoteError(str(error)) from None
        finally:
            self._end(child)

    def close(self) -> None:
        """End the processes that wait for a note; the others end with their notes."""
        self._is_closed = True
        for child in self._idle:
            child.timer.cancel()
            self._end(child)
        self._idle.clear()
        self._reap(_REAPED_AFTER_S)

    def _waiting(self) -> "_Child | None":
        """Return a process that waits for a note."""
        while self._idle:
            child = self._idle.pop()
            child.timer.cancel()
            if child.is_usable:
                return child
            self._end(child)
        return None

    def _put_back(self, child: "_Child") -> None:
        if child.is_usable and not self._is_closed:
            self._idle.append(child)
            loop = asyncio.get_running_loop()
            child.timer = loop.call_later(_IDLE_S, self._retire, child)
        else:
            self._end(child)

    def _retire(self, child: "_Child") -> None:
        self._idle.remove(child)
        self._end(child)

    def _end(self, child: "_Child") -> None:
        """Kill a process, and look later what the system has to say of it."""
        child.kill()
        self._killed.append(child)
        if self._is_closed:
            self._reap(_REAPED_AFTER_S)
        else:
            asyncio.get_running_loop().call_later(_REAPED_AFTER_S, self._reap)

    def _reap(self, wait_s: float = 0) -> None:
        self._killed = [one for one in self._killed if not one.has_ended(wait_s)]

    async def _start(self) -> "_Child":
        """Start a process and wait until it can be asked. Raises OSError."""
        function = f"{self._convert.__module__}:{self._convert.__name__}"
        child = _Child(function, self._hostname)
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                await child.started()
        except TimeoutError:
            reason = f"the process that converts was not ready within {_START_LIMIT_S:g} seconds"
            raise OSError(reason) from None
        finally:
            if not child.is_usable:
                self._end(child)
        return child


class _Child:
    """A process of relay.pickup.conversion_child, which converts one note after the other."""

    timer: asyncio.TimerHandle  # for its end, while it waits for a note

    def __init__(self, function: str, hostname: str) -> None:
        """Start it. Raises OSError."""
        self._is_ready = False
        self._notes = 0
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-P", "-m", "relay.pickup.conversion_child", function, hostname],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # no Ctrl-C for it: it ends when its input does
            )
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()

    @property
    def is_usable(self) -> bool:
        """Whether it waits for a note."""
        return self._is_ready and self._notes < _NOTES_MAX and not self._reader.at_eof()

    async def started(self) -> None:
        """Return when it can be asked. Raises OSError."""
        self._reader, self._writer = await asyncio.open_unix_connection(
            sock=self._socket, limit=_READ_BYTES
        )
        try:
            await self._reader.readexactly(len(READY))
        except EOFError:
            how = self._how_it_ended()
            raise OSError(f"the process that converts did not start: {how}") from None
        self._is_ready = True

    async def ask(self, note: PendingSubmission, *, now_us: int, limit_s: float) -> bytes:
        """Return its answer. Raises UnfinishedError; it is of no use then."""
        assert self._writer is not None
        self._is_ready = False
        self._notes += 1
        asked = {"path": str(note.path), "now_us": now_us, "cpu_s": int(limit_s) + 1}
        try:
            async with asyncio.timeout(limit_s):
                self._writer.write(json.dumps(asked).encode() + b"\n")
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES), "big")
                answer = await self._reader.readexactly(length)
        except TimeoutError:  # an OSError as well, as is the next one
            raise UnfinishedError(f"it did not end within {limit_s:g} seconds") from None
        except (EOFError, ConnectionError):
            raise UnfinishedError(self._how_it_ended()) from None
        self._is_ready = True
        return answer

    def be_nice(self) -> None:
        """Let all others go first."""
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)

    def kill(self) -> None:
        """Kill it, whatever it does."""
        self._is_ready = False
        self._process.kill()
        if self._writer is not None:
            self._writer.transport.abort()
        else:
            self._socket.close()

    def has_ended(self, wait_s: float = 0) -> bool:
        """Whether it is gone; waits for that."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_s)
        return self._process.returncode is not None

    def _how_it_ended(self) -> str:
        self.has_ended(_END_S)
        code = self._process.returncode
        if code is None:
            return "it ended"
        return f"it ended with signal {-code}" if code < 0 else f"it ended with exit code {code}"


def is_plain(content: Octets) -> bool:
    """Whether a note's conversion takes no time worth a process: short text that Graph gave us.

    Its text is copied and its fields are written; nothing is parsed, no html made text.
    """
    if content.size > PLAIN_BYTES_MAX:
        return False
    length = private_length(content.read(0, FIRST_FIELD_BYTES))
    return _PLAIN in content.read(0, length)


def _read_answer(octets: bytes) -> Converted:
    """Return what a process has made, or raise what it met."""
    answer: Answer = pickle.loads(octets)  # noqa: S301 - our own process writes this, nothing else
    made, error, fault = answer
    if error is not None:
        raise error
    if made is None:
        raise UnfinishedError("it met a fault of the relay", fault)
    return made
