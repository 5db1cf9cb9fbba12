"""Python on Linux, without what macOS does not have, as far as Relay and its libraries may ask for it.

A folder of its own for PYTHONPATH: Python imports this when it starts, in child processes too. What it
cannot show is how the kernel, the file systems and the compiled libraries of macOS behave.
"""

import ctypes
import errno
import importlib
import os
import select
import signal
import socket
import sys
import sysconfig
import time
import types

_LACKING = {
    os: (
        "copy_file_range",
        "eventfd",
        "getrandom",
        "memfd_create",
        "pidfd_open",
        "posix_fadvise",
        "posix_fallocate",
        "sched_getaffinity",
        "setns",
        "splice",
        "unshare",
        "fdatasync",
        "getxattr",
        "setxattr",
        "O_TMPFILE",
        "O_PATH",
        "O_DIRECT",
        "pipe2",
        "preadv",
        "pwritev",
    ),
    select: ("epoll",),
    signal: ("sigtimedwait", "sigwaitinfo", "SIGPWR"),
    socket: (
        "AF_NETLINK",
        "SCM_CREDENTIALS",
        "SOCK_CLOEXEC",
        "SOCK_NONBLOCK",
        "SO_PASSCRED",
        "SO_PEERCRED",
        "SO_BINDTODEVICE",
        "TCP_CORK",
        "TCP_KEEPIDLE",
        "TCP_QUICKACK",
        "TCP_USER_TIMEOUT",
    ),
    time: ("CLOCK_BOOTTIME",),
}
_CALLS = ("crypt_r", "mallopt", "malloc_trim", "prctl", "sync_file_range", "syncfs")
_MEMORY = "/dev/shm"  # where tests have their temporary files
_PLACES = ("/proc", "/sys", "/run")
_OPENED = ("open", "os.listdir", "os.scandir", "os.mkdir")
_sun_path_max = 104

for module, names in _LACKING.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
os.process_cpu_count = os.cpu_count  # since Python 3.13


def _find(library, name, found=ctypes.CDLL.__getattr__):
    if name.startswith("inotify_") or name in _CALLS:
        raise AttributeError(name)
    return found(library, name)


def _statvfs(path, found=os.statvfs):
    if isinstance(path, str | os.PathLike) and os.fspath(path) == _MEMORY:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    return found(path)


def _check(event, given):
    if event in _OPENED and given and isinstance(given[0], str | bytes):
        path = os.fsdecode(given[0])
        if any(f"{path}/".startswith(f"{one}/") for one in _PLACES):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
    elif event in ("socket.bind", "socket.connect"):
        place = given[1]
        if isinstance(place, str) and len(os.fsencode(place)) >= _sun_path_max:
            raise OSError("AF_UNIX path too long")
        if isinstance(place, tuple) and place[0].startswith("127.") and place[0] != "127.0.0.1":
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))


ctypes.CDLL.__getattr__ = _find
os.statvfs = _statvfs
sys.addaudithook(_check)
sysconfig.get_config_vars()  # it reads a module that is named after the system
importlib.import_module("ctypes.util")  # Debian does not have what it reads on macOS
sys.platform = "darwin"
sys.modules["_scproxy"] = proxies = types.ModuleType("_scproxy")  # for urllib.request
proxies._get_proxies = proxies._get_proxy_settings = dict
