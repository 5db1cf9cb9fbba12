"""Clients that wait in the backlog of a listener: when they are accepted, and who says why not."""

import asyncio
import os
import resource
import socket

from relay.base import sockets
from relay.base.socket_address import Address
from relay.base.sockets import Acceptor, open_listener
from relay.transport.gate import keeper as keeper_module
from relay.transport.gate.wire import NewConnection, Ready
from tests.support.events import until
from tests.support.logs import capture_logs
from tests.support.lying_child import Child, owner_of

MANY = 400  # the kernel holds fewer packets for one socket
NO_ROOM = "the process of the SMTP sessions takes no more connections"


async def test_clients_wait_while_the_child_takes_none_and_all_are_taken_then(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.01)
    monkeypatch.setattr(keeper_module, "_UNANSWERED_MAX", 1_000_000)
    async with owner_of(tmp_path, monkeypatch) as owner:
        for _ in range(MANY):
            await owner.client()
        await until(lambda: owner.keeper._ticks_waited > 2)
        for _ in range(MANY):
            _, descriptor = await owner.child.packet(NewConnection)
            os.close(descriptor)
        assert owner.keeper._reason == ""
        await owner.accepts()


async def test_a_child_that_answers_and_takes_no_clients_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(keeper_module, "_TICK_S", 0.02)

    async def answer(child: Child) -> None:
        while not child.has_ended():
            child.say(Ready(()))
            await asyncio.sleep(0.01)

    async with owner_of(tmp_path, monkeypatch) as owner:
        child = owner.child
        answering = asyncio.create_task(answer(child))
        for _ in range(MANY):
            await owner.client()
        await until(lambda: owner.reason)
        assert owner.reason == NO_ROOM
        with capture_logs() as logged:
            await owner.ended(child)
        await answering
        assert "it has taken no connection for 1.2 seconds" in logged[0]["error"]
        await owner.accepts()  # who waited is with the next one


async def test_a_listener_without_descriptors_says_so_and_obeys(monkeypatch):
    monkeypatch.setattr(sockets, "_NO_FILES_S", 0.005)
    listener = open_listener(Address("127.0.0.1", 0), backlog=9)
    taken: list[socket.socket] = []
    acceptor = Acceptor(listener.sockets, lambda connection, _: taken.append(connection))
    acceptor.accept(goes_on=True)
    client, before = socket.socket(), resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        client.connect((listener.address.host, listener.address.port))
        await until(lambda: acceptor.fault)
        assert acceptor.fault == "Too many open files"
        acceptor.accept(goes_on=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    await until(lambda: not acceptor.fault)
    assert taken == []
    acceptor.accept(goes_on=True)
    await until(lambda: taken)
    acceptor.close()
    listener.close()
    for one in (client, *taken):
        one.close()
