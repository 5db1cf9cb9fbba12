"""Start the child of the gate, give it connections, and replace it when it ends.

The listeners stay open meanwhile: clients wait in their backlog. After repeated ends there is a
pause before the next start, which grows.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from relay.base.child_process import ChildProcess
from relay.base.files import Descriptor
from relay.gate.frames import FrameChannel, PacketSender, packet_pair
from relay.gate.owner import SessionsOfChild
from relay.gate.wire import (
    Drain,
    ForgetAnswers,
    LoadState,
    NewConnection,
    Packet,
    Ready,
    Setup,
    encode,
)
from relay.ingress.smtp_session import SessionClient
from relay.observe.logs import get_logger
from relay.settings.tree import SmtpListener

_START_S = 30.0  # until it is ready: the machine may be busy
_LONG_LIFE_S = 60.0
_PAUSES_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before a start, after repeated ends
_TICK_S = 0.5
_SILENT_TICKS_MAX = 60  # ticks rather than a time: this process may stand still as well
_END_S = 1.0  # between closing its sockets and its end
_SESSIONS_MAX = 262_144  # more than a process has descriptors for
_LAST_S = 1.0  # for the child, after the sessions
_log = get_logger("gate")


class GateError(OSError):
    """The child did not start; the text says why."""


class GateKeeper:
    """Has one child, from start() to drain()."""

    def __init__(
        self,
        *,
        words: Sequence[str],
        setup: Callable[[], Setup],
        load: Callable[[], LoadState],
        on_change: Callable[[str], None],
    ) -> None:
        """`words` are those of the child: how it logs. `on_change` gets why there is no child, ""
        when there is one.
        """
        self._words = words
        self._setup, self._load = setup, load
        self._on_change = on_change
        self._child: _Child | None = None
        self._is_draining = False
        self.accept: list[Callable[[bool], None]] = []  # let listeners accept, or wait

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return self._child.process.process.pid if self._child is not None else None

    @property
    def statm(self) -> Path:
        """The file with the memory of the child (proc(5)), if there is one."""
        file = self._child.statm if self._child is not None else None
        return Path(f"/proc/self/fd/{file.number if file is not None else -1}")

    def sessions(self, listener: int) -> int:
        """Return the number of open sessions of a listener."""
        return self._child.sessions.counts[listener] if self._child is not None else 0

    async def start(self) -> None:
        """Start the child. Raises GateError."""
        child = _Child(self._words, on_full=self._accept_less)
        try:
            async with asyncio.timeout(_START_S):  # real time: a process starts
                await child.open()
                child.channel.send(encode(self._setup()))
                missing = await child.ready
        except (TimeoutError, OSError) as error:
            reason = str(error) or f"it was not ready within {_START_S:g} seconds"
            reason += await child.kill()
            raise GateError(f"the process of the SMTP sessions did not start: {reason}") from None
        self._child = child
        child.tell(self._load())
        lacks = " ".join(missing.missing) or "nothing"
        _log.info("SMTP sessions have a process", pid=self.pid, sandbox_lacks=lacks)
        self._accept_less(False)
        self._on_change("")

    async def run(self) -> None:
        """Replace each child that ends, and tell it what changes, until cancelled."""
        ends = 0
        loop = asyncio.get_running_loop()
        while True:
            child = self._child
            if child is not None:
                began_s = loop.time()  # real time: how long a process lives
                while not child.ended.done():
                    await asyncio.wait({child.ended}, timeout=_TICK_S)  # real time: it may end
                    child.tick()
                    self.tell()
                await self._lose(child)
                lived_s = loop.time() - began_s  # real time: as above
                ends = 0 if lived_s >= _LONG_LIFE_S else ends + 1
            await asyncio.sleep(_PAUSES_S[min(ends, len(_PAUSES_S) - 1)])  # real time: as above
            if self._is_draining:
                return
            try:
                await self.start()
            except GateError as error:
                ends += 1
                _log.error("SMTP waits", error=str(error))
                self._on_change(str(error))

    def use(self) -> None:
        """Give the child what a reload has read. One that cannot use it ends, and the next one
        begins with it.
        """
        if self._child is not None:
            self._child.channel.send(encode(self._setup()))
            self._child.channel.send(encode(ForgetAnswers()))
            self.tell()

    def tell(self) -> None:
        """Tell the child how much mail is taken now, and which logins have ended."""
        if self._child is not None:
            self._child.tell(self._load())
            self._child.sessions.tell_ended()

    def hand_on(self, connection: socket.socket, client: SessionClient, listener: int) -> None:
        """Give the child a connection, which is closed here."""
        child = self._child
        if child is not None and child.sessions.counts.total() >= _SESSIONS_MAX:
            child.end(f"it has {_SESSIONS_MAX} sessions, and ends none")
        if child is None or child.ended.done():
            connection.close()
            client.services.end()
            return
        number = child.sessions.begin(client, listener)
        child.send(
            NewConnection(number, listener, client.ip, client.is_trusted), connection.detach()
        )

    async def drain(self, grace_s: float) -> None:
        """End the sessions, then the child."""
        was_draining, self._is_draining = self._is_draining, True
        if (child := self._child) is None:
            return
        if not was_draining:
            child.channel.send(encode(Drain(grace_s)))
        await asyncio.wait({child.ended}, timeout=grace_s + _LAST_S)  # real time: clients
        await child.kill()

    def _accept_less(self, is_full: bool) -> None:
        for accept in self.accept:
            accept(not is_full)

    async def _lose(self, child: "_Child") -> None:
        self._child = None
        self._accept_less(True)
        reason = child.ended.result() + await child.kill()
        if not self._is_draining:
            text = f"the process of the SMTP sessions ended: {reason}"
            _log.error("SMTP waits", error=text)
            self._on_change(text)


class _Child:
    """One child, with its sockets and the sessions that it has."""

    def __init__(self, words: Sequence[str], *, on_full: Callable[[bool], None]) -> None:
        """Start it. `on_full` is that of its packets. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = packet_pair()
        try:
            self.process = ChildProcess(
                "relay.gate.child", str(theirs.fileno()), *words,
                descriptors=[theirs.fileno()], has_log=True,
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.statm: Descriptor | None = None
        with suppress(OSError):  # opened now, since later it is hidden in a unit with ProtectProc=
            place = f"/proc/{self.process.process.pid}/statm"
            self.statm = Descriptor(os.open(place, os.O_RDONLY))
        self.ended: asyncio.Future[str] = loop.create_future()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self._silent_ticks = 0
        self.sessions = SessionsOfChild(self.send, self._note_ready)
        self.channel = self.sessions.channel = FrameChannel(self.sessions.hear, self.end)
        self.packets = PacketSender(ours, on_full=on_full, on_end=self.end)

    async def open(self) -> None:
        """Begin to talk to it. Raises OSError."""
        loop = asyncio.get_running_loop()
        self.process.socket.setblocking(False)
        await loop.create_unix_connection(lambda: self.channel, sock=self.process.socket)

    def send(self, packet: Packet, descriptor: int) -> None:
        """Send a packet with a descriptor, which is closed here."""
        self.packets.send(encode(packet), descriptor)

    def tell(self, load: LoadState) -> None:
        """Tell it how much mail is taken, which it has to answer within a time."""
        self.channel.send(encode(load))

    def tick(self) -> None:
        """Count the time in which it does not answer."""
        self._silent_ticks += 1
        if self._silent_ticks > _SILENT_TICKS_MAX:
            self.end(f"it has not answered for {_SILENT_TICKS_MAX * _TICK_S:g} seconds")

    def _note_ready(self, frame: Ready) -> None:
        self._silent_ticks = 0
        if not self.ready.done():
            self.ready.set_result(frame)

    def end(self, reason: str) -> None:
        """Note that it has ended, or must."""
        if not self.ended.done():
            self.ended.set_result(reason)
            if not self.ready.done():
                self.ready.set_exception(GateError(reason))
            self.sessions.end()

    async def kill(self) -> str:
        """Kill it, and reap it; return how it ended, if it did that by itself."""
        self.channel.close()
        self.packets.close()
        has_ended = await asyncio.to_thread(self.process.has_ended, _END_S)
        self.process.process.kill()
        await asyncio.to_thread(self.process.has_ended, _LAST_S)
        return f"; {self.process.how_it_ended()}" if has_ended else ""


class RemoteSessions:
    """The sessions of one listener, in the child: relay.ingress.smtp_server.SessionHolder."""

    def __init__(self, keeper: GateKeeper, listener: int) -> None:
        """`listener` is its place in Setup."""
        self._keeper, self._listener = keeper, listener

    @property
    def total(self) -> int:
        """The number of open sessions."""
        return self._keeper.sessions(self._listener)

    def begin(self, connection: socket.socket, client: SessionClient) -> None:
        """Hand a connection on."""
        self._keeper.hand_on(connection, client, self._listener)

    def use(self, settings: SmtpListener) -> None:
        """Do nothing: the child gets all listeners at once, from GateKeeper.use()."""

    async def drain(self, grace_s: float) -> None:
        """End the sessions of all listeners."""
        await self._keeper.drain(grace_s)
