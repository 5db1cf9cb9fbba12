"""Pseudo-terminals; where there are none, the test is skipped. See pty(7)."""

import os
from contextlib import suppress

import pytest


def open_terminal() -> tuple[int, int]:
    """Return the descriptors of its two ends: the test's, and the program's."""
    try:
        return os.openpty()
    except OSError as error:
        pytest.skip(f"/dev/ptmx opens no terminal: {error.strerror}")


def read_to_end(controller: int) -> bytes:
    """Return what programs write until none has the other end; close this one."""
    shown = b""
    with suppress(OSError):  # the end of a terminal
        while block := os.read(controller, 65536):
            shown += block
    os.close(controller)
    return shown
