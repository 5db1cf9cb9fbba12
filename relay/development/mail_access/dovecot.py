"""Where Dovecot's programs are, why they cannot be used, their command and their configuration.

The versions 2.3 and 2.4 have two languages. A mailbox is the home of its user, so that neither the
configuration nor a command names it, and a colon in its path separates nothing.
https://doc.dovecot.org/2.3/ and https://doc.dovecot.org/2.4.1/, "Settings".
"""

import os
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

from msgspec import Struct

from relay.base.phrases import words_in

_PLACES = words_in(
    "/usr/lib/dovecot /usr/libexec/dovecot /opt/homebrew/opt/dovecot/libexec/dovecot"
    " /usr/local/opt/dovecot/libexec/dovecot"
)
_PROCESS_S = 10.0
_MEMORY_BYTES = 512 << 20


class Dovecot(Struct, frozen=True):
    """The programs that were found; a path is "" if there is none. `fault`: why none is used."""

    imap: str = ""
    pop3: str = ""
    version: str = ""
    fault: str = ""

    def why_not(self, protocol: str) -> str:
        """Return why "imap" or "pop3" cannot be served, "" if it can."""
        if not getattr(self, protocol):
            return f"Dovecot's {protocol} program is not installed: package dovecot-{protocol}d"
        return self.fault


@cache
def find_dovecot() -> Dovecot:
    """Return Dovecot's programs, as this process found them at first. Blocks."""
    for place in map(Path, _PLACES):
        paths = {name: str(place / name) for name in ("imap", "pop3") if (place / name).exists()}
        if paths:
            server = place.parents[1] / "sbin" / "dovecot"
            program = server if server.exists() else shutil.which("dovecot")
            version = ".".join(_output([str(program), "--version"]).split(".")[:2])
            fault = ""
            if version not in ("2.3", "2.4"):
                fault = f"{place} has version {version or '(unknown)'}, expected Dovecot 2.3 or 2.4"
            elif os.geteuid() == 0:
                fault = "Dovecot refuses to serve a relay that runs as root: run it as another user"
            return Dovecot(**paths, version=version, fault=fault)
    return Dovecot()


@cache
def launcher(file_bytes: int) -> tuple[str, ...]:
    """Return the command that starts a program within limits; () if the system has none. Blocks.

    The kernel kills the process with the thread that started it. A file of more than `file_bytes`
    is an error of the command that writes it, not the end of the process: uvloop would let the
    signal end it.
    """
    limits = f"prlimit --as={_MEMORY_BYTES} --fsize={file_bytes}"
    command = words_in(f"env --ignore-signal=XFSZ {limits} setpriv --pdeathsig KILL")
    return command if _output([*command, "echo", "yes"]) else ()


def _output(command: list[str]) -> str:
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(  # noqa: S603 - a program of the system
            command, capture_output=True, text=True, timeout=_PROCESS_S, check=True
        ).stdout
    return ""
