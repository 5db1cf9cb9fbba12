"""Work in threads of the test's process, and servers of the standard library."""

import threading
from collections.abc import Callable, Iterable, Iterator
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


@contextmanager
def in_threads(
    work: Iterable[Callable[[], object]], *, over: threading.Event | None = None
) -> Iterator[None]:
    """Do all this at once until the block ends, which sets `over` and waits for each."""
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if over is not None:
            over.set()
        for thread in threads:
            thread.join()
