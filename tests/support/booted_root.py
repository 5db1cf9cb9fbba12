"""A root of Debian that systemd has booted, in namespaces of its own: a machine that a page is followed on.

    with BootedRoot(Path("/srv/bookworm"), folder) as machine:
        machine.run("systemctl is-active relay", code=3)
        machine.reboot()

Its files are the root's, with an overlay in `folder`, which outlives a reboot. Its network has loopback alone. Raises
NoMachineError, with the reason to skip. See namespaces(7), and systemd's Container Interface.
"""

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.commands import run_command
from tests.support.own_machine import NoMachineError
from tests.support.relay_process import until

# The arguments are the root, the folder, and a control group for all of it.
_BOOT = r"""
set -e
mount --make-rprivate /
root=$2/root
mkdir -p "$2"/{over,aside,root}
mount -t overlay -o "lowerdir=$1,upperdir=$2/over,workdir=$2/aside" none "$root"
cd "$root"
mount -t proc none proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 none run
mount -t tmpfs -o mode=755 none dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 none dev/pts
mount -t tmpfs none dev/shm
for name in null zero full random urandom tty; do
    touch "dev/$name"
    mount --bind "/dev/$name" "dev/$name"
done
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for name in stdin=0 stdout=1 stderr=2; do ln -s "/proc/self/fd/${name#*=}" "dev/${name%=*}"; done
ip link set lo up
mkdir -p old
pivot_root . old
exec chroot . sh -c 'umount -l /old; exec env -i container=test setpriv --bounding-set=-sys_time,-sys_module \
    /lib/systemd/systemd systemd.mask=console-getty.service' </dev/null
"""
_ENVIRONMENT = (
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)


class BootedRoot:
    """See the module."""

    def __init__(self, root: Path, folder: Path) -> None:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        groups = [Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"]
        command = ["unshare", "--mount", "--pid", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
        is_able = shutil.which("unshare") and not subprocess.run(command, check=False).returncode
        if not (is_able and groups and os.access(groups[0], os.W_OK)):
            raise NoMachineError("only root of a machine with cgroup2 may boot a root")
        self._group = groups[0] / f"relay-test-{os.getpid()}"
        self._root, self._folder, self._log = root, folder, folder / "boot.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = ""

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def boot(self) -> None:
        """Start systemd, and wait until it has started what is enabled."""
        self._folder.mkdir(exist_ok=True)
        self._group.mkdir()
        unshare = "unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child"
        enter = f'echo $$ >"$3/cgroup.procs"; exec {unshare} bash -c "$0" boot "$@"'
        words = [_BOOT, str(self._root), str(self._folder), str(self._group)]
        with self._log.open("wb") as log:
            command = ["bash", "-ec", enter, *words]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        until("it has an init", lambda: "systemd" in self._name(children))
        self._init = children.read_text().strip()
        until("it is booted", lambda: self.state() in ("running", "degraded"))

    def _name(self, children: Path) -> str:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError):
            return Path("/proc", children.read_text().strip(), "comm").read_text()
        return ""

    @property
    def files(self) -> Path:
        """The root of its files, as seen from outside."""
        return Path("/proc", self._init, "root")

    def state(self) -> str:
        """Return what systemd says of itself."""
        return self._enter("systemctl is-system-running").stdout.strip()

    def stop(self) -> None:
        """End all of its processes at once, as a loss of power does."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.kill(int(self._init or self._process.pid), signal.SIGKILL)
            self._process.wait()
        for group in sorted(self._group.rglob("*/"), reverse=True):
            group.rmdir()
        self._group.rmdir()

    def reboot(self) -> None:
        """Shut down in order, and boot again."""
        assert self._process is not None
        self._enter("systemctl --no-block poweroff")
        self._process.wait()
        self.stop()
        self.boot()

    def run(self, command: str, *, code: int = 0) -> str:
        """Run a command of the administrator; return what it prints."""
        done = self._enter(command)
        assert done.returncode == code, (
            f"{command}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout + done.stderr

    def _enter(self, command: str) -> "subprocess.CompletedProcess[str]":
        enter = ["nsenter", f"--target={self._init}", "--all", "env", "-i", *_ENVIRONMENT]
        return run_command([*enter, "bash", "-ec", f"cd /root; {command}"], timeout_s=600)
