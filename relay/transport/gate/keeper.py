"""Start the child of the gate, give it connections, and replace it when it ends.

The listeners stay open meanwhile, and clients wait in their backlog. If children end repeatedly,
there is a growing pause before the next start.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from relay.base.child_process import ChildProcess
from relay.base.observe.logs import get_logger
from relay.base.shares import REFUSALS
from relay.transport.gate.frames import FrameChannel, PacketSender, packet_pair
from relay.transport.gate.owner import SessionsOfChild
from relay.transport.gate.wire import Drain, LoadState, NewConnection, Packet, Ready, Setup, encode
from relay.transport.ingress.session_owner import SessionOwner

_START_S = 30.0  # until it is ready: the machine may be busy
_LONG_LIFE_S = 60.0
_PAUSES_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before a start, after repeated ends
_TICK_S = 0.5
_UNANSWERED_MAX = 60  # ticks rather than a time: this process may stand still as well
_UNREADY_MAX = 20  # ticks until /readyz says so
_NO_ROOM = "the process of the SMTP sessions takes no more connections"
_SESSIONS_MAX = 262_144  # more than a process has descriptors for
_LAST_S = 1.0  # for the child, after the sessions
_COMMIT_S = 5.0
_log = get_logger("gate")


@dataclass(eq=False, repr=False)
class GateKeeper:
    """Keeps one child running, from start() to drain()."""

    words: Sequence[str]  # arguments of the child: how it logs
    setup: Callable[[], Setup]
    load: Callable[[], LoadState]

    def __post_init__(self) -> None:
        self._child: _Child | None = None
        self._is_draining = False
        self._reason = ""  # why the listeners do not accept; "": they do
        self._ticks_waited = 0  # since then
        self.accept: list[Callable[[bool], None]] = []  # let listeners accept, or wait

    @property
    def sessions(self) -> int:
        """The number of open sessions."""
        return self._child.sessions.total if self._child is not None else 0

    @property
    def full(self) -> tuple[int, ...]:
        """The places in Setup of the listeners without places for strangers."""
        return self._child.full if self._child is not None else ()

    @property
    def fault(self) -> str:
        """Why there is no child, or what it has not done for ten seconds; "" if it does all."""
        if self._child is not None and self._child.unanswered > _UNREADY_MAX:
            return "the process of the SMTP sessions does not answer"
        return self._reason if self._child is None or self._ticks_waited > _UNREADY_MAX else ""

    async def start(self) -> None:
        """Start the child. Raises OSError."""
        try:
            child = _Child(self.words, on_room=lambda has: self._wait("" if has else _NO_ROOM))
            self._child = await child.started(self.setup(), self.load())
        except OSError as error:
            raise OSError(f"the process of the SMTP sessions did not start: {error}") from None
        self._wait("")

    async def run(self) -> None:
        """Replace each child that ends, and send it the load, until cancelled."""
        ends = 0
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()  # real time: how long a process lives
            if self._child is not None:
                await self._attend(self._child)
            ends = 0 if loop.time() - began_s >= _LONG_LIFE_S else ends + 1  # real time: as above
            await asyncio.sleep(_PAUSES_S[min(ends, len(_PAUSES_S) - 1)])  # real time: as above
            if self._is_draining:
                return
            try:
                await self.start()
            except OSError as error:
                self._note_end(str(error))

    def use(self) -> None:
        """Send the child the settings after a reload.

        A child that cannot use them ends, and the next child starts with them.
        """
        if self._child is not None:
            self._child.channel.send(encode(self.setup()))

    def tell(self) -> None:
        """Send the child how much mail is accepted now."""
        if self._child is not None:
            self._child.tell(self.load())

    def hand_on(self, listener: int, connection: socket.socket, owner: SessionOwner) -> None:
        """Give the child a connection, which is closed here. `listener` is a place in Setup."""
        child = self._child
        if child is not None and child.sessions.total >= _SESSIONS_MAX:
            child.end(f"it has {_SESSIONS_MAX} sessions, and ends none")
        if child is None or child.ended.done():
            connection.close()
            return
        number = child.sessions.begin(owner)
        child.send(NewConnection(number, listener, owner.ip, owner.is_trusted), connection.detach())

    async def drain(self, grace_s: float) -> None:
        """End the sessions, then the child."""
        self._is_draining = True
        if (child := self._child) is not None:
            child.channel.send(encode(Drain(grace_s)))
            await asyncio.wait({child.ended}, timeout=grace_s + _LAST_S)  # real time: clients
            await child.kill()
            await child.sessions.finish(_COMMIT_S)

    async def _attend(self, child: "_Child") -> None:
        """Send the load to the child until it ends."""
        while not child.ended.done():
            await asyncio.wait({child.ended}, timeout=_TICK_S)  # real time: it may end
            self.tell()
            self._ticks_waited += bool(self._reason)
            if self._ticks_waited > _UNANSWERED_MAX:
                child.end(f"it has taken no connection for {_UNANSWERED_MAX * _TICK_S:g} seconds")
        self._child = None
        self._wait("the process of the SMTP sessions ended")
        reason = f"{child.ended.result()}; {await child.kill()}"
        if not self._is_draining:
            self._note_end(f"the process of the SMTP sessions ended: {reason}")

    def _note_end(self, reason: str) -> None:
        _log.error("SMTP waits", error=reason)
        self._wait(reason)

    def _wait(self, reason: str) -> None:
        """Let clients wait in the backlog of the listeners; or, if `reason` is "", accept them."""
        self._reason, self._ticks_waited = reason, 0
        for accept in self.accept:
            accept(not reason)


class _Child:
    """One child, with its sockets and the sessions that it has."""

    def __init__(self, words: Sequence[str], *, on_room: Callable[[bool], None]) -> None:
        """Start the child. `on_room` is called as by PacketSender. Raises OSError."""
        loop = asyncio.get_running_loop()
        ours, theirs = packet_pair()
        try:
            self.process = ChildProcess(
                "relay.transport.gate.child",
                str(theirs.fileno()),
                *words,
                descriptors=[theirs.fileno()],
                has_log=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.ended: asyncio.Future[str] = loop.create_future()
        self._ready: asyncio.Future[Ready] = loop.create_future()
        self.unanswered = 0  # ticks
        self.full: tuple[int, ...] = ()  # as in Ready
        self.sessions = SessionsOfChild(self.send, self._note_ready)
        self.channel = self.sessions.channel = FrameChannel(self.sessions.hear, self.end)
        self._packets = PacketSender(ours, on_room=on_room, on_end=self.end)

    async def started(self, setup: Setup, load: LoadState) -> "_Child":
        """Return the child as soon as it uses `setup`. Raises OSError."""
        self.process.socket.setblocking(False)
        try:
            async with asyncio.timeout(_START_S):  # real time: a process starts
                await asyncio.get_running_loop().create_unix_connection(
                    lambda: self.channel, sock=self.process.socket
                )
                self.channel.send(encode(setup))
                missing = (await self._ready).missing
        except (TimeoutError, OSError) as error:
            reason = str(error) or f"it was not ready within {_START_S:g} seconds"
            raise OSError(f"{reason}; {await self.kill()}") from None
        self.tell(load)
        pid, lacks = self.process.process.pid, " ".join(missing) or "nothing"
        _log.info("SMTP sessions have a process", pid=pid, sandbox_lacks=lacks)
        return self

    def send(self, packet: Packet, descriptor: int) -> None:
        """Send a packet with a descriptor, which is closed here."""
        self._packets.send(encode(packet), descriptor)

    def tell(self, load: LoadState) -> None:
        """Send the child how much mail is accepted now; it has to answer."""
        self.channel.send(encode(load))
        self.unanswered += 1
        if self.unanswered > _UNANSWERED_MAX:
            self.end(f"it has not answered for {_UNANSWERED_MAX * _TICK_S:g} seconds")

    def _note_ready(self, frame: Ready) -> None:
        self.unanswered, self.full = 0, frame.full
        for bound, (count, heaviest) in frame.refused.items():
            if bound in REFUSALS.counts:
                REFUSALS.add(bound, heaviest, count)
        if not self._ready.done():
            self._ready.set_result(frame)

    def end(self, reason: str) -> None:
        """Record that the child has ended, or has to end."""
        if not self.ended.done():
            self.ended.set_result(reason)
            if not self._ready.done():
                self._ready.set_exception(OSError(reason))
            self.sessions.end()

    async def kill(self) -> str:
        """Kill the child, and reap it; return how it ended, also if it ended before."""
        self.channel.close()
        self._packets.close()
        self.process.process.kill()
        await asyncio.to_thread(self.process.has_ended, _LAST_S)
        return self.process.how_it_ended()
