"""The worker processes of sender checks: start them, ask them, replace those that fail.

There are two at most, started when they are needed. A worker that takes too long or ends is killed.
"""

import asyncio

from relay.base.child_process import ChildProcess
from relay.base.observe.logs import get_logger
from relay.transport.checks.wire import LENGTH_BYTES, READY, Reply, Request, framed, read_reply

WORKERS_MAX = 2
WAITING_MAX = 500  # messages that wait for a worker
REQUEST_S = 3.0
_START_S = 30.0  # on a busy machine
_REPLY_OCTETS_MAX = 1 << 20
_MODULE = "relay.transport.checks.check_child"
_log = get_logger("checks")


class CheckFailedError(Exception):
    """No worker answers; the text says why."""


class _Worker(ChildProcess):
    """A process of check_child."""

    def __init__(self) -> None:
        """Start it. Raises OSError."""
        super().__init__(_MODULE)
        self.socket.setblocking(False)

    async def ask(self, request: Request) -> Reply:
        """Return the reply. Raises OSError, EOFError."""
        await asyncio.get_running_loop().sock_sendall(self.socket, framed(request))
        length = int.from_bytes(await self.receive(LENGTH_BYTES))
        if length > _REPLY_OCTETS_MAX:
            raise EOFError
        return read_reply(await self.receive(length))

    async def receive(self, length: int) -> bytes:
        """Return that many octets. Raises OSError, EOFError."""
        loop, received = asyncio.get_running_loop(), b""
        while len(received) < length:
            octets = await loop.sock_recv(self.socket, length - len(received))
            if not octets:
                raise EOFError
            received += octets
        return received

    def end(self) -> None:
        """Kill it, and reap it."""
        self.process.kill()
        self.socket.close()
        self.process.wait()


class CheckWorkers:
    """The workers; a message has one for each request, not while it waits for the DNS."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(WORKERS_MAX)
        self._waiting = 0
        self._idle: list[_Worker] = []
        self._starting: asyncio.Task[str] | None = None

    async def ask(self, request: Request) -> Reply:
        """Return the reply of a worker. Raises CheckFailedError."""
        if self._waiting >= WAITING_MAX:
            raise CheckFailedError(f"{WAITING_MAX} messages are being checked")
        self._waiting += 1
        try:
            async with self._slots:
                return await self._ask(request)
        finally:
            self._waiting -= 1

    async def _ask(self, request: Request) -> Reply:
        worker = await self._free()
        try:
            async with asyncio.timeout(REQUEST_S):  # real time: a child
                reply = await worker.ask(request)
        except BaseException as error:
            how = "" if isinstance(error, TimeoutError) else worker.how_it_ended()
            worker.end()
            if not isinstance(error, OSError | EOFError):  # it is cancelled
                raise
            _log.warning(
                "a check of a sender was ended", reason=how or f"no reply in {REQUEST_S} s"
            )
            raise CheckFailedError("the check took too much time or memory") from None
        self._idle.append(worker)
        return reply

    def close(self) -> None:
        """End the workers."""
        if self._starting is not None:
            self._starting.cancel()
        while self._idle:
            self._idle.pop().end()

    async def _free(self) -> _Worker:
        """Return an idle worker, or start another. Raises CheckFailedError."""
        while not self._idle:
            if self._starting is None:
                self._starting = asyncio.create_task(self._start())
            # goes on for the next message if this one cannot wait
            if fault := await asyncio.shield(self._starting):
                raise CheckFailedError(fault)
        return self._idle.pop()

    async def _start(self) -> str:
        """Start a worker. Return why there is none, "" if there is."""
        worker = None
        try:
            worker = _Worker()
            async with asyncio.timeout(_START_S):  # real time: a child
                await worker.receive(len(READY))
        except BaseException as error:
            if worker is not None:
                worker.end()
            if not isinstance(error, OSError | EOFError):
                raise
            _log.warning("the process that checks senders did not start", error=error)
            return "the process that checks senders did not start"
        finally:
            self._starting = None
        self._idle.append(worker)
        return ""
