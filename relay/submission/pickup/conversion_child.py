"""The child process that converts submissions to MIME: it can be killed, and its limits are low.

It only reads submissions and writes answers, and ends when its input ends. If a message cannot be
converted, a file cannot be read or an internal error occurs, the answer contains the error.
"""

import json
import pickle
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from relay.base.files import FileOctets
from relay.base.process_limits import limit_cpu, limit_this_process
from relay.formats.convert import ConversionError, ConvertedMessage

READY = b"\n"
LENGTH_BYTES = 8
MEMORY_BYTES_MAX = 1 << 30
_FAULT_CHARACTERS_MAX = 500


# the converted message; or an error of the submission; or an internal error
Answer = tuple[ConvertedMessage | None, ConversionError | OSError | None, str]


def main(words: Sequence[str]) -> None:
    """Convert submissions until the input ends.

    `words`: the function as "module:name", and this host's name. A line of the input is a JSON
    object: `path` of a submission, `now_us`, and `cpu_s`, its limit of CPU time in seconds. The
    answer is its length, followed by a pickled Answer.
    """
    limit_this_process(MEMORY_BYTES_MAX)
    function, hostname = words
    module, _, name = function.partition(":")
    convert = getattr(import_module(module), name)
    output = sys.stdout.buffer
    output.write(READY)
    output.flush()
    for line in sys.stdin.buffer:
        answer = pickle.dumps(_answer(convert, json.loads(line), hostname))
        output.write(len(answer).to_bytes(LENGTH_BYTES, "big"))
        output.write(answer)
        output.flush()


def _answer(convert: Any, request: dict[str, Any], hostname: str) -> Answer:
    limit_cpu(request["cpu_s"])
    path = Path(request["path"])
    try:
        pending = FileOctets(path, 0, path.stat().st_size)
        return convert(pending, now_us=request["now_us"], hostname=hostname), None, ""
    except (ConversionError, OSError) as error:
        return None, error, ""
    except Exception as error:  # noqa: BLE001 - any error is an answer
        return None, None, f"{type(error).__name__}: {error}"[:_FAULT_CHARACTERS_MAX]


if __name__ == "__main__":
    main(sys.argv[1:])
