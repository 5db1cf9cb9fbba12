"""The process in which a conversion is tried once more: it can be killed, and its limits are low.

On the path: conversion starts one for a note with which a conversion went wrong, step 3.
Holds: it reads the note, writes its answer and nothing else; it dies before the relay does.
Fails: by its exit code; that a message cannot be sent, or read, is an answer.
Standards: POSIX setrlimit.
"""

import os
import pickle
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from relay.files import FileOctets
from relay.message.converted import ConversionError

MEMORY_BYTES_MAX = 1 << 30
_NICE = 10


def main(words: Sequence[str]) -> None:
    """Convert a note; the answer goes to stdout.

    `words`: the function as "module:name", the note's path, the time in µs, our host name, and how
    many seconds of processor time there are.
    """
    function, path, now_us, hostname, cpu_s = words
    module, _, name = function.partition(":")
    convert = getattr(import_module(module), name)
    _limit(int(cpu_s))
    note = FileOctets(Path(path), 0, Path(path).stat().st_size)
    try:
        answer = pickle.dumps(convert(note, now_us=int(now_us), hostname=hostname))
    except (ConversionError, OSError) as error:
        answer = pickle.dumps(error)
    sys.stdout.buffer.write(answer)


def _limit(cpu_s: int) -> None:
    """Bound what the conversion may take. A sandbox may forbid that, the parent kills too."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main(sys.argv[1:])
