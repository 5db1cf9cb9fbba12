"""The sandbox of processes that read what strangers send: no file, connection, process or signal.

Landlock (landlock(7)) without a rule refuses to open files by their paths, and refuses signals to
other processes. A seccomp filter (seccomp(2)) refuses the system calls of _REFUSED, above all
connect and execve, and new processes. Descriptors that the child has or gets stay usable. Its
memory files stay usable by their names in /proc too: this is how it reads certificates. Both need
no_new_privs, which is set as well. They hold for the calling thread and for threads that start
later. What a kernel does not have is left out, and reported.

The child of the gate, and those that check senders and read archives, enter it with all modules
loaded.
"""

import ctypes
import encodings
import importlib
import pkgutil
import platform
import resource
import signal
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446  # the same on all architectures
_LANDLOCK_VERSION = 1  # a flag
_FILE_RIGHTS_OF_ABI = (0, 13, 14, 15, 15, 16)  # the number of rights by ABI; later as in the last
_NETWORK_SINCE, _SCOPE_SINCE = 4, 6  # ABI
_BPF_LOAD, _BPF_EQUAL, _BPF_AT_LEAST, _BPF_HAS, _BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_CLONE3, _CLONE_THREAD = 435, 0x10000
_RINGS = 425  # io_uring_setup, on all architectures
_X32 = 0x40000000  # x86_64 has all calls again under numbers from here on
_ALLOW, _EPERM, _ENOSYS, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
# audit(7) number of the architecture, and the number of clone
_ARCHITECTURES = {"x86_64": (0xC000003E, 56), "aarch64": (0xC00000B7, 220)}
# What is refused, and its number on each of these in the kernel's unistd tables; None: not there
_REFUSED: Mapping[str, tuple[int | None, ...]] = {
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "fork": (57, None),
    "vfork": (58, None),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (_RINGS, _RINGS),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "keyctl": (250, 219),
    "socketpair": (53, 199),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "setpriority": (141, 140),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "chroot": (161, 51),
}


def ignore_signals() -> None:
    """Ignore signals to all processes of a service: the owner ends this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def load_codecs() -> None:
    """Load the codecs for subjects and domains now: in the sandbox no file can be opened."""
    importlib.import_module("idna.uts46data")
    for module in pkgutil.iter_modules(encodings.__path__):
        with suppress(ImportError):  # codecs of other systems
            importlib.import_module(f"encodings.{module.name}")


def refuse_io_uring() -> None:
    """Refuse io_uring_setup before the event loop exists: a filter does not see calls by a ring.

    libuv works without it.
    """
    with suppress(OSError, AttributeError):  # enter_sandbox() says what is missing
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _restrict_calls([_RINGS])


def enter_sandbox() -> tuple[str, ...]:
    """Restrict this process for good; return the parts that this kernel does not have."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _prctl(_PR_SET_DUMPABLE, 0)
    except (OSError, AttributeError):
        return ("no_new_privs", "Landlock", "seccomp")
    missing = []
    for name, restrict in (("Landlock", _restrict_files), ("seccomp", _restrict_calls)):
        try:
            restrict()
        except OSError:
            missing.append(name)
    return tuple(missing)


def available() -> tuple[str, ...]:
    """Return the parts of the sandbox that this kernel does not have, without entering it."""
    missing = []
    if _landlock_abi() < 1:
        missing.append("Landlock")
    if platform.machine() not in _ARCHITECTURES:
        missing.append("seccomp")
    return tuple(missing)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *values: object) -> None:
    numbers = [ctypes.c_ulong(number) if isinstance(number, int) else number for number in values]
    numbers += [ctypes.c_ulong(0)] * (4 - len(numbers))
    if _libc().prctl(option, *numbers):
        raise OSError(ctypes.get_errno(), "prctl")


def _call(number: int, *values: object) -> int:
    result = int(_libc().syscall(ctypes.c_long(number), *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), "Landlock")
    return result


def _landlock_abi() -> int:
    try:
        return _call(
            _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(_LANDLOCK_VERSION)
        )
    except (OSError, AttributeError):
        return 0


def _restrict_files() -> None:
    """Refuse everything that Landlock in this kernel can refuse. Raises OSError."""
    abi = _landlock_abi()
    rights = _FILE_RIGHTS_OF_ABI[min(abi, len(_FILE_RIGHTS_OF_ABI) - 1)]
    if not rights:
        raise OSError("no Landlock")
    network, scope = 3 * (abi >= _NETWORK_SINCE), 3 * (abi >= _SCOPE_SINCE)
    attributes = struct.pack("=QQQ", (1 << rights) - 1, network, scope)
    size = 8 * (1 + (abi >= _NETWORK_SINCE) + (abi >= _SCOPE_SINCE))
    ruleset = _call(
        _LANDLOCK_CREATE_RULESET,
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(size),
        ctypes.c_uint(0),
    )
    _call(_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))


def _restrict_calls(only: Sequence[int] = ()) -> None:
    """Refuse the system calls of _REFUSED, or only these, with EPERM. Raises OSError."""
    if platform.machine() not in _ARCHITECTURES:
        raise OSError("no filter for this architecture")
    architecture, clone = _ARCHITECTURES[platform.machine()]
    place = list(_ARCHITECTURES).index(platform.machine())
    calls = only or sorted(filter(None, (numbers[place] for numbers in _REFUSED.values())))
    program = [
        (_BPF_LOAD, 0, 0, 4),  # the architecture
        (_BPF_EQUAL, 1, 0, architecture),
        (_BPF_RETURN, 0, 0, _KILL),
        (_BPF_LOAD, 0, 0, 0),  # the number of the call
        (_BPF_EQUAL, 0, 1, _CLONE3),  # whose flags a filter cannot see: libc takes clone then
        (_BPF_RETURN, 0, 0, _ENOSYS),
        (_BPF_EQUAL, 0, 4, clone),
        (_BPF_LOAD, 0, 0, 16),  # its flags: a thread, or a process
        (_BPF_HAS, 0, 1, _CLONE_THREAD),
        (_BPF_RETURN, 0, 0, _ALLOW),
        (_BPF_RETURN, 0, 0, _EPERM),
        (_BPF_AT_LEAST, len(calls) + 1, 0, _X32),
        *((_BPF_EQUAL, len(calls) - at, 0, number) for at, number in enumerate(calls)),
        (_BPF_RETURN, 0, 0, _ALLOW),
        (_BPF_RETURN, 0, 0, _EPERM),
    ]
    octets = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    instructions = ctypes.create_string_buffer(octets, len(octets))
    pointer = ctypes.addressof(instructions)
    header = struct.pack("@HP", len(program), pointer)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))
