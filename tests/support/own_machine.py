"""A process that sees a machine of its own, on which the pages of the operator are followed as root.

    with OwnMachine() as machine:
        machine.call(function)    # in that process: what it raises is raised here

In its mount namespace, what it changes below the directories of PLACES is in memory only; its network
namespace has loopback alone. `with_network()` runs a command in the network of the tests. Raises
NoMachineError, with the reason to skip. See namespaces(7), overlayfs.
"""

import ctypes
import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

PLACES = ("/etc", "/opt", "/usr", "/var", "/run")
_NAMESPACES = 0x00020000 | 0x40000000  # CLONE_NEWNS, CLONE_NEWNET

_OF_TESTS = ("PYTHON", "RELAY_", "VIRTUAL_ENV")


class NoMachineError(Exception):
    """There are no rights for it here."""


class OwnMachine:
    """See the module."""

    def __init__(self) -> None:
        command = ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which("unshare") is None or subprocess.run(command, check=False).returncode:
            raise NoMachineError("only root may make namespaces and mount")
        self._folder = mkdtemp(dir="/tmp")
        self._pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_enter, initargs=(self._folder,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()
        Path(self._folder).rmdir()

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of a module returns there."""
        return self._pool.submit(function, *arguments).result()


def _enter(folder: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NAMESPACES):
        raise OSError(ctypes.get_errno(), "unshare")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "none", folder)
    for place in PLACES:
        upper, work = Path(folder, "upper" + place), Path(folder, "work" + place)
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        options = f"lowerdir={place},upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "-o", options, "none", place)
    run("ip", "link", "set", "lo", "up")
    for name in [one for one in os.environ if one.startswith(_OF_TESTS)]:
        del os.environ[name]
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.chdir(folder)


def run(*command: str) -> None:
    """Run a command, which prints nothing unless it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def with_network() -> list[str]:
    """Return the words before a command that needs the network of the tests."""
    return ["nsenter", f"--net=/proc/{os.getppid()}/ns/net", "--"]
