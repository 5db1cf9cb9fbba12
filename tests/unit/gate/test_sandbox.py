"""What a process in the sandbox cannot do any more; the kernel is the one of this machine."""

import json
import platform
import subprocess
import sys

import pytest

from relay.gate.sandbox import available

_PROGRAM = """
import asyncio, json, os, socket, sys, threading
from relay.gate.sandbox import end_with_parent, enter_sandbox
here, there = socket.socketpair()
file = os.memfd_create("certificate")
os.write(file, b"PEM")
end_with_parent()
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
attempt("own descriptor", lambda: there.send(b"x"))
attempt("memory file", lambda: open(f"/proc/self/fd/{file}").read())
thread = threading.Thread(target=lambda: attempt("thread", lambda: open(os.devnull)))
thread.start()
thread.join()
print(json.dumps([missing, found]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
def test_nothing_is_opened_connected_or_started_in_the_sandbox() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, timeout=60, check=True
    )
    missing, found = json.loads(ran.stdout)
    assert missing == list(available())
    denied, refused = "Permission denied", "Operation not permitted"
    expected = {"own descriptor": "done", "memory file": "done"}
    if "Landlock" not in missing:
        expected |= dict.fromkeys(("open", "list", "create", "thread"), denied)
    if "seccomp" not in missing:
        expected |= dict.fromkeys(("tcp", "unix", "program", "signal"), refused)
    assert {name: found[name] for name in expected} == expected
    if platform.machine() == "x86_64":
        assert "seccomp" not in missing


_LOOP = """
import asyncio, os
import uvloop
from relay.gate.sandbox import refuse_io_uring
refuse_io_uring()
async def show():
    print([os.readlink(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd")[:-1]])
uvloop.run(show())
"""


@pytest.mark.skipif("seccomp" in available(), reason="this kernel has no filter for system calls")
def test_the_event_loop_has_no_ring_to_which_no_filter_applies() -> None:
    ran = subprocess.run([sys.executable, "-c", _LOOP], capture_output=True, timeout=60, check=True)
    assert b"eventpoll" in ran.stdout
    assert b"io_uring" not in ran.stdout
