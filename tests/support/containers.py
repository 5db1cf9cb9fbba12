"""A program that runs containers here: Docker, Podman, or podman.sh, which needs no daemon and no rights of a host."""

import shutil
import subprocess

import pytest

from tests.support.relay_process import ROOT

PODMAN = str(ROOT / "tests/support/podman.sh")
BASE = "python:3.13-slim"


def container_program(*names: str) -> str:
    """Return the first of these programs that runs a container; skips the test if none does."""
    reasons = []
    for name in names:
        if shutil.which("podman" if name == PODMAN else name) is None:
            reasons.append(f"{name} is not installed")
            continue
        start = [name, "run", "--rm", BASE, "true"]  # gets what is not there
        done = subprocess.run(start, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return name
        reasons.append(f"{name}: {(done.stderr.strip().splitlines() or ['it does not run'])[-1]}")
    pytest.skip("; ".join(reasons))
