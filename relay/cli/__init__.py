"""The `relay` command: a module per verb, no logic of its own.

On the path: in front of app; the shell starts here.
Touches: arguments, stdout, stderr, exit codes. Promises: exit codes are sysexits; facts go to
stdout, everything else to stderr; no traceback reaches a user, not even when Ctrl-C comes while
modules are still loading.
"""

import sys

_INTERRUPTED = 130  # as shells have it for SIGINT


def main() -> None:
    """Run the command line and exit."""
    try:
        from relay.cli.root import run  # noqa: PLC0415 - within reach of the except

        code = run()
    except KeyboardInterrupt:
        code = _INTERRUPTED
    sys.exit(code)


__all__ = ["main"]
