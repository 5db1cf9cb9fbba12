"""Run mutt on a Maildir: press keys, and read what its pager shows."""

import os
import subprocess
import termios
import threading
from pathlib import Path

from tests.support.terminals import open_terminal, read_to_end

_SETTINGS = """\
set folder="{home}" spoolfile="{home}" mbox_type=Maildir header_cache="" charset=utf-8
set confirmappend=no confirmcreate=no delete=yes move=no mark_old=no quit=yes copy=no
set wait_key=no pipe_decode=no pipe_split=yes sleep_time=0 sort=subject resolve=no
set pager="cat >>{shown} <" prompt_after=no
push "{keys}"
"""
_SECONDS_MAX = 30


def run_mutt(command: str, keys: str, *, home: Path, folder: str = "", work: Path) -> Path:
    """Open a folder of a Maildir and press keys, the last of which end mutt.

    Return the file with what was displayed; it is in `work`.
    """
    settings, shown_file = work / "muttrc", work / "shown"
    settings.write_text(_SETTINGS.format(home=home, keys=keys, shown=shown_file))
    controller, terminal = open_terminal()
    termios.tcsetwinsize(terminal, (24, 80))  # ncurses 6.5 opens no terminal without a size
    process = subprocess.Popen(
        [command, "-n", "-F", str(settings), "-f", str(home / folder)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env={"TERM": "xterm", "LANG": "C.UTF-8", "HOME": str(work), "PATH": os.defpath},
    )
    os.close(terminal)
    watchdog = threading.Timer(_SECONDS_MAX, process.kill)
    watchdog.start()
    shown = read_to_end(controller)
    code = process.wait(_SECONDS_MAX)
    watchdog.cancel()
    assert code == 0, shown[-2000:].decode(errors="replace")
    return shown_file
