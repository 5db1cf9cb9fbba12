"""A disk that is slow for the bodies of a relay's spool, by slow_disk.c in the relay's process.

The test is skipped where there is no compiler for C.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


def slow_bodies(folder: Path, *, each_s: float) -> dict[str, str]:
    """Return the environment of a relay for which each block of a body takes so much longer."""
    compiler = shutil.which("cc")
    if compiler is None:
        assert not os.environ.get("CI"), "no compiler for C is installed"
        pytest.skip("no compiler for C is installed")
    library = folder / "slow_disk.so"
    words = [compiler, "-O", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(words, check=True)
    return {"LD_PRELOAD": str(library), "DISK_MS": f"{each_s * 1000:.0f}"}
