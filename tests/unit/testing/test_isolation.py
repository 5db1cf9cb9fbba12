"""A relay of the test kit leaves nothing behind, and changes nothing of its process."""

import contextlib
import gc
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import pytest

from relay.base.settings.document import SettingsError
from relay.operation.app import development_folder
from relay.operation.app.development_folder import ForeignFolderError
from relay.testing import Relay
from tests.support.commands import run_command
from tests.support.process_tree import child_processes

TOP = Path(__file__).parents[3]
ALICE, BOB = "alice@example.test", "bob@example.test"


def files() -> dict[str, str]:
    found = {}
    for one in Path("/proc/self/fd").iterdir():
        try:
            found[one.name] = str(one.readlink())
        except FileNotFoundError:
            continue
    return found


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    """A directory of this test alone; other tests run at the same time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as own:
        monkeypatch.setattr(development_folder, "_MEMORY", Path(own))
        yield Path(own) / f"relay-tests-{os.getuid()}"


def of_process() -> dict[str, object]:
    root = logging.getLogger()
    return {
        "signals": {one: signal.getsignal(one) for one in signal.valid_signals()},
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
        "environment": dict(os.environ),
        "directory": Path.cwd(),
        "umask": _umask(),
        "gc": (gc.get_threshold(), gc.get_freeze_count() // 10_000, gc.isenabled()),
        "logging": (root.level, list(root.handlers), logging.getLogger("uvicorn").level),
        "warnings": (warnings.showwarning, list(warnings.filters)),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
    }


def _umask() -> int:
    now = os.umask(0o22)
    os.umask(now)
    return now


def use(relay: Relay) -> None:
    relay.internet.domain("gmail.com").rcpt("joe").reply("550 5.1.1 no")
    relay.send(ALICE, [BOB, "joe@gmail.com"], "Hello", html="<p>converted in a child process</p>")
    relay.mailbox(BOB).wait_for(subject="Hello")
    relay.mailbox(ALICE).wait_for(subject="Undeliverable*")


@pytest.fixture
def few_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_nothing_is_left_and_the_process_is_as_before(memory):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Relay() as relay:  # imports, and what libraries keep
        use(relay)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
    before = of_process(), {one.name for one in threading.enumerate()}, files(), child_processes()
    with Relay() as relay:
        use(relay)
        during = of_process()
        path = relay.running.folder.path
        assert path.is_dir()
    gc.collect()
    after = of_process(), {one.name for one in threading.enumerate()}, files(), child_processes()
    assert during == before[0]
    assert after == before
    assert not path.exists()
    assert list(memory.iterdir()) == []


@pytest.fixture
def port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("fault", ["a key", "a port"])
def test_a_failing_start_leaves_nothing(fault, port_in_use, memory):
    threads = threading.active_count()
    if fault == "a key":
        config, expected = {"delivery": {"retri": []}}, SettingsError
    else:
        config, expected = {"smtp": [{"listen": f"127.0.0.1:{port_in_use}"}]}, OSError
    with pytest.raises(expected, match=f"retri|{port_in_use}"), Relay(config=config):
        raise AssertionError
    assert threading.active_count() == threads
    assert list(memory.iterdir()) == []


@pytest.mark.parametrize("missing", ["ca.key", "ca.pem"])
def test_the_authority_of_others_is_not_overwritten(tmp_path, missing):
    made = "openssl req -x509 -nodes -newkey rsa:2048 -subj /CN=Ours -keyout ca.key -out ca.pem"
    subprocess.run(made.split(), cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / missing).unlink()
    [file] = tmp_path.iterdir()
    before = file.read_bytes()
    expected = pytest.raises(ForeignFolderError, match=f"{file} was not made by Relay")
    with expected, Relay(ca_dir=str(tmp_path)):
        raise AssertionError
    assert [(one, one.read_bytes()) for one in tmp_path.iterdir()] == [(file, before)]


def test_ctrl_c_ends_a_wait_and_stops_the_relay():
    program = (
        "from relay.testing import Relay\n"
        "with Relay() as relay:\n"
        "    print(relay.running.folder.path, flush=True)\n"
        "    relay.mailbox('bob@example.test').wait_for(timeout=60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        path = Path(running.stdout.readline().strip())
        assert path.is_dir()
        while running.poll() is None:
            # Python may miss a signal that arrives just before a blocking call: send it again.
            running.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(15)
        errors = running.stderr.read()
    assert "KeyboardInterrupt" in errors
    assert not path.exists()


def test_the_files_of_a_killed_process_are_removed_by_the_next(memory):
    program = (
        "import os, pathlib, signal, sys\n"
        "from relay.operation.app import development_folder\n"
        "from relay.testing import Relay\n"
        "development_folder._MEMORY = pathlib.Path(sys.argv[1])\n"
        "with Relay() as relay:\n"
        "    print(relay.running.folder.path, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = run_command([sys.executable, "-c", program, memory.parent])
    path = Path(ended.stdout.strip())
    assert path.is_dir()
    with Relay():
        assert not path.exists()


def test_only_the_kit_converts_in_threads():
    setting = re.compile(r"converts_in_threads\s*=\s*(?!options|self|sources|False)")
    files = (path for path in (TOP / "relay").rglob("*.py") if setting.search(path.read_text()))
    assert [str(path.relative_to(TOP)) for path in files] == ["relay/testing/running.py"]


def test_a_fork_leaves_the_relay_alone():
    with Relay() as relay:
        pid = os.fork()
        if pid == 0:
            try:
                relay.settle()
            except RuntimeError:
                relay.__exit__(None, None, None)
                os._exit(3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        use(relay)
