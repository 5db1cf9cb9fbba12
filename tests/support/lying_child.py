"""A child of the gate that the test itself is, and an owner with real services around it."""

import asyncio
import dataclasses
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from relay.base.blocks import BodyDisk
from relay.base.clock import SystemClock
from relay.base.message.envelope import Envelope, ForwardPath
from relay.base.pressure import PressureState
from relay.base.settings.tree import SmtpListener
from relay.base.socket_address import Address
from relay.store.spool.sqlite.content_files import IncomingFile
from relay.transport.gate import keeper as keeper_module
from relay.transport.gate import wire
from relay.transport.gate.frames import receive_descriptor
from relay.transport.gate.keeper import GateKeeper
from relay.transport.ingress.esmtp_parameters import MailArgument
from relay.transport.ingress.session_client import OfferedMail, SessionClaims
from relay.transport.ingress.smtp_server import SmtpServer
from tests.support.ingress import FakeAccounts, MemorySpool, Relay

T = TypeVar("T")
STRANGER, LOCAL, HELLO = "stranger@else.test", "bob@example.test", b"Subject: x\r\n\r\nx\r\n"
WORDS = ('{"log": "json"}',)
WAIT_S = 120.0  # real time: of what comes


def framed(frame: Any) -> bytes:
    octets = wire.encode(frame)
    return len(octets).to_bytes(4, "big") + octets


def check_sender(session: int, call: int, sender: str = STRANGER) -> wire.CheckSender:
    return wire.CheckSender(session, call, sender)


def check_recipient(session: int, call: int, to: str = LOCAL) -> wire.CheckRecipient:
    return wire.CheckRecipient(session, call, to, STRANGER, 0)


def accept(
    session: int,
    call: int,
    *,
    sender: str = STRANGER,
    to: str = LOCAL,
    helo: str = "client.test",
    ret: str = "",
    body: wire.WrittenBody | None = None,
) -> wire.Accept:
    mail, paths = MailArgument(Envelope(sender, ret=ret)), [ForwardPath(to)] if to else []
    return wire.Accept(session, call, OfferedMail(mail, paths, SessionClaims(helo)), HELLO, body)


class Child:
    """What GateKeeper takes for its process. The test reads its frames and packets."""

    started: ClassVar[list["Child"]] = []
    is_quiet = False  # it says nothing by itself

    def __init__(self, _module: str, packets: str, *_words: str, **_: object) -> None:
        self.socket, self._frames = socket.socketpair()
        self._frames.setblocking(False)
        self._packets = socket.socket(fileno=os.dup(int(packets)))
        self.process = SimpleNamespace(pid=os.getpid(), kill=self.die)
        self.calls = 0
        self._begun = bytearray()
        self.started.append(self)
        if not self.is_quiet:
            self.say(wire.Ready(()))

    def has_ended(self, _wait_s: float = 0) -> bool:
        return self._frames.fileno() < 0

    def how_it_ended(self) -> str:
        return "it ended"

    def die(self) -> None:
        self._frames.close()
        self._packets.close()

    def say_octets(self, octets: bytes) -> None:
        self._frames.setblocking(True)
        self._frames.sendall(octets)
        self._frames.setblocking(False)

    def say(self, *frames: Any) -> None:
        self.say_octets(b"".join(map(framed, frames)))

    async def hear(self, kind: type[T]) -> T:
        """The next frame of a kind."""
        while True:
            for frame in self._heard():
                if isinstance(frame, kind):
                    return frame
            octets = await asyncio.wait_for(
                asyncio.get_running_loop().sock_recv(self._frames, 1 << 16), WAIT_S
            )
            assert octets, "the owner has closed its socket"
            self._begun += octets

    def _heard(self) -> Iterator[Any]:
        while len(self._begun) >= 4 + (size := int.from_bytes(self._begun[:4], "big")):
            octets = bytes(self._begun[4 : 4 + size])
            del self._begun[: 4 + size]
            yield wire.decode_from_owner(octets)

    async def ask(self, call: Callable[[int], Any]) -> Any:
        """What the answer to a call says."""
        self.calls += 1
        self.say(call(self.calls))
        answer = await self.hear(wire.CallAnswer)
        assert answer.call == self.calls
        return "failed" if answer.has_failed else msgspec.msgpack.decode(answer.value)

    async def packet(self, kind: type[T]) -> tuple[T, int]:
        """The next packet, with its descriptor."""
        async with asyncio.timeout(WAIT_S):
            while (found := receive_descriptor(self._packets)) is None:
                await asyncio.sleep(0.001)
        packet = wire.decode_packet(found[0])
        assert isinstance(packet, kind)
        assert found[1] is not None
        return packet, found[1]


