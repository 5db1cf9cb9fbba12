"""Exit codes, and the error that carries one.

On the path: every verb ends through these.
Holds: the numbers are sysexits.h's.
Fails: never.
Standards: sysexits(3).
"""

from enum import IntEnum

INTERRUPTED = 130  # as shells have it for SIGINT


class Exit(IntEnum):
    """sysexits(3)."""

    OK = 0
    USAGE = 64
    DATA = 65
    UNAVAILABLE = 69
    BUG = 70
    TRY_LATER = 75
    NO_PERMISSION = 77
    CONFIGURATION = 78


class Ended(Exception):  # noqa: N818 - an end, not always an error
    """End the command with `code`, after `text` on stderr."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(text)
        self.code = code
