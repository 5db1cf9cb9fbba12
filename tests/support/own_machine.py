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

from tests.support.relay_process import ROOT

PLACES = ("/etc", "/opt", "/usr", "/var", "/run")
_NAMESPACES = 0x00020000 | 0x40000000  # CLONE_NEWNS, CLONE_NEWNET

_OF_TESTS = ("PYTHON", "RELAY_", "VIRTUAL_ENV")
# Starts and stops what the unit says, with the rights that it gives.
SYSTEMCTL = r"""#!/bin/bash
set -e
unit=/etc/systemd/system/relay.service
of() { sed -n "s/^$1=//p" "$unit"; }
stop() {
  [ ! -e /run/relay.pid ] || { kill "$(cat /run/relay.pid)"; tail --pid="$(cat /run/relay.pid)" -f /dev/null; }
  rm -f /run/relay.pid
  [ -e "$unit" ] && [ "$(of RuntimeDirectoryPreserve)" != yes ] || return 0
  directory=$(of RuntimeDirectory)
  [ -z "$directory" ] || rm -rf "/run/$directory"
}
start() {
  install -d -m "$(of RuntimeDirectoryMode)" -o "$(of User)" -g "$(of Group)" "/run/$(of RuntimeDirectory)"
  install -d -m "$(of StateDirectoryMode)" -o "$(of User)" -g "$(of Group)" "/var/lib/$(of StateDirectory)"
  capability=+$(of AmbientCapabilities | sed 's/CAP_//' | tr A-Z a-z)
  env -i PATH=/usr/bin:/bin setpriv --reuid="$(of User)" --regid="$(of Group)" --init-groups --no-new-privs \
    --inh-caps=-all,"$capability" --ambient-caps=-all,"$capability" --bounding-set=-all,"$capability" \
    $(of ExecStart) >>/run/relay.log 2>&1 &
  echo $! >/run/relay.pid
  until curl -sfo /dev/null http://127.0.0.1:8025/readyz; do
    kill -0 "$(cat /run/relay.pid)" || { cat /run/relay.log >&2; exit 1; }
    sleep 0.1
  done
}
case "$*" in
  daemon-reload) [ ! -e "$unit" ] || systemd-analyze verify "$unit" ;;
  "enable --now relay" | "restart relay" | "start relay") stop; start ;;
  "reload relay") MAINPID=$(cat /run/relay.pid) bash -c "$(of ExecReload)" ;;
  "stop relay" | "disable --now relay") stop ;;
  *) echo "unexpected: systemctl $*" >&2; exit 1 ;;
esac
"""


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


def checkout(folder: Path) -> None:
    """Make a copy of what Git has of this tree, to which nothing was added by a build."""
    names = (
        subprocess.run(
            [
                "git",
                "-c",
                "safe.directory=*",
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, names):
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, Path(folder, name))
