"""A milter that follows a script, on a Unix or TCP socket: it records what it hears, and answers
what the script says. Its code shares nothing with Relay's.
"""

import asyncio
import queue
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

CLOSE = b"(close)"
HANG = b"(hang)"
_SILENT = dict(zip(b"LCHMRTUNB", (0x80, *(0x1000 << n for n in range(8))), strict=True))
EVENTS = b"CHMRTULNBE"  # those that are answered


def packet(command: bytes, *data: bytes) -> bytes:
    """The octets of a packet."""
    body = command + b"".join(data)
    return struct.pack(">I", len(body)) + body


def negotiation(version=6, actions=0x1FF, steps=0, lists: Mapping[int, str] | None = None) -> bytes:
    """The answer to the MTA's offer."""
    more = (struct.pack(">I", at) + text.encode() + b"\0" for at, text in (lists or {}).items())
    return packet(b"O", struct.pack(">III", version, actions, steps), *more)


def added(name: str, value: str) -> bytes:
    """A change: a field at the end of the header."""
    return packet(b"h", name.encode() + b"\0" + value.encode() + b"\0")


def placed(command: bytes, number: int, name: str, value: str) -> bytes:
    """A change: a field that is inserted (i) or changed (m)."""
    number_octets = struct.pack(">I", number)
    return packet(command, number_octets, name.encode() + b"\0" + value.encode() + b"\0")


class ScriptedMilter:
    """`script` has, by the command, what is sent after it: octets, CLOSE, HANG, or a function of the
    command's data that returns one of these. Every other event is answered with "continue", unless
    the negotiated `steps` say that it gets no answer.
    """

    def __init__(self, script: Mapping[bytes, Any] | None = None, **negotiated: Any) -> None:
        self.script = dict(script or {})
        self.script.setdefault(b"O", negotiation(**negotiated))
        self.steps = negotiated.get("steps", 0)
        self.heard: list[tuple[bytes, bytes]] = []
        self.closes_after = b""
        self.ended = asyncio.Event()  # a session

    def commands(self) -> bytes:
        """The commands that were heard, without macros."""
        return b"".join(command for command, _ in self.heard if command != b"D")

    def of(self, command: bytes) -> list[bytes]:
        """The data of each such command."""
        return [data for each, data in self.heard if each == command]

    @asynccontextmanager
    async def at(self, path=None):
        """Listen at a path, or at a free port of loopback; gives the address as in relay.toml."""
        if path is not None:
            server = await asyncio.start_unix_server(self._serve, path)
            address = f"unix:{path}"
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tasks: set[asyncio.Task] = set()
        self._tasks = tasks
        try:
            yield address
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader, writer) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            while True:
                length, command = struct.unpack(">Ic", await reader.readexactly(5))
                data = await reader.readexactly(length - 1)
                self.heard.append((command, data))
                if command == b"Q" or not await self._answer(command, data, writer):
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return
        finally:
            self.ended.set()
            writer.close()

    async def _answer(self, command: bytes, data: bytes, writer) -> bool:
        answer = self.script.get(command)
        if isinstance(answer, Callable):
            answer = answer(data)
        if answer is None and command in EVENTS and not self.steps & _SILENT.get(command[0], 0):
            answer = packet(b"c")
        if hasattr(answer, "__anext__"):
            async for octets in answer:
                writer.write(octets)
                await writer.drain()
            return command != self.closes_after
        if answer == CLOSE:
            return False
        if answer == HANG:
            await asyncio.Event().wait()
        if answer:
            writer.write(answer)
            await writer.drain()
        return command != self.closes_after


@contextmanager
def in_thread(milter: ScriptedMilter, path: Path | None = None) -> Iterator[str]:
    """Listen as at() on a loop of its own; gives the address."""
    addresses, over = queue.Queue[str](), threading.Event()

    async def serve() -> None:
        async with milter.at(path) as address:
            addresses.put(address)
            await asyncio.to_thread(over.wait)

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(asyncio.run, serve())
        try:
            yield addresses.get(timeout=30)
        finally:
            over.set()
            serving.result(30)
