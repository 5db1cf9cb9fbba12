"""Read the lines of a log file from the last to the first."""

import os
from collections.abc import Iterator
from pathlib import Path

LINE_BYTES_MAX = 512 * 1024  # 1,000 addresses of 320 characters, and the rest
_CHUNK_BYTES = 1 << 20


def lines_backwards(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file from last to first, in bounded memory; skip overlong lines."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # pruned meanwhile
        return
    with file:
        end = file.seek(0, os.SEEK_END)
        rest = b""
        while end > 0:
            start = max(0, end - _CHUNK_BYTES)
            file.seek(start)
            block = file.read(end - start) + rest
            first, _, complete = block.partition(b"\n")
            if start == 0:
                complete, first = block, b""
            yield from reversed(complete.splitlines())
            rest = first + b"\n" if start and len(first) < LINE_BYTES_MAX else b""
            end = start
