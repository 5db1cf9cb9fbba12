"""Remote mail servers for tests that are not coroutines: RemoteMx on a loop in a thread, and their zone.

    with Remotes() as remotes:
        a = remotes.start("a.test", rcpt={"nobody@a.test": "550 5.1.1 no such user"})
        with RelayProcess(remotes) as relay: ...

All listen at the same port, since delivery.port is one; gates are set by open_gate() only. Raises
OSError when no port is free at every address.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import uvloop

from tests.support.dns_server import DnsThread
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import Envelope, RemoteMx

T = TypeVar("T")
_TRIES = 20
_FIRST_HOST = 11


class Remotes:
    """A DNS server and the MX hosts in its zone."""

    def __init__(self) -> None:
        self.dns = DnsThread()
        self.port = 0
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.servers: list[RemoteMx] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self.dns.__enter__()
        return self

    def __exit__(self, *why: object) -> None:
        for server in self.servers:
            self.run(server.__aexit__(*why))
        self.dns.__exit__(*why)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, domain: str, **options: Any) -> RemoteMx:
        """Start the MX host of `domain` and put both into the zone."""
        host = f"127.0.0.{_FIRST_HOST + len(self.servers)}"
        server = self._listen(host, options)
        self.dns.zone[domain] = {"MX": [f"10 mx.{domain}."]}
        self.dns.zone[f"mx.{domain}"] = {"A": [host]}
        self.servers.append(server)
        return server

    def relay(self, **options: Any) -> RelayProcess:
        """A relay, not started yet, that asks this DNS server and delivers to these hosts."""
        return RelayProcess(self, **options)

    def gate(self) -> asyncio.Event:
        """A gate for RemoteMx(gates=...), closed."""
        return asyncio.Event()

    def open_gate(self, gate: asyncio.Event) -> None:
        """Let everybody through who waits at `gate`."""
        self._loop.call_soon_threadsafe(gate.set)

    def hang_up(self, server: RemoteMx) -> None:
        """Close every connection to `server`."""
        self._loop.call_soon_threadsafe(server.hang_up)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the servers' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _listen(self, host: str, options: dict[str, Any]) -> RemoteMx:
        for _ in range(_TRIES):
            server = RemoteMx(host=host, port=self.port, **options)
            with contextlib.suppress(OSError):
                self.run(server.__aenter__())
                self.port = server.port
                return server
            assert not self.servers, f"port {self.port} is taken at {host}"
        raise OSError(f"no port is free at {host}")


def received(server: RemoteMx, address: str) -> Envelope:
    """Wait for the message that `server` took for `address`; there must be one only."""
    found = until(f"{server.host} has mail for {address}", lambda: server.received(address))
    assert len(found) == 1, f"{len(found)} messages for {address}"
    return found[0]
