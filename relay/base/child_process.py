"""A child process of this program that answers requests on a socket: start it, kill it, reap it.

The socket is its input and output. relay/base/process_limits.py is for the process itself.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

_END_S = 0.1  # between closing its files and its end


class ChildProcess:
    """A process that runs a module of this program; it shares only `socket` with this process."""

    def __init__(
        self, module: str, *words: str, descriptors: Sequence[int] = (), has_log: bool = False
    ) -> None:
        """Start the process. Raises OSError.

        It inherits `descriptors` too, and with `has_log` the standard error of this process.
        """
        self.socket, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-P", "-m", module, *words],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=None if has_log else subprocess.DEVNULL,
                pass_fds=descriptors,
                env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C must not reach it: it ends when its input ends
            )
        except OSError:
            self.socket.close()
            raise
        finally:
            theirs.close()

    def has_ended(self, wait_s: float = 0) -> bool:
        """Return whether it has ended; wait up to `wait_s` for that."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        return self.process.returncode is not None

    def how_it_ended(self) -> str:
        """Return the signal or exit code with which it ended, after it has closed its files."""
        self.has_ended(_END_S)
        code = self.process.returncode
        if code is None:
            return "it ended"
        return f"it ended with signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def end(self) -> None:
        """Kill the process, and reap it."""
        self.process.kill()
        self.socket.close()
        self.process.wait()
