"""The child of the gate: SMTP sessions and DATA, in a sandbox. The owner decides all else.

The owner starts the child, and the child ends with the owner. If the socket of the owner closes
while messages are handed over, it is unknown whether they were accepted. Their clients get no reply
(RFC 1047); all other clients get 421.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

from relay.base.blocks import BodyDisk
from relay.base.certificates import ServerCertificate
from relay.base.clock import SystemClock
from relay.base.crashpoints import CrashPoints
from relay.base.files import Descriptor, write_all
from relay.base.observe import logs
from relay.base.pressure import Pressure, PressureReason
from relay.base.process_limits import limit_malloc_retention, trim_memory, tune_garbage_collector
from relay.base.sandbox import enter_sandbox, ignore_signals, load_codecs, refuse_io_uring
from relay.base.shares import REFUSALS, Shares
from relay.store.spool.types import SpoolFullError
from relay.transport.gate import wire
from relay.transport.gate.frames import receive_descriptor
from relay.transport.gate.services import OwnerCalls, RemoteOwner
from relay.transport.ingress.listener_role import CONFIGURED
from relay.transport.ingress.message_limits import RateLimits
from relay.transport.ingress.session_client import ListenerDependencies
from relay.transport.ingress.session_limits import SessionLimits
from relay.transport.ingress.smtp_sessions import SmtpSessions

_TRIM_S = 10.0
_log = logs.get_logger("gate")
_LIMITS = SessionLimits(buffered_bytes=SessionLimits().buffered_bytes // 2)  # the owner has a copy


class Child:
    """The state of the process: its sessions, and the settings that the owner sent."""

    def __init__(
        self, packets: socket.socket, *, missing: tuple[str, ...], start: wire.ChildStart
    ) -> None:
        """`missing` names the parts of the sandbox that the kernel does not have."""
        REFUSALS.unsent = {}
        self._packets = packets
        self._missing = missing
        self._clock = SystemClock()
        self._crash = CrashPoints(start.crash_at)
        self._limits = _LIMITS.within(start.memory_bytes)
        self._pressure = Pressure()
        disk = BodyDisk(self._clock, self._commit_s, self._check_room)
        self._calls = OwnerCalls(disk, self._hear, self._end)
        self._channel = self._calls.channel
        self._listeners: list[SmtpSessions] = []
        self._certificates: list[ServerCertificate | None] = []
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._draining: asyncio.Task[None] | None = None

    async def run(self, frames: socket.socket) -> None:
        """Serve until the owner ends, or ends this process."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._packets.fileno(), self._take_packets)
        frames.setblocking(False)
        await loop.create_unix_connection(lambda: self._channel, sock=frames)
        while not (await asyncio.wait({self._ended}, timeout=_TRIM_S))[0]:  # real time: the machine
            await asyncio.to_thread(trim_memory, collect=False)
        loop.remove_reader(self._packets.fileno())
        if self._draining is None:
            _log.info("the process of the SMTP sessions ends", reason=self._ended.result())
            self._calls.give_up()
            await asyncio.gather(*(listener.drain(0) for listener in self._listeners))

    def _commit_s(self) -> float:
        """Return 1.0 if the owner has measured slow commits, else 0.0."""
        return float(self._pressure.state.has(PressureReason.COMMITS))

    def _check_room(self, size_bytes: int) -> None:
        """Raise SpoolFullError if the owner has measured less room than `size_bytes`."""
        room_bytes = self._pressure.state.room_bytes
        if room_bytes is not None and size_bytes > room_bytes:
            raise SpoolFullError("there is no room on the spool's disk")

    def _hear(self, frame: wire.FromOwner) -> None:
        match frame:
            case wire.LoadState(paused=paused):
                self._pressure.state = frame.pressure
                self._pressure.paused = lambda: paused
                self._answer()
            case wire.Setup():
                self._calls.kept = {}
                self._use(frame)
                self._answer()
            case wire.Drain(grace_s=grace_s):
                self._draining = asyncio.get_running_loop().create_task(self._drain(grace_s))

    def _answer(self) -> None:
        servers, refused = enumerate(self._listeners), REFUSALS.unsent or {}
        full = tuple([number for number, server in servers if server.shared.places.is_full()])
        self._channel.send(wire.encode(wire.Ready(self._missing, full, refused)))
        REFUSALS.unsent = {}

    def _take_packets(self) -> None:
        try:
            while (packet := receive_descriptor(self._packets)) is not None:
                octets, number = packet
                match wire.decode_packet(octets):
                    case wire.NewConnection() as connection:
                        self._begin(connection, number)
                    case wire.BodyFile(call=call):
                        file = Descriptor(number) if number is not None else None
                        self._calls.answered(call, file)
        except (OSError, EOFError, ValueError) as error:
            self._end(str(error))

    def _begin(self, new: wire.NewConnection, descriptor: int | None) -> None:
        if descriptor is None:
            self._channel.send(wire.encode(wire.Ended(new.session)))
            return
        family = socket.AF_INET if new.ip else socket.AF_UNIX  # AF_INET serves for AF_INET6 too
        connection = socket.socket(family, socket.SOCK_STREAM, 0, descriptor)
        connection.setblocking(False)
        owner = RemoteOwner(self._calls, new.session, is_trusted=new.is_trusted)
        self._listeners[new.listener].begin(connection, owner.client(new.ip))

    def _use(self, setup: wire.Setup) -> None:
        """Use the settings, which the owner has read and checked."""
        for number, listener in enumerate(setup.listeners):
            files = [_memory_file(pem) for pem in listener.certificates]
            paths = [Path(f"/proc/self/fd/{file.number}") for file in files]
            pairs = [(path, path) for path in paths]  # a file has the chain and the key
            certificate = ServerCertificate(*pairs[0], *pairs[1:]) if pairs else None
            if number < len(self._listeners):
                used = self._certificates[number]
                if certificate is not None and used is not None:
                    used.use(certificate.pairs)
                self._listeners[number].use(listener.settings)
                continue
            self._certificates.append(certificate)
            dependencies = ListenerDependencies(
                listener.settings,
                CONFIGURED[listener.settings.role],
                setup.hostname,
                limits=self._limits,
                budget=Shares("SMTP contents", self._limits.buffered_bytes),
                crash=self._crash,
                pressure=self._pressure,
                rates=RateLimits(self._clock),
                offers_tls=certificate is not None,
                requires_tls=listener.requires_tls,
                offers_auth_in_clear=listener.offers_auth_in_clear,
            )
            context = certificate.context if certificate is not None else None
            self._listeners.append(SmtpSessions(dependencies, tls_context=context))

    async def _drain(self, grace_s: float) -> None:
        await asyncio.gather(*(listener.drain(grace_s) for listener in self._listeners))
        self._channel.flush()
        self._end("drained")

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)


