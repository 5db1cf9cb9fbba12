"""The `relay` command: a module per verb, no logic of its own.

On the path: in front of app; the shell starts here.
Touches: arguments, stdout, stderr, exit codes. Promises: exit codes are sysexits; facts go to
    stdout,
everything else to stderr; no traceback reaches a user.
"""

from relay.cli.main import main

__all__ = ["main"]