@dataclass
class Owner:
    """A keeper, a listener, and what they have taken."""

    relay: Relay
    keeper: GateKeeper
    server: SmtpServer
    clients: list[socket.socket] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    folder: Path = Path()

    @property
    def reason(self) -> str:
        """Why there is no child, or what it does not do."""
        return self.keeper.fault

    @property
    def child(self) -> Child:
        return Child.started[-1]

    @property
    def pid(self) -> int:
        """That of the real child."""
        assert self.keeper._child is not None
        return self.keeper._child.process.process.pid

    async def client(self) -> socket.socket:
        """A connection."""
        place = (self.server.address.host, self.server.address.port)
        self.clients.append(await asyncio.to_thread(socket.create_connection, place))
        return self.clients[-1]

    async def session(self, child: Child | None = None) -> int:
        """The number of a new session."""
        await self.client()
        told, descriptor = await (child or self.child).packet(wire.NewConnection)
        self.clients.append(socket.socket(fileno=descriptor))
        return told.session

    async def ended(self, child: Child) -> None:
        """Wait until a child is ended, and another one has its place."""
        async with asyncio.timeout(WAIT_S):
            while child is self.child or self.reason or self.keeper._child is None:
                await asyncio.sleep(0.001)
        assert child.has_ended()

    async def accepts(self) -> None:
        """A good child hands a message over."""
        before = len(self.relay.spool.accepted)
        number, child = await self.session(), self.child
        assert await child.ask(lambda call: check_sender(number, call)) == ""
        await child.ask(lambda call: check_recipient(number, call))
        reply = await child.ask(lambda call: accept(number, call))
        assert reply["reply"].startswith("250 ")
        assert len(self.relay.spool.accepted) == before + 1


@dataclass
class SpoolWithFiles(MemorySpool):
    """Bodies are files, as those of a real one."""

    folder: Path = Path()

    def incoming_body(self) -> IncomingFile:
        self.arrivals.append(None)
        path = self.folder / f"body-{len(self.arrivals)}"
        return IncomingFile(path, BodyDisk(SystemClock(), lambda: 0.0, lambda _size: None))


@asynccontextmanager
async def owner_of(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    child: type | None = Child,
    *,
    accounts: FakeAccounts | None = None,
    **listener: Any,
) -> AsyncIterator[Owner]:
    """An owner that serves; `child` None: the real one."""
    Child.started.clear()
    if child is not None:
        monkeypatch.setattr(keeper_module, "ChildProcess", child)
    monkeypatch.setattr(keeper_module, "_PAUSES_S", (0.0, 0.001, 0.002))
    relay = Relay(spool=SpoolWithFiles(folder=folder), accounts=accounts or FakeAccounts())
    settings = SmtpListener(**({"listen": Address("127.0.0.1", 0)} | listener))
    told = dataclasses.replace(settings, trusted_networks=())
    setup = wire.Setup(
        "relay.example.test",
        [wire.ListenerSetup(told, [], requires_tls=False, offers_auth_in_clear=True)],
    )
    keeper = GateKeeper(
        words=WORDS,
        setup=lambda: setup,
        load=lambda: wire.LoadState(PressureState(), ""),
    )
    server = relay.server(elsewhere=partial(keeper.hand_on, 0), **listener)
    owner = Owner(relay, keeper, server, folder=folder)
    keeper.accept.append(server.accept)
    await keeper.start()
    await server.start()
    running = asyncio.create_task(keeper.run())
    try:
        yield owner
    finally:
        running.cancel()
        await asyncio.wait({running})
        if keeper._child is not None:
            await keeper._child.kill()
        server.stop_listening()
        for one in Child.started:
            one.die()
        for client in (*owner.clients, *owner.writers):
            client.close()
