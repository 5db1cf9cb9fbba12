"""Starts of the relay command without the time that Python takes to load its modules.

A process that has loaded all of Relay waits for orders, and forks for each: the child gets the
arguments, environment, folder and files of the order, and runs `python -m relay` from its first line.
It is a process like any other: it can be killed, and its exit code is that of the command. An order
that Python itself reads at its start, such as LD_PRELOAD or PYTHONWARNINGS, starts Python.

A child process of a relay is forked by the relay itself, and has the modules too; as one that was
started, it has its own sockets alone, and none of the relay's files. Its limit of memory is for what
it takes beyond what it was forked with.

`python -m pytest`, for a run of tests within a test, is forked in the same way, from a process that
has loaded pytest too.
"""

import asyncio
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from relay.base import child_process, process_limits
from relay.base.observe import logs
from relay.operation.app import development_folder

ROOT = Path(__file__).resolve().parents[2]
RELAY = [sys.executable, "-m", "relay"]
PYTEST = [sys.executable, "-m", "pytest"]
_READ_BY_PYTHON = ("LD_", "PYTHON", "MALLOC_")
_LARGEST_ORDER = 200_000


class StartedRelay:
    """What tests use of subprocess.Popen, for a process that the server of forks has started."""

    def __init__(self, server: "_Server", pid: int):
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            patience = None if timeout is None else timeout * 1000
            poll = select.poll()
            poll.register(self._ended, select.POLLIN)
            if not poll.poll(patience):
                raise subprocess.TimeoutExpired(RELAY, timeout or 0)
            self.returncode = self._server.ask({"reap": self.pid})
            os.close(self._ended)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until it is reaped, its number is nobody else's
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Started = StartedRelay | subprocess.Popen[bytes]


class _Server:
    """The process that forks, and the socket for its orders."""

    def __init__(self, module: str) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        code = _code_for_all_users()
        with theirs:
            subprocess.run(
                [sys.executable, "-m", "tests.support.relay_starts", str(theirs.fileno()), module],
                pass_fds=[theirs.fileno()],
                cwd=code,
                stdin=subprocess.DEVNULL,
                check=True,
                env=kept | {"PYTHONPATH": f"{code}:{ROOT}"},
            )
        atexit.register(self._socket.close)

    def ask(self, order: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        socket.send_fds(self._socket, [json.dumps(order).encode()], files)
        answer = self._socket.recv(100)
        assert answer, "the process that starts relays has ended"
        return int(answer)


@functools.cache
def _code_for_all_users() -> Path:
    """Return ROOT; where root starts processes of users who may not enter it, a copy of the code."""
    if os.geteuid() or all(one.stat().st_mode & 0o001 for one in (ROOT, *ROOT.parents)):
        return ROOT
    copy = Path(tempfile.mkdtemp(prefix="relay-code-"))
    atexit.register(shutil.rmtree, copy)
    names = ["relay", "policies", "scenarios", "conf", "docs/snippets.md"]
    subprocess.run(["cp", "-rp", "--parents", *names, copy], cwd=ROOT, check=True)
    subprocess.run(["chmod", "-R", "a+rX", copy], check=True)
    return copy


@functools.cache
def _server(module: str) -> _Server:
    """Return that of this process for a module, "relay" or "pytest"."""
    return _Server(module)


def environment(home: Path) -> dict[str, str]:
    """Return an environment without settings of the tester."""
    plain = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "HOME": str(home)}
    return {"PATH": os.environ["PATH"]} | plain


