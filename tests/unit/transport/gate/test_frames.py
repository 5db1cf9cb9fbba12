"""Frames and descriptors between the processes of the gate, on real sockets."""

import asyncio
import os
import random
import socket
from collections.abc import Callable

import pytest

from relay.transport.gate.frames import FrameChannel, PacketSender, packet_pair, receive_descriptor
from tests.support.tables import each_row


class End:
    """One end of a channel, with what it has received."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()
        self.channel = FrameChannel(self._take, self.ended.set_result)

    def _take(self, frame: bytes) -> None:
        if frame == b"not a call":
            raise ValueError("found no call")
        self.frames.append(frame)
        self.came.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for frames."""
        async with asyncio.timeout(120):  # real time: two sockets
            while not is_true():
                self.came.clear()
                await self.came.wait()


async def _end_on(sock: socket.socket) -> End:
    end = End()
    await asyncio.get_running_loop().create_unix_connection(lambda: end.channel, sock=sock)
    return end


async def _pair() -> tuple[End, End]:
    ours, theirs = socket.socketpair()
    return await _end_on(ours), await _end_on(theirs)


@each_row("seed", range(5))
async def test_frames_may_be_cut_anywhere(seed: int) -> None:
    rng = random.Random(seed)
    end = End()
    frames = [rng.randbytes(rng.choice((0, 1, 3, 50, 400))) for _ in range(200)]
    octets = b"".join(len(one).to_bytes(4, "big") + one for one in frames)
    while octets:
        cut = rng.choice((1, 2, 5, 30, 300))
        end.channel.data_received(octets[:cut])
        octets = octets[cut:]
    assert end.frames == frames


async def test_who_sends_waits_for_an_end_that_does_not_read() -> None:
    ours, theirs = await _pair()
    theirs.channel.read(goes_on=False)
    count = 0
    while True:
        ours.channel.send(bytes(100_000))
        ours.channel.flush()
        count += 1
        room = asyncio.ensure_future(ours.channel.room())
        await asyncio.sleep(0)
        if not room.done():
            break
    assert 0 < ours.channel.unread_bytes < 2_000_000
    assert not theirs.frames
    theirs.channel.read(goes_on=True)
    await asyncio.wait_for(room, 120)
    await theirs.until(lambda: len(theirs.frames) == count)
    ours.channel.close()


async def test_descriptors_arrive_in_their_order_and_wait_for_an_end_that_reads_none() -> None:
    ours, theirs = packet_pair()
    has_room: list[bool] = []
    sender = PacketSender(ours, on_room=has_room.append, on_end=pytest.fail)
    file, count = os.memfd_create("a body"), 0
    while not has_room:
        sender.send(b"%d" % count, os.dup(file))
        count += 1
    assert has_room == [False]
    for number in range(count):
        while (found := receive_descriptor(theirs)) is None:
            await asyncio.sleep(0)
        octets, descriptor = found
        assert (octets, descriptor is not None) == (b"%d" % number, True)
        assert os.path.samestat(os.fstat(descriptor), os.fstat(file))
        os.close(descriptor)
    assert has_room == [False, True]
    assert receive_descriptor(theirs) is None
    sender.close()
    with pytest.raises(EOFError, match="closed"):
        receive_descriptor(theirs)
    theirs.close()
    os.close(file)


async def test_who_sends_descriptors_hears_that_the_other_end_is_gone() -> None:
    ours, theirs = packet_pair()
    ended: list[str] = []
    sender = PacketSender(ours, on_room=pytest.fail, on_end=ended.append)
    theirs.close()
    file = os.memfd_create("a body")
    sender.send(b"x", file)
    assert ended == ["it takes no packets: Broken pipe"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(file)


async def test_a_packet_whose_descriptor_is_lost_still_arrives() -> None:
    """So it is for a process that has too many open files."""
    ours, theirs = packet_pair()
    ours.send(b"x")
    assert receive_descriptor(theirs) == (b"x", None)
    ours.close()
    theirs.close()
