"""What a process in the sandbox cannot do any more; the kernel is the one of this machine."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from relay.base.sandbox import available
from tests.support.relay_process import ROOT

_PROGRAM = """
import asyncio, ctypes, json, os, resource, signal, socket, sys, threading
from relay.base import sandbox
from relay.base.sandbox import ignore_signals, enter_sandbox
if len(sys.argv) > 1:  # as if the kernel had that Landlock
    sandbox._landlock_abi = lambda: int(sys.argv[1])
here, there = socket.socketpair()
file = os.memfd_create("certificate")
os.write(file, b"PEM")
ignore_signals()
missing = enter_sandbox()
found = {}
def attempt(name, action):
    try:
        action()
        found[name] = "done"
    except OSError as error:
        found[name] = error.strerror
attempt("open", lambda: open(os.devnull))
attempt("list", lambda: os.listdir("/"))
attempt("create", lambda: os.mkdir("a-folder"))
attempt("tcp", lambda: socket.socket())
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("program", lambda: os.execv(sys.executable, [sys.executable]))
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("signal of a thread", lambda: signal.pthread_kill(threading.get_ident(), 0))
attempt("signal by pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0))
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("spawn", lambda: os.posix_spawn(sys.executable, [sys.executable], {}))
attempt("datagrams", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
attempt("chmod", lambda: os.chmod(".", 0o755))
attempt("chown", lambda: os.chown(".", -1, -1))
attempt("times", lambda: os.utime("."))
attempt("truncate", lambda: os.truncate(".", 0))
attempt("attribute", lambda: os.setxattr(".", "user.x", b""))
attempt("root", lambda: os.chroot("."))
limit = resource.RLIMIT_NOFILE
attempt("limits", lambda: resource.prlimit(os.getppid(), limit, resource.getrlimit(limit)))
attempt("processors", lambda: os.sched_setaffinity(os.getppid(), os.sched_getaffinity(0)))
attempt("own descriptor", lambda: there.send(b"x"))
attempt("memory file", lambda: open(f"/proc/self/fd/{file}").read())
thread = threading.Thread(target=lambda: attempt("thread", lambda: open(os.devnull)))
thread.start()
thread.join()
print(json.dumps([missing, found]))
"""


DENIED, REFUSED = "Permission denied", "Operation not permitted"
REFUSED_CALLS = (
    "tcp",
    "unix",
    "program",
    "signal",
    "signal of a thread",
    "signal by pidfd",
    "fork",
    "spawn",
    "datagrams",
    "chmod",
    "chown",
    "times",
    "truncate",
    "attribute",
    "root",
    "limits",
    "processors",
)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
@pytest.mark.parametrize("abi", ["", "0", "1", "5"])
def test_nothing_is_opened_connected_or_started_in_the_sandbox(abi: str, tmp_path: Path) -> None:
    """`abi` is that of an older Landlock, 0 none; "" this kernel's."""
    if abi and "Landlock" in available():
        pytest.skip("this kernel has no Landlock")
    words = [sys.executable, "-c", _PROGRAM, *filter(None, [abi])]
    environment = {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        words, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=True
    )
    missing, found = json.loads(ran.stdout)
    assert missing == (["Landlock"] if abi == "0" else list(available()))
    expected = {"own descriptor": "done", "memory file": "done"}
    files = ("open", "list", "create", "thread")
    expected |= dict.fromkeys(files, "done" if "Landlock" in missing else DENIED)
    if "seccomp" not in missing:
        expected |= dict.fromkeys(REFUSED_CALLS, REFUSED)
    assert {name: found[name] for name in expected} == expected
    if platform.machine() == "x86_64":
        assert "seccomp" not in missing


_LOOP = """
import asyncio, os
import uvloop
from relay.base.sandbox import refuse_io_uring
refuse_io_uring()
async def show():
    print([os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")[:-1]])
uvloop.run(show())
"""


@pytest.mark.skipif("seccomp" in available(), reason="this kernel has no filter for system calls")
def test_the_event_loop_has_no_ring_to_which_no_filter_applies() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _LOOP], capture_output=True, timeout=120, check=True
    )
    assert b"eventpoll" in ran.stdout
    assert b"io_uring" not in ran.stdout
