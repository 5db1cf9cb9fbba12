"""Frames between the two processes of the gate, and descriptors of files and connections.

A frame is a length of four octets and that many octets, on a Unix stream socket. A packet is a few
octets with one descriptor, on a Unix socket of packets (unix(7), SCM_RIGHTS). Both are bounded in
both directions: a sender waits while the other side does not read.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

LENGTH_BYTES = 4
FRAME_BYTES_MAX = 32 * 1024 * 1024  # a message in memory, and a long list of recipients
_PACKET_BYTES_MAX = 4096
_CLOSE_ON_EXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # Linux


class FrameChannel(asyncio.Protocol):
    """One end of a stream of frames. Frames of one turn of the loop are sent in one write."""

    def __init__(self, on_frame: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        """`on_end` is called once, with the reason, when the other end closes or breaks the rules.

        Nothing is received after that. `on_frame` raises ValueError for a frame that breaks them.
        """
        self._on_frame, self._on_end = on_frame, on_end
        self._begun = bytearray()  # of a frame
        self._waiting: list[bytes] = []  # to be written
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_full = False  # senders have to wait for room()
        self._has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

    def connection_lost(self, error: Exception | None) -> None:
        """End."""
        self.resume_writing()
        self._end(str(error or "the other process closed its socket"))

    def data_received(self, data: bytes) -> None:
        """Split the octets into frames, and pass them on."""
        self._begun += data
        at, have = 0, len(self._begun)
        try:
            while have - at >= LENGTH_BYTES and not self._has_ended:
                end = at + LENGTH_BYTES + _length(self._begun, at)
                if end > have:
                    break
                self._on_frame(bytes(memoryview(self._begun)[at + LENGTH_BYTES : end]))
                at = end
        except ValueError as error:
            self._end(str(error))
        del self._begun[:at]

    def send(self, frame: bytes) -> None:
        """Write a frame at the end of this turn; nothing after the end."""
        if self._has_ended:
            return
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self.flush)
        self._waiting += (len(frame).to_bytes(LENGTH_BYTES, "big"), frame)

    def flush(self) -> None:
        """Write what waits now."""
        waiting, self._waiting = self._waiting, []
        if waiting and self._transport is not None and not self._transport.is_closing():
            # Not writelines(): in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 it does not pause the
            # writer (CVE-2024-12254), so that memory would have no bound.
            self._transport.write(b"".join(waiting))

    async def room(self) -> None:
        """Wait until the other end has read most of what was sent."""
        await self._writable.wait()

    @property
    def unread_bytes(self) -> int:
        """The number of octets that were sent and that the other end has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def pause_writing(self) -> None:
        """Let senders wait."""
        self.is_full = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """Let senders continue."""
        self.is_full = False
        self._writable.set()

    def read(self, *, goes_on: bool) -> None:
        """Receive no more frames after this turn of the loop; or receive them again."""
        if self._transport is None or self._transport.is_closing():
            return
        if goes_on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        """Close this end at once; `on_end` is not called."""
        self._has_ended = True
        if self._transport is not None:
            self._transport.abort()

    def _end(self, reason: str) -> None:
        if not self._has_ended:
            self.close()
            self._on_end(reason)


def _length(begun: bytearray, at: int) -> int:
    length = int.from_bytes(begun[at : at + LENGTH_BYTES], "big")
    if length > FRAME_BYTES_MAX:
        raise ValueError(f"found a frame of {length} octets, expected at most {FRAME_BYTES_MAX}")
    return length


def packet_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a socket of packets, which do not block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


class PacketSender:
    """Sends packets with a descriptor each, in their order.

    Packets wait if the other end has no room; the caller has to stop sending meanwhile.
    """

    def __init__(
        self, end: socket.socket, *, on_room: Callable[[bool], None], on_end: Callable[[str], None]
    ) -> None:
        """`on_room` is called with False when packets begin to wait, with True when none waits any
        more. `on_end` is called if the other end has closed its socket.
        """
        self._end, self._on_room, self._on_end = end, on_room, on_end
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._is_full = False  # _write() is called when there is room

    def send(self, octets: bytes, descriptor: int) -> None:
        """Send a packet, and close the descriptor here."""
        self._waiting.append((octets, descriptor))
        if len(self._waiting) == 1:
            self._write()
            if self._waiting:
                self._is_full = True
                asyncio.get_running_loop().add_writer(self._end.fileno(), self._write)
                self._on_room(False)

    def close(self) -> None:
        """Close the socket, and what was not sent."""
        if self._end.fileno() >= 0:
            asyncio.get_running_loop().remove_writer(self._end.fileno())
        self._end.close()
        while self._waiting:
            os.close(self._waiting.popleft()[1])

    def _write(self) -> None:
        try:
            while self._waiting:
                octets, descriptor = self._waiting[0]
                socket.send_fds(self._end, [octets], [descriptor])
                os.close(descriptor)
                self._waiting.popleft()
        except BlockingIOError:
            return
        except OSError as error:
            self.close()
            self._on_end(f"it takes no packets: {error.strerror}")
            return
        if self._is_full:  # uvloop's remove_writer() does not say whether there was a writer
            self._is_full = False
            asyncio.get_running_loop().remove_writer(self._end.fileno())
            self._on_room(True)


def receive_descriptor(end: socket.socket) -> tuple[bytes, int | None] | None:
    """Return the next packet and its descriptor, or None if no packet waits.

    The caller closes the descriptor. It is None if this process has too many open files. Raises
    EOFError at the end, OSError.
    """
    try:
        octets, descriptors, _, _ = socket.recv_fds(end, _PACKET_BYTES_MAX, 1, _CLOSE_ON_EXEC)
    except BlockingIOError:
        return None
    if not octets:
        raise EOFError("the other process closed its socket")
    return octets, descriptors[0] if descriptors else None
