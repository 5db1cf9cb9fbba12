"""One milter: its connection in a session, the time limits of its answers, and its faults.

A connection belongs to one SMTP session and is not used again: libmilter closes it. Clients and
accounts take their connections in turn. A milter that is down, late or faulty concerns its own
sessions only.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from relay.base.observe.logs import RepeatedError, get_logger
from relay.base.settings.tree import Milter
from relay.base.task_set import shielded
from relay.base.turns import Turns
from relay.transport.milter import codec, dialogue
from relay.transport.milter.codec import MilterFaultError, MilterPacket, PacketReader

# limit: connections to each milter; then clients wait 30 s in turn, then 451
CONNECTIONS_MAX: Final = 100
FOR_USERS: Final = 20  # of these, which role relay leaves to the other roles
_WAITING_MAX: Final = 1000  # messages
_TURN_S: Final = 30.0  # the time for which a client waits for a connection
_CONTENT_FACTOR: Final = 10  # the time limit is multiplied by it for answers about content
_BUFFER_OCTETS: Final = 64 * 1024
_CLOSED: Final = "the connection was closed"
_OUT_OF_TURN: Final = "an answer out of turn"
_TOO_LATE: Final = "no decision within ten minutes"
_CHECK_S_MAX: Final = 5.0
Take = Callable[[bytes], Awaitable[None]]
_log = get_logger("milter")


class ConfiguredMilter:
    """One `[[milter]]`, for all sessions.

    `fault` is why the last connection failed, or "". Without mail, probe() makes the connections.
    """

    def __init__(self, settings: Milter, *, has_log: bool = True) -> None:
        """Without `has_log` nothing is logged: the caller shows the fault."""
        self.settings = settings
        self._has_log = has_log
        self.fault = ""
        self.places = Turns("milter connections", CONNECTIONS_MAX, waiting_max=_WAITING_MAX)
        self._logged = RepeatedError()
        self._lookup: asyncio.Future[Any] | None = None

    @property
    def is_crowded(self) -> bool:
        """Whether fewer than half of the connections are free."""
        return 2 * self.places.taken > CONNECTIONS_MAX

    def failed(self, error: Exception) -> None:
        """Log a fault, unless it is the same as the last one."""
        self.fault = str(error)
        if self._has_log and self._logged.is_new(error):
            settings = self.settings
            _log.repeated(
                "warning",
                "milter failed",
                of=settings.name,
                milter=settings.name,
                address=str(settings.address),
                when_down=settings.when_down,
                error=self.fault,
            )

    def works(self) -> None:
        """Record that the milter answered correctly; the next fault is logged."""
        self.fault = ""
        self._logged.clear()

    async def probe(self) -> None:
        """Find out whether the milter is up, by a connection without a session.

        It connects, negotiates and quits, each within the time limit of the milter.
        """
        connection = MilterConnection(self)
        await connection.open(now_s() + 3 * self.settings.timeout)
        if connection.dialogue.session is None:
            self.works()
        connection.close()

    async def dialled(self) -> socket.socket:
        """Return a connected socket. Raises OSError."""
        address, loop = self.settings.address, asyncio.get_running_loop()
        if address.path:
            return await _connected(socket.AF_UNIX, address.path)
        if self._lookup is None or self._lookup.done():  # a slow name server takes one thread
            lookup = loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            self._lookup = asyncio.ensure_future(lookup)
        *others, last = await shielded(self._lookup)
        for info in others:
            with contextlib.suppress(OSError):
                return await _connected(info[0], info[4])
        return await _connected(last[0], last[4])


async def fault_of_milter(milter: Milter) -> str:
    """Connect and negotiate, within some seconds; return what fails, "" for nothing."""
    limited = replace(milter, timeout=min(milter.timeout, _CHECK_S_MAX))
    checked = ConfiguredMilter(limited, has_log=False)
    await checked.probe()
    return checked.fault


async def _connected(family: int, place: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


def now_s() -> float:
    """Return the time by which milters are waited for, in seconds."""
    return asyncio.get_running_loop().time()  # real time: a peer


class MilterConnection:
    """One milter in one session, until it has a fault or is closed."""

    def __init__(self, milter: ConfiguredMilter, spare: int = 0) -> None:
        """`spare` connections stay for others."""
        self.milter = milter
        self.spare = spare
        self.dialogue = dialogue.MilterDialogue(milter.settings.name, milter.settings.when_down)
        self._socket: socket.socket | None = None
        self._reader = PacketReader()
        self._unsent = bytearray()
        self._client: str | None = None  # whose place it has
        self.is_told = False  # the fault, in the journey and the metrics

    @property
    def is_open(self) -> bool:
        """Whether it is connected."""
        return self._socket is not None

    async def take_place(self, client: str) -> bool:
        """Wait for a place of a client or an account; return False if there was none in time."""
        if not await self.milter.places.take(client, wait_s=_TURN_S, spare=self.spare):
            return False
        self._client = client
        return True

    async def open(self, until: float) -> None:
        """Connect and negotiate; a fault is recorded in the dialogue."""
        limit_s = self.milter.settings.timeout
        with self.guarded():
            async with _limit(limit_s, until):
                self._socket = await self.milter.dialled()
            self._unsent += codec.offer()
            await self._flush(limit_s, until)
            packet = await self._packet(limit_s, until)
            self._check_ended()
            self.dialogue.negotiate(packet)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Close the connection after a fault, an exception, or a decision about the session.

        A fault is recorded in the dialogue.
        """
        try:
            yield
        except MilterFaultError as error:
            self.milter.failed(error)
            self.dialogue.fault()
        except BaseException:
            self.dialogue.fault()
            self.close()
            raise
        if self.dialogue.session is not None:
            self.close()

    async def ask(
        self,
        stage: dialogue.FilterStage,
        data: bytes,
        macros: Mapping[str, str],
        *,
        until: float,
        take: Take | None = None,
    ) -> dialogue.FilterAnswer:
        """Send a command and return what the answer means; without an answer, GO_ON.

        `until` is the time of now_s() at which all waiting ends. `take` gets the pieces of a new
        body; what it raises is raised.
        """
        if (decided := self.dialogue.session) is not None:
            return decided
        octets, is_answered = self.dialogue.command(stage, data, macros)
        self._unsent += octets
        if not is_answered and len(self._unsent) < _BUFFER_OCTETS:
            return dialogue.GO_ON
        limit_s = self.milter.settings.timeout * (
            _CONTENT_FACTOR if stage in dialogue.CONTENT else 1
        )
        answer = dialogue.GO_ON
        with self.guarded():
            await self._flush(limit_s, until)
            while is_answered:
                result = self.dialogue.answer(stage, await self._packet(limit_s, until))
                if isinstance(result, dialogue.FilterAnswer):
                    answer, is_answered = result, False
                elif result is not None and take is not None:
                    await take(result)
            self._check_ended()
        return self.dialogue.session or answer

    def abort(self) -> None:
        """End the message that was not decided."""
        self._unsent += self.dialogue.abort()
        if self._socket is not None and self._unsent:
            with contextlib.suppress(OSError):  # the next command finds out
                del self._unsent[: self._socket.send(self._unsent)]

    def close(self) -> None:
        """Close the connection, without waiting. The dialogue is at its end."""
        client, self._client = self._client, None
        if client is not None:
            self.milter.places.give_back(client)
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it may be full, or closed there
                self._socket.send(self._unsent + codec.encode(b"Q"))
            self._socket.close()
            self._socket = None

    def _check_ended(self) -> None:
        """Raise MilterFaultError if an answer is followed by another one."""
        if not self._reader.is_empty:
            raise MilterFaultError(_OUT_OF_TURN)

    async def _flush(self, limit_s: float, until: float) -> None:
        """Send the octets that wait. Raises MilterFaultError, also for an unexpected answer."""
        assert self._socket is not None
        async with _limit(limit_s, until):
            with contextlib.suppress(BlockingIOError):
                octets = self._socket.recv(1)
                raise MilterFaultError(_OUT_OF_TURN if octets else _CLOSED)
            octets, self._unsent = bytes(self._unsent), bytearray()
            await asyncio.get_running_loop().sock_sendall(self._socket, octets)

    async def _packet(self, limit_s: float, until: float) -> MilterPacket:
        """Return the next packet. Raises MilterFaultError."""
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        async with _limit(limit_s, until):
            while (packet := self._reader.next()) is None:
                octets = await loop.sock_recv(self._socket, _BUFFER_OCTETS)
                if not octets:
                    raise MilterFaultError(_CLOSED)
                self._reader.feed(octets)
                await asyncio.sleep(0)  # lets other tasks run: what has arrived is read at once
        return packet


@contextlib.asynccontextmanager
async def _limit(limit_s: float, until: float) -> AsyncIterator[None]:
    """Limit how long a milter is waited for. Raises MilterFaultError for each OSError."""
    left_s = until - now_s()
    try:
        async with asyncio.timeout(min(limit_s, left_s)):  # real time: a peer
            yield
    except TimeoutError:
        what = f"no answer within {limit_s:g} s" if limit_s < left_s else _TOO_LATE
        raise MilterFaultError(what) from None
    except OSError as error:
        is_lookup = isinstance(error, socket.gaierror)  # its number is no errno
        text = error.strerror if is_lookup or not error.errno else os.strerror(error.errno)
        raise MilterFaultError((text or str(error)).lower()) from None
