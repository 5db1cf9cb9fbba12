"""Conversion functions that fail as real ones could; the Subject says how.

Pickup's tests use them in place of relay.formats.convert.convert; the child processes import them.
"""

import os
import signal
import sys
import time

from relay.base.message.content import Octets
from relay.formats.convert import ConvertedMessage
from relay.formats.convert import convert as convert_well

HANGS_S = 30
calls_here: list[str] = []


def convert(draft: bytes | Octets, *, now_us: int, hostname: str) -> ConvertedMessage:
    """Crash, hang or raise."""
    content = draft if isinstance(draft, bytes) else draft.read(0, draft.size)
    subject = content.partition(b"Subject: ")[2].partition(b"\r\n")[0]
    if subject == b"crash" and _in_a_child():
        os.kill(os.getpid(), signal.SIGSEGV)
    if subject in (b"raise", b"crash"):
        raise ZeroDivisionError("an internal error")
    for _ in range(HANGS_S * 100 if subject == b"hang" else 0):
        time.sleep(0.01)
    return convert_well(draft, now_us=now_us, hostname=hostname)


def only_in_a_child(draft: bytes | Octets, *, now_us: int, hostname: str) -> ConvertedMessage:
    """Record what is converted outside of a child process."""
    if not _in_a_child():
        calls_here.append(hostname)
    return convert(draft, now_us=now_us, hostname=hostname)


def _in_a_child() -> bool:
    return "relay.submission.pickup.conversion_child" in sys.orig_argv
