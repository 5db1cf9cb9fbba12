"""TLS from the first octet on (RFC 8314 3.3): the handshake of one connection, then its session.

The TLS server of asyncio and uvloop does not report a handshake that failed.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable

from relay.ingress.smtp_session import TLS_HANDSHAKE_S, SmtpSession, ip_of


class ImplicitTls(asyncio.Protocol):
    """The protocol of a connection until the end of its TLS handshake."""

    def __init__(
        self,
        context: ssl.SSLContext,
        new_session: Callable[[], SmtpSession],
        *,
        handshakes: set[asyncio.Task[None]],
        handshakes_max: int,
        on_failed_handshake: Callable[[str, OSError], None],
    ) -> None:
        """`handshakes` contains the handshake while it lasts; cancelled, it closes the connection.
        With `handshakes_max` of them, a further connection is closed.

        `on_failed_handshake` is called with the address of the client.
        """
        self._context = context
        self._new_session = new_session
        self._handshakes = handshakes
        self._handshakes_max = handshakes_max
        self._on_failed_handshake = on_failed_handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Move the socket to a transport with TLS, before anything was read from it."""
        ip = ip_of(transport)
        if len(self._handshakes) >= self._handshakes_max:
            transport.abort()
            return
        try:
            moved = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:  # no more open files: as if the connection was never accepted
            transport.abort()
            return
        moved.setblocking(False)
        transport.abort()  # closes its own descriptor; the connection stays
        task = asyncio.get_running_loop().create_task(self._shake_hands(moved, ip))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, moved: socket.socket, ip: str) -> None:
        has_begun = False
        try:
            if not await _has_spoken(moved):  # it only looked whether the port is open
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                self._new_session, moved, ssl=self._context,
                ssl_handshake_timeout=TLS_HANDSHAKE_S,  # real time: a client
            )  # fmt: skip
            has_begun = True
        except TimeoutError:
            self._on_failed_handshake(ip, OSError("the client sent nothing"))
        except OSError as error:
            self._on_failed_handshake(ip, error)
        finally:
            if not has_begun:
                moved.close()


async def _has_spoken(moved: socket.socket) -> bool:
    """Wait for the first octet; return False if the client disconnects. Raises OSError."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(moved, readable.set)
    try:
        async with asyncio.timeout(TLS_HANDSHAKE_S):  # real time: a client
            await readable.wait()
    finally:
        loop.remove_reader(moved)
    try:
        return bool(moved.recv(1, socket.MSG_PEEK))
    except ConnectionResetError:
        return False
