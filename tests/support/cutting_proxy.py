"""A TCP proxy in front of a PostgreSQL server that loses connections at chosen places.

    with CuttingProxy(("127.0.0.1", server.port)) as proxy:
        url = ... the port of proxy.address ...
        proxy.lose("writer", Cut.REPLY)

The purpose of a connection is the end of its application_name.
"""

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Self

_BLOCK = 65536
_ERROR = b"SERROR\0VERROR\0C0A000\0Mit is not supported here\0\0"
# ErrorResponse and ReadyForQuery, as a pooler answers what it does not pass on.
_NOT_SUPPORTED = b"E" + (len(_ERROR) + 4).to_bytes(4) + _ERROR + b"Z\0\0\0\5I"


class Cut(Enum):
    """What is lost of what a connection sends, and of its answer."""

    REQUEST = "the request"  # the server never gets it
    REPLY = "the reply"  # the server has answered it
    CLIENT = "the client"  # the server gets the request, and does not know that its client is gone
    REQUEST_AND_CLIENT = "the request, and the server does not know"


@dataclass
class _Loss:
    purpose: str
    cut: Cut
    after: int  # what it sends before
    of: bytes  # only what contains these octets counts
    is_last: bool  # no connection is accepted any more


class CuttingProxy:
    """The proxy; it listens on a free loopback port until it is closed."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self.is_refusing = False  # new connections
        self.refused = b""  # a statement with these octets is answered with an error
        self.losses = 0  # connections that were cut
        self._next: list[_Loss] = []
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        with self._lock:
            for one in self._open:
                _close(one)

    def lose(
        self, purpose: str, cut: Cut, *, after: int = 0, of: bytes = b"", is_last: bool = False
    ) -> None:
        """Cut the connection of this purpose when it has sent something `after` times, with these
        octets in it. With `is_last` no other connection is accepted then.
        """
        with self._lock:
            self._next.append(_Loss(purpose, cut, after, of, is_last))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.is_refusing:
                _close(client)
                continue
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                _close(client)
                continue
            with self._lock:
                self._open += [client, server]
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        purpose = ""
        silenced = threading.Event()
        answered = threading.Event()
        pump = threading.Thread(
            target=self._answer, args=(client, server, silenced, answered), daemon=True
        )
        pump.start()
        try:
            while octets := client.recv(_BLOCK):
                if not purpose and b"application_name\0" in octets:
                    name = octets.partition(b"application_name\0")[2].partition(b"\0")[0].decode()
                    purpose = name.rpartition(" ")[2]
                if self.refused and self.refused in octets:
                    client.sendall(_NOT_SUPPORTED)
                    continue
                if (loss := self._take(purpose, octets)) is None:
                    server.sendall(octets)
                    continue
                self.losses += 1
                self.is_refusing = loss.is_last
                silenced.set()
                if loss.cut in (Cut.REPLY, Cut.CLIENT):
                    server.sendall(octets)
                if loss.cut is Cut.REPLY:
                    answered.wait(10)
                _close(client)
                if loss.cut in (Cut.REQUEST, Cut.REPLY):
                    _close(server)
                return
        except OSError:
            pass
        _close(server)

    def _answer(
        self,
        client: socket.socket,
        server: socket.socket,
        silenced: threading.Event,
        answered: threading.Event,
    ) -> None:
        try:
            while octets := server.recv(_BLOCK):
                if silenced.is_set():
                    answered.set()
                else:
                    client.sendall(octets)
        except OSError:
            pass
        answered.set()
        _close(client)

    def _take(self, purpose: str, octets: bytes) -> _Loss | None:
        with self._lock:
            for one in self._next:
                if one.purpose != purpose or one.of not in octets:
                    continue
                if not one.after:
                    self._next.remove(one)
                    return one
                one.after -= 1
        return None


def _close(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
