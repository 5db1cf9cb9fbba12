"""A command of the system that ends by itself, and what it printed."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_command(
    words: str | Sequence[str | Path],
    *,
    timeout_s: float = 300,
    check: bool = False,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """Run a command without input; return its exit code and its text.

    `options` are those of subprocess.run. With `check`, another code than 0 raises
    CalledProcessError.
    """
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        words, capture_output=True, text=True, timeout=timeout_s, check=check, **options
    )
