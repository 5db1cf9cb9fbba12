"""The process that converts notes: it can be killed, and its limits are low.

On the path: conversion starts it and asks for one note after the other, step 3.
Holds: it reads notes, writes its answers and nothing else; it ends when its input does. It is the
first that the system kills when memory runs out.
Fails: by its exit code; that a message cannot be sent, or read, is an answer, and so is a fault.
Standards: POSIX setrlimit.
"""

import json
import pickle
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from relay.files import FileOctets
from relay.mime.converted import ConversionError, Converted

READY = b"\n"
LENGTH_BYTES = 8
MEMORY_BYTES_MAX = 1 << 30
_FAULT_CHARACTERS_MAX = 500


# what is made of a note; what is wrong with it; what is wrong with the relay
Answer = tuple[Converted | None, ConversionError | OSError | None, str]


def main(words: Sequence[str]) -> None:
    """Convert notes until the input ends.

    `words`: the function as "module:name", and our host name. A line of the input is a JSON object:
    `path` of a note, `now_us`, and `cpu_s`, the seconds of processor time that there are. The
    answer is its length, and an Answer as pickle writes it.
    """
    for one in (signal.SIGINT, signal.SIGTERM):  # the relay finishes what it has begun
        signal.signal(one, signal.SIG_IGN)
    function, hostname = words
    module, _, name = function.partition(":")
    convert = getattr(import_module(module), name)
    _limit()
    output = sys.stdout.buffer
    output.write(READY)
    output.flush()
    for line in sys.stdin.buffer:
        answer = pickle.dumps(_answer(convert, json.loads(line), hostname))
        output.write(len(answer).to_bytes(LENGTH_BYTES, "big"))
        output.write(answer)
        output.flush()


def _answer(convert: Any, asked: dict[str, Any], hostname: str) -> Answer:
    _limit_processor(asked["cpu_s"])
    path = Path(asked["path"])
    try:
        note = FileOctets(path, 0, path.stat().st_size)
        return convert(note, now_us=asked["now_us"], hostname=hostname), None, ""
    except (ConversionError, OSError) as error:
        return None, error, ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the relay has to know
        return None, None, f"{type(error).__name__}: {error}"[:_FAULT_CHARACTERS_MAX]


def _limit() -> None:
    """Bound what conversions may take. A sandbox may forbid that, the parent kills too."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_processor(seconds: int) -> None:
    """End this process after that many seconds of its time, if no parent is left to kill it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit_s = int(used.ru_utime + used.ru_stime) + seconds + 1
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, hard))


if __name__ == "__main__":
    main(sys.argv[1:])
