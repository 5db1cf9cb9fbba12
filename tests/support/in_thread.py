"""Servers of the standard library, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import BaseServer
from typing import Self, TypeVar

Server = TypeVar("Server", bound=BaseServer)


class Quiet:
    """A handler of requests that writes no log."""

    def log_message(self, *_: object) -> None:
        pass


class InThread:
    """An HTTP server that runs in a thread of this process until the block ends."""

    def serve(self, server: BaseServer) -> None:
        """Answer requests from now on."""
        self._served = server
        self._thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening: the port refuses connections from now on."""
        self._served.shutdown()
        self._served.server_close()
        self._thread.join()


@contextmanager
def in_thread(server: Server) -> Iterator[Server]:
    """Serve until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
