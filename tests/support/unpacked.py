"""What tests/system-packages.sh unpacks and does not install: servers, and libraries that they need.

A server that gives up root's rights may not enter the directories above a checkout, so it runs as a copy.
"""

import shutil
from pathlib import Path

UNPACKED = Path(__file__).parents[2] / ".system/usr"


def unpacked_libraries() -> dict[str, str]:
    """The variable by which a program finds the libraries."""
    folders = [*(UNPACKED / "lib").glob("*-linux-gnu"), UNPACKED / "lib", UNPACKED / "lib/rspamd"]
    return {"LD_LIBRARY_PATH": ":".join(map(str, folders))}


def copied(program: Path, folder: Path) -> Path:
    """Copy a program and the libraries into a folder, which its LD_LIBRARY_PATH is to be; return its path there."""
    for file in (program, *(UNPACKED / "lib").glob("*-linux-gnu/*.so*")):
        shutil.copy(file, folder)
    return folder / program.name
