"""A child process that answers what becomes of what it attempts."""

import os
import socket
import sys
from collections.abc import Sequence

from msgspec import Struct

from relay.base.child_process import ChildRequest, ChildTask

MEMORY_BYTES_MAX = 200 << 20


class Attempt(ChildRequest, frozen=True):
    """What is attempted, by its name in ATTEMPTS."""

    name: str


class Outcome(Struct, frozen=True):
    """What it gave, "done", or the error."""

    text: str


def _spin() -> None:
    while True:
        pass


ATTEMPTS = {
    "write": lambda: os.open(os.devnull, os.O_WRONLY),
    "read": lambda: os.open(os.devnull, os.O_RDONLY),
    "list": lambda: os.scandir("/"),
    "connect": lambda: socket.create_connection(("127.0.0.1", 25)),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "exec": lambda: os.execv(sys.executable, [sys.executable]),
    "fork": lambda: os.fork() or os._exit(0),
    "signal": lambda: os.kill(os.getppid(), 0),
    "codec": lambda: b"\xc1".decode("koi8-r"),
    "memory": lambda: bytes(MEMORY_BYTES_MAX),
    "spin": _spin,
}


def answer(attempt: Attempt) -> Outcome:
    try:
        given = ATTEMPTS[attempt.name]()
    except (OSError, MemoryError) as error:
        return Outcome(getattr(error, "strerror", "no memory"))
    return Outcome(given if isinstance(given, str) else "done")


def task(words: Sequence[str]) -> ChildTask:
    return ChildTask(Attempt, answer, MEMORY_BYTES_MAX, opens_files=bool(words))
