"""Work in threads of the test's process, and servers of the standard library."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


# The status, header fields and body of what a path gives to a request with these header fields.
Answer = tuple[int, Mapping[str, str], bytes]


@contextmanager
def http_origin(answer: Callable[[str, Message], Answer]) -> Iterator[str]:
    """Answer each GET until the block ends; yield the URL without a path."""

    class Handler(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, fields, body = answer(self.path, self.headers)
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with in_thread(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


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
