"""The `relay` command: a module per verb, no logic of its own.

On the path: in front of app; the shell starts here. Touches: arguments, stdout, stderr, exit
codes. Promises: exit codes are sysexits; facts go to stdout, everything else to stderr; no
traceback reaches a user, not even when Ctrl-C comes while modules are still loading.
"""

import gc
import sys

_INTERRUPTED = 130  # as shells have it for SIGINT
_COLLECT_AFTER = 50_000  # objects: loading modules makes many, and next to no garbage


def main() -> None:
    """Run the command line and exit."""
    gc.set_threshold(_COLLECT_AFTER)
    try:
        from relay.cli.root import run  # noqa: PLC0415 - within reach of the except

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


__all__ = ["main"]
