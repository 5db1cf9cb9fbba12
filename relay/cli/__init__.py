"""The `relay` command: options and output of each verb, usually one module for a verb.

`wait` is in `trace`. What a verb does is in relay.commands. Exit codes are those of sysexits(3).
Facts are printed to stdout, everything else to stderr. The user never gets a traceback, not even
after Ctrl-C while modules are loaded.
"""

import gc
import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_COLLECT_AFTER = 50_000  # objects: importing modules creates many and little garbage


def main() -> None:
    """Run the command line and exit."""
    gc.set_threshold(_COLLECT_AFTER)
    try:
        from relay.cli.root import run  # noqa: PLC0415 - inside the try

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


__all__ = ["main"]