def main(words: Sequence[str]) -> None:
    """Serve the sessions of the owner, whose sockets are standard input and a descriptor.

    `words` are the number of this descriptor, and a ChildStart.
    """
    ignore_signals()
    packets, *start_words = words
    if len(start_words) > 1:  # an owner of 0.5.0, which runs on if its new version does not start
        fields = dict(zip(wire.ChildStart.__struct_fields__, start_words, strict=False))
        start = msgspec.convert(fields, wire.ChildStart)
    else:
        start = msgspec.json.decode(start_words[0], type=wire.ChildStart)
    logs.configure(
        start.log,
        clock=SystemClock(),
        environ_journal_stream=start.journal,
        color=bool(start.color),
        node=start.node,
    )
    load_codecs()
    refuse_io_uring()
    limit_malloc_retention()
    tune_garbage_collector()
    frames = socket.socket(fileno=0)
    there = socket.socket(fileno=int(packets))

    async def serve() -> None:
        # libuv opens /dev/null for its first stream; in the sandbox it would try for each stream.
        first, other = socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=first)
        other.close()
        await Child(there, missing=enter_sandbox(), start=start).run(frames)
        logs.drain()
        os._exit(0)  # closing the loop makes sockets, which the sandbox refuses

    uvloop.run(serve())


def _memory_file(octets: bytes) -> Descriptor:
    file = Descriptor(os.memfd_create("certificate"))
    write_all(file.number, octets)
    return file


if __name__ == "__main__":
    main(sys.argv[1:])