def start(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int | IO[Any] = subprocess.DEVNULL,
    stdout: int | IO[Any] = subprocess.DEVNULL,
    stderr: int | IO[Any] = subprocess.DEVNULL,
    user: int = 0,
    sockets: Sequence[tuple[str, socket.socket]] = (),
) -> Started:
    """Start a command: as subprocess.Popen if it is none of RELAY and PYTEST. With `user`, root
    starts it as the user and the group with this number. It inherits `sockets` as from systemd.
    """
    own = {name for name in env if name.startswith(_READ_BY_PYTHON)} - {"PYTHONPATH"}
    if list(command[:3]) not in (RELAY, PYTEST) or own or env.get("PYTHONPATH") != str(ROOT):
        return subprocess.Popen(
            command, cwd=cwd, env=dict(env), stdin=stdin, stdout=stdout, stderr=stderr
        )
    given = {
        "LISTEN_FDS": str(len(sockets)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in sockets),
    }
    order = {
        "words": [*command[3:]],
        "cwd": str(cwd),
        "env": dict(env) | (given if sockets else {}),
        "user": user,
    }
    with Path(os.devnull).open("r+b") as null:
        files = [null if file == subprocess.DEVNULL else file for file in (stdin, stdout, stderr)]
        numbers = [file if isinstance(file, int) else file.fileno() for file in files]
        numbers += [one.fileno() for _, one in sockets]
        server = _server(command[2])
        return StartedRelay(server, server.ask(order, numbers))


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: str = "",
    timeout_s: float = 120,
    user: int = 0,
) -> "subprocess.CompletedProcess[str]":
    """Start a command that ends by itself; return what it printed."""
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as stdout,
        tempfile.TemporaryFile("w+") as stderr,
    ):
        given.write(stdin)
        given.seek(0)
        process = start(
            command, cwd=cwd, env=env, stdin=given, stdout=stdout, stderr=stderr, user=user
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def _codecs() -> Iterator[pkgutil.ModuleInfo]:
    yield from pkgutil.iter_modules(importlib.import_module("encodings").__path__)


def _load(module: str) -> None:
    """Import all that `python -m MODULE` needs, but no plugin of pytest: that rewrites them."""
    package = importlib.import_module("relay")
    for one in pkgutil.walk_packages(package.__path__, "relay."):
        if not one.name.startswith(("relay.testing", "relay.__main__")):
            importlib.import_module(one.name)
    # What is loaded late, by a process that may be that of a user who cannot read Python's files.
    late = (
        "importlib.readers",
        "importlib.resources._adapters",
        "re2",
        "cryptography.hazmat.backends.openssl.backend",
        "dns._asyncio_backend",
        "uvicorn.lifespan.off",
        "_strptime",
        "idna.uts46data",
        "jinja2.meta",
        "joserfc.jwt",
    )
    for name in (*late, *(f"encodings.{one.name}" for one in _codecs())):
        with contextlib.suppress(ImportError):  # of another system
            importlib.import_module(name)
    _fill_caches()
    if module == "pytest":
        for one in pkgutil.walk_packages(importlib.import_module("_pytest").__path__, "_pytest."):
            importlib.import_module(one.name)
        for name in ("imaplib", "pdb", "smtplib"):
            importlib.import_module(name)


def _fill_caches() -> None:
    """Read and compile what each relay would: its own texts, and the templates that most use."""
    from relay.base.settings import document, reader, tree
    from relay.delivery import provider_replies
    from relay.delivery.reports import texts
    from relay.front_door.pages import site

    nothing = document.parse_document(Path(os.devnull), "")
    reader.DocumentReader(nothing, base=ROOT, environ={}).fields(tree.Settings, {}, ())
    provider_replies._shipped_entries()
    texts._layouts()
    texts._own_texts("en")
    for name in ("base.html", "macros.html", "list.html", "_list.html", "message.html"):
        site._environment().get_template(name)


class _Forked(subprocess.Popen[bytes]):
    """A child of a relay that runs a module, as subprocess.Popen starts it, with less to load."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        kept, env, files = given[3], given[5], (given[9], given[12], given[14])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # threads end in the child
            self.pid = os.fork()
        self._child_created = True
        if self.pid == 0:
            code = 1
            try:
                _become(args[4:], env, files=files, kept=kept)
                sys.modules.pop(args[3], None)
                runpy.run_module(args[3], run_name="__main__", alter_sys=True)
                code = 0
            except BaseException:  # noqa: BLE001 - the relay's code goes on in the relay
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)


def _become(
    words: Sequence[str], env: Mapping[str, str], *, files: Sequence[int], kept: Sequence[int]
) -> None:
    """Have what a started process has. The numbers of other files stay taken: objects close them."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for number, file in enumerate(files):
        if file >= 0:
            os.dup2(file, number)
    null = os.open(os.devnull, os.O_RDWR)
    opened = {int(one.name) for one in Path("/proc/self/fd").iterdir()}
    for number in opened - {0, 1, 2, null, *kept}:
        os.dup2(null, number)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = words
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    asyncio._set_running_loop(None)
    logs._sink = logs.LogSink()  # without the lines and the lock of the relay
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def limit(kind: int, limits: tuple[int, int]) -> None:
        more = size_bytes if kind == resource.RLIMIT_AS else 0
        resource.setrlimit(kind, (limits[0] + more, limits[1] + more))

    process_limits.resource = SimpleNamespace(**vars(resource) | {"setrlimit": limit})


def _serve(orders: socket.socket) -> None:
    """Carry out orders until nobody can give any more; return in each child."""
    started = set[int]()
    while True:
        text, files, _, _ = socket.recv_fds(orders, _LARGEST_ORDER, 10)
        if not text:
            for pid in started:  # of a process of tests that was ended
                os.kill(pid, signal.SIGKILL)
            sys.exit()
        order = json.loads(text)
        if "reap" in order:
            pid, status = os.waitpid(order["reap"], 0)
            started.discard(pid)
            orders.send(str(os.waitstatus_to_exitcode(status)).encode())
        elif pid := os.fork():
            started.add(pid)
            for file in files:
                os.close(file)
            orders.send(str(pid).encode())
        else:
            orders.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            if user := order["user"]:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            os.chdir(order["cwd"])
            sys.path[0] = order["cwd"]
            os.environ.clear()
            os.environ.update(order["env"])
            if "LISTEN_FDS" in order["env"]:
                os.environ["LISTEN_PID"] = str(os.getpid())
            time.tzset()
            tempfile.tempdir = None
            development_folder._SESSIONS = development_folder._LINKS = Path(
                order["env"].get("HOME", order["cwd"])
            )
            child_process.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": _Forked})
            sys.argv[1:] = order["words"]
            return


def _run(module: str) -> None:
    """Run `python -m MODULE`, and end as Python does, but without its last step: that releases each
    object, so that the kernel copies the memory in which it is.
    """
    code: object = None
    try:
        if module == "pytest":
            sys.exit(importlib.import_module("_pytest.config").main())
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
        if not isinstance(code, int | None):
            raise
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    if os.fork():  # tests count the children of their process
        os._exit(0)
    _load(sys.argv[2])
    gc.collect()
    gc.freeze()
    started_module = sys.argv.pop()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    _run(started_module)
