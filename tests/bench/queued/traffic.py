"""Clients and a sink around a relay, in a process of its own: clients that send, a server that takes.

Times are time.monotonic(), which all processes of a machine share. What the child raises is raised
in the caller. See RFC 5321, 2920.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Self

import uvloop

SINK = "127.0.0.1"
_EHLO = b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n"
_REPLIES = {b"EHLO": _EHLO, b"DATA": b"354 go\r\n", b"QUIT": b"221 2.0.0 bye\r\n"}
_STAMP = b"X-Stamp: "


def refusing(number: int) -> str:
    """An address where nobody listens; there is one for each dead domain."""
    return f"127.4.{number // 250}.{number % 250 + 1}"


@dataclass(frozen=True)
class Load:
    """Messages `0 .. count - 1`, stamped `name-number`; their recipients take turns.

    With `rate` that many begin in a second, whatever became of those before; else each session
    sends one after the other.
    """

    name: str
    port: int
    count: int
    recipients: Sequence[str]
    sender: str = "client@bench.test"
    sessions: int = 20
    rate: float = 0.0
    size_bytes: int = 4096


@dataclass
class Sent:
    """When each message was begun and answered: by number; 0 where it was not."""

    began_s: list[float]
    answered_s: list[float]
    refused: list[str] = field(default_factory=list)


class Sinks:
    """`with Sinks() as sinks`: a sink at `port`, and clients."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_run, args=(other,), daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._process.start()
        self.port = self._pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def send(self, load: Load) -> Sent:
        """Return when the last message was answered."""
        return self._ask("send", load)

    def begin(self, load: Load) -> None:
        """Begin to send, and go on until end()."""
        self._ask("begin", load)

    def end(self) -> None:
        """Stop what begin() began, or leave it where the relay's end has ended it."""
        self._ask("end")

    def arrivals(self, stamps: Sequence[str], timeout_s: float) -> list[float | None]:
        """When each of these messages first came to a sink, None for those that did not in time."""
        return self._ask("arrivals", stamps, timeout_s)

    def forget(self) -> None:
        """Forget what has arrived."""
        self._ask("forget")

    def until_arrival(self, timeout_s: float) -> bool:
        """Wait until anything has arrived since forget(); whether it has."""
        return self._ask("until_arrival", timeout_s)

    def first_arrival_s(self) -> float:
        """When the first of them arrived."""
        return self._ask("first_arrival_s")

    def _ask(self, name: str, *values: Any) -> Any:
        self._pipe.send((name, values))
        failure, answer = self._pipe.recv()
        if failure:
            raise RuntimeError(failure)
        return answer


def stamps(load: Load) -> list[str]:
    return [f"{load.name}-{number}" for number in range(load.count)]


def _run(pipe: Connection) -> None:
    uvloop.run(_Child(pipe).run())


class _Child:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._seen: dict[str, float] = {}
        self._news = asyncio.Event()
        self._going: list[asyncio.Task[Sent]] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Sink(self._arrived), SINK, 0, backlog=1000)
        self._pipe.send(server.sockets[0].getsockname()[1])
        while (asked := await asyncio.to_thread(self._pipe.recv)) is not None:
            name, values = asked
            try:
                self._pipe.send(("", await getattr(self, name)(*values)))
            except Exception as error:  # noqa: BLE001 - raised on the other side
                self._pipe.send((repr(error), None))

    def _arrived(self, stamp: str) -> None:
        if stamp not in self._seen:
            self._seen[stamp] = time.monotonic()
        self._news.set()

    async def send(self, load: Load) -> Sent:
        return await _send(load)

    async def begin(self, load: Load) -> None:
        self._going.append(asyncio.create_task(_send(load)))

    async def end(self) -> None:
        for task in self._going:
            task.cancel()
        for ended in await asyncio.gather(*self._going, return_exceptions=True):
            if isinstance(ended, Exception) and not isinstance(ended, (OSError, EOFError)):
                raise ended
        self._going.clear()

    async def arrivals(self, wanted: Sequence[str], timeout_s: float) -> list[float | None]:
        missing = [one for one in wanted if one not in self._seen]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while missing:
                    self._news.clear()
                    await self._news.wait()
                    missing = [one for one in missing if one not in self._seen]
        return [self._seen.get(one) for one in wanted]

    async def forget(self) -> None:
        self._seen.clear()

    async def until_arrival(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while not self._seen and time.monotonic() < deadline_s:
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + 1):
                    await self._news.wait()
        return bool(self._seen)

    async def first_arrival_s(self) -> float:
        return min(self._seen.values())


