"""What this user, and other users, may do with the files of a relay: asked before a start.

On the path: before it; `relay serve` refuses to start where unusable_state() has something to say.
Holds: only looks; the service and its check say the same in the same words.
Fails: never.
Standards: access(2), which knows of read-only file systems as well.
"""

import os
import stat
from pathlib import Path

from relay.settings import Settings


def unusable_state(settings: Settings) -> str:
    """Return why this user cannot keep a queue in state_dir, or ""."""
    if fault := unwritable("state_dir", settings.state_dir):
        return fault
    if settings.run_dir.exists() and (fault := unwritable("state_dir", settings.run_dir)):
        return fault
    spool = settings.spool_file
    for file in (spool, spool.with_name(spool.name + "-wal"), settings.run_dir / "lock"):
        if file.is_file() and not os.access(file, os.R_OK | os.W_OK):
            return f"state_dir: {file} is no file that this user can write"
    return ""


def unwritable(name: str, folder: Path) -> str:
    """Return why this user cannot write `folder`, or the nearest one above it, or ""."""
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return ""
    return f"{name}: {folder} is no folder that this user can write"


def open_to_others(path: Path, *, to_read: bool = False) -> str:
    """Return how others can write `path`, or read it as well, and what to do; or ""."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if to_read and mode & (stat.S_IROTH | stat.S_IWOTH):
        return f"found mode {mode:04o} of {path}: others can read it (chmod o-rwx)"
    if not to_read and mode & stat.S_IWOTH:
        return f"found mode {mode:04o} of {path}: others can write in it (chmod o-w)"
    return ""
