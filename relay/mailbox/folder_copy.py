"""Copy the messages of a folder. Each copy has an id of its own.

A message that other programs rename meanwhile is copied once; one that they remove may be copied or
not. Raises OSError when the disk rejects a change. See Maildir++ and Graph's mailFolder: copy.
"""

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from relay.mailbox.draft_files import NewNames
from relay.mailbox.keywords import KEYWORDS_FILE
from relay.mailbox.maildir import list_names, place_again, sync_directory
from relay.mailbox.message_file import MessageName, parse_name

_LISTINGS_MAX = 20  # another program may rename files faster than they are copied


def copy_messages(source: Path, target: Path, names: NewNames) -> Mapping[str, str]:
    """Copy the messages of a folder to the directory `target`, durably. Return the ids of the
    copies, by the base name of the original.
    """
    with suppress(FileNotFoundError):
        shutil.copyfile(source / KEYWORDS_FILE, target / KEYWORDS_FILE)
    done: dict[str, str] = {}
    for _ in range(_LISTINGS_MAX):
        if not _copy_once(source, target, names, done=done):
            break
    sync_directory(target / "cur")
    return done


def _copy_once(source: Path, target: Path, names: NewNames, *, done: dict[str, str]) -> bool:
    """Copy the messages that are not `done`; return whether one was renamed meanwhile."""
    was_renamed = False
    for directory in (source / "new", source / "cur"):
        for file_name in list_names(directory):
            name = parse_name(file_name)
            if name is None or name.base_name in done:
                continue
            try:
                base_name = names.of_copy(name)
                _copy(directory / file_name, target, name, base_name=base_name)
                copied = parse_name(base_name)
                assert copied is not None
                done[name.base_name] = copied.message_id
            except FileNotFoundError:
                was_renamed = True
    return was_renamed


def _copy(file: Path, target: Path, name: MessageName, *, base_name: str) -> None:
    status = file.lstat()
    if not stat.S_ISREG(status.st_mode):
        return
    copy = target / "cur" / f"{base_name},S={status.st_size}:2,{name.flags}"
    if not place_again(file, copy):
        os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