class _Sink(asyncio.Protocol):
    """Takes every message and says which stamp came."""

    def __init__(self, arrived: Callable[[str], None]) -> None:
        self._tell = arrived
        self._buffer = b""
        self._in_content = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        replies: list[bytes] = []
        while self._buffer and (reply := self._next()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))

    def _next(self) -> bytes | None:
        """The reply to what comes first in the buffer; None where it is not all there."""
        if self._in_content:
            content, found, rest = self._buffer.partition(b"\r\n.\r\n")
            if not found:
                return None
            self._buffer, self._in_content = rest, False
            self._tell(content.partition(_STAMP)[2].partition(b"\r")[0].decode())
            return b"250 2.0.0 taken\r\n"
        line, found, rest = self._buffer.partition(b"\r\n")
        if not found:
            return None
        self._buffer = rest
        verb = line[:4].upper()
        self._in_content = verb == b"DATA"
        return _REPLIES.get(verb, b"250 2.0.0 ok\r\n")


async def _send(load: Load) -> Sent:
    sent = Sent([0.0] * load.count, [0.0] * load.count)
    numbers = iter(range(load.count))
    began_s = time.monotonic()

    async def session() -> None:
        client = await _Client.connect(load)
        for number in numbers:
            await client.send(load, number, sent)
        client.close()

    async def one_in_time(number: int, idle: list[_Client]) -> None:
        await asyncio.sleep(began_s + number / load.rate - time.monotonic())
        client = idle.pop() if idle else await _Client.connect(load)
        await client.send(load, number, sent)
        idle.append(client)

    if load.rate:
        idle: list[_Client] = []
        await asyncio.gather(*(one_in_time(number, idle) for number in numbers))
        for client in idle:
            client.close()
    else:
        await asyncio.gather(*(session() for _ in range(load.sessions)))
    return sent


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, load: Load) -> Self:
        client = cls(*await asyncio.open_connection("127.0.0.1", load.port))
        await client._reply()
        client._writer.write(b"EHLO client.bench.test\r\n")
        await client._reply()
        return client

    async def send(self, load: Load, number: int, sent: Sent) -> None:
        recipient = load.recipients[number % len(load.recipients)]
        sent.began_s[number] = time.monotonic()
        self._writer.write(
            f"MAIL FROM:<{load.sender}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode()
        )
        replies = [await self._reply() for _ in range(3)]
        if not replies[2].startswith(b"354"):
            sent.refused.append(b"; ".join(replies).decode())
            return
        head = (
            f"X-Stamp: {load.name}-{number}\r\nFrom: <{load.sender}>\r\nSubject: measured\r\n\r\n"
        )
        content = head.encode() + b"x" * 76 + b"\r\n"
        content += (b"y" * 76 + b"\r\n") * (load.size_bytes // 78 - 3)
        self._writer.write(content + b".\r\n")
        reply = await self._reply()
        sent.answered_s[number] = time.monotonic()
        if not reply.startswith(b"250"):
            sent.refused.append(reply.decode())

    def close(self) -> None:
        self._writer.write(b"QUIT\r\n")
        self._writer.close()

    async def _reply(self) -> bytes:
        while (line := await self._reader.readuntil(b"\r\n"))[3:4] == b"-":
            pass
        return line
