"""A service manager as systemd is for a unit of Type=notify: it hears what a process says of itself.

    with ServiceManager(watchdog_s=1) as manager:
        ... start a process with manager.environment ...
        manager.until("READY=1")
        assert manager.hears_life()
        assert manager.hears_no_life()

See sd_notify(3) and sd_watchdog_enabled(3).
"""

import queue
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.disks import short_place

_SIGN = "WATCHDOG=1"
WAIT_S = 120.0


class ServiceManager:
    """Its socket, and all that it has heard, in the order of arrival."""

    def __init__(self, *, watchdog_s: float = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(dir=short_place())
        self._watchdog_s = watchdog_s
        self.address = str(Path(self._folder.name) / "notify")
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._messages: queue.Queue[list[str]] = queue.Queue()

    def __enter__(self) -> Self:
        self._socket.bind(self.address)
        threading.Thread(target=self._receive, daemon=True).start()
        return self

    def _receive(self) -> None:
        with suppress(OSError):  # it is closed
            while octets := self._socket.recv(65536):
                self._messages.put(octets.decode().split("\n"))

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # ends the thread
        self._socket.close()
        self._folder.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        watchdog = {"WATCHDOG_USEC": str(int(self._watchdog_s * 1_000_000))}
        return {"NOTIFY_SOCKET": self.address} | (watchdog if self._watchdog_s else {})

    def listen(self, timeout_s: float = WAIT_S) -> list[str]:
        """Wait for a message and return its lines. Raises TimeoutError."""
        try:
            lines = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError("the service manager hears nothing") from None
        self.heard += lines
        return lines

    def until(self, line: str) -> list[str]:
        """Wait for a message with this line; return its lines."""
        deadline_s = time.monotonic() + WAIT_S
        while line not in (lines := self.listen(max(0.01, deadline_s - time.monotonic()))):
            pass
        return lines

    def hears_life(self, signs: int = 3) -> bool:
        """Whether so many signs of life come, each in time."""
        for _ in range(signs):
            try:
                while _SIGN not in self.listen(self._watchdog_s):
                    pass
            except TimeoutError:
                return False
        return True

    def hears_no_life(self) -> bool:
        """Whether a sign of life comes too late, when what was said before has been heard."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            try:
                self.listen(self._watchdog_s)
            except TimeoutError:
                return True
        return False
