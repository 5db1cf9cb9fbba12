"""The command as a process: exit codes, pipes, signals."""

import contextlib
import fcntl
import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relay.development.option_fields import PORTS
from tests.support import relay_starts
from tests.support.commands import run_command
from tests.support.relay_process import until
from tests.support.tables import each_row

ANY_PORTS = tuple(f"--{name}=127.0.0.1:0" for name in PORTS)
# Python that runs `relay` as a shell does, but for where a development relay is found.
FROM_SHELL = """import os, pathlib, runpy
from relay.operation.app import development_folder
development_folder._SESSIONS = development_folder._LINKS = pathlib.Path(os.environ["HOME"])
runpy.run_module("relay", run_name="__main__", alter_sys=True)
"""
RELAY = (sys.executable, "-c", FROM_SHELL)
TIMEOUT_S = 120.0


class Shell:
    """Runs `relay` with a temporary folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        own = ("RELAY_", "PYTHON")  # the tester's settings would hide how output is buffered
        kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        own = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": str(relay_starts.ROOT)}
        self.environment = {**kept, **own}

    def __call__(self, *words, **variables):
        done = relay_starts.run(
            [*relay_starts.RELAY, *words],
            cwd=relay_starts.ROOT,
            env=self.environment | variables,
            timeout_s=TIMEOUT_S,
        )
        assert "Traceback" not in done.stderr
        return done

    def begin(self, *words, stdout=subprocess.PIPE):
        """Start Python, as a user's shell does."""
        return subprocess.Popen(
            [*RELAY, *words],
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
        )


def without_end(err):
    """Return what `relay dev` printed on stderr before it said, at once, that it stops. Root is told
    of Dovecot where it is installed.
    """
    before, found, _ = err.partition("relay dev: stopping; ")
    assert found
    return "".join(line for line in before.splitlines() if "Dovecot refuses" not in line)


def listens(pid):
    """Return whether the process has a listening TCP socket; its signal handlers come before."""
    sockets = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A":  # LISTEN
            sockets.add(f"socket:[{words[9]}]")
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if str(link.readlink()) in sockets:
                return True
    return False


@pytest.fixture(scope="module")
def shell():
    with tempfile.TemporaryDirectory(prefix="relay-shell-") as folder:
        yield Shell(Path(folder))


@pytest.fixture(scope="module")
def dev(shell):
    """A development relay in the user's own folder, which the other commands find. It has one failed
    message for friend@elsewhere.test.
    """
    expected_text = shell.folder / "expected_text"
    with expected_text.open("w") as out:
        process = shell.begin("dev", "--json", *ANY_PORTS, stdout=out)
    until(
        "it listens, one is captured, one failed",
        lambda: expected_text.read_text().count("\n") >= 3 or process.poll() is not None,
    )
    program = shell.folder / "setup.exe"
    program.write_bytes(b"MZ")
    words = ("--token", "alice", "--to", "friend@elsewhere.test", "--attach", str(program))
    until("it can be sent to", lambda: shell("send", *words, "--body", "x").returncode == 0)
    assert shell("wait", "friend@elsewhere.test").returncode == 0
    yield process
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, without_end(err)) == (0, "")
    lines = [json.loads(line) for line in expected_text.read_text().splitlines()]
    assert lines[0]["pid"] == process.pid
    assert lines[0]["pages"] == f"http://{lines[0]['http'][0]}/"
    assert [line["state"] for line in lines[1:3]] == ["captured", "failed"]
    assert all(line["step"] in range(1, 8) for line in lines[3:])
    assert not list(shell.folder.glob("relay-dev-*")), "the folder goes with the relay"


@pytest.fixture(scope="module")
def sent(shell, dev):
    """The id of a message that was delivered, with all its steps: the fourth may come late."""
    arguments = ("--token", "alice", "--to", "bob@example.test", "--subject", "Grüße ✓")
    identity = shell("send", *arguments, "--body", "x").stdout.strip()
    assert shell("wait", identity).returncode == 0
    until("six steps", lambda: len(steps_of(shell, identity)) == 6)
    return identity


def steps_of(shell, identity):
    return [step["step"] for step in json.loads(shell("trace", identity, "--json").stdout)["steps"]]


@contextlib.contextmanager
def running_dev(folder, *words, before="", **variables):
    """Run a development relay, `before` what the shell does first; yield where HTTP listens."""
    expected_text = folder / "expected_text"
    command = shlex.join((*RELAY, "dev", "--json", *words, *ANY_PORTS))
    with expected_text.open("w") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"{before}\nexec {command}"],
            env=Shell(folder).environment | variables,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        until("it listens", lambda: "\n" in expected_text.read_text() or process.poll() is not None)
        [address] = json.loads(expected_text.read_text().splitlines()[0])["http"]
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, without_end(err)) == (0, "")


def asked(address, path, **headers):
    """Return the status and the text of an answer."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_half_sent_requests_do_not_take_all_open_files(short_path):
    with (
        running_dev(short_path, "--no-demo", before="ulimit -n 256") as address,
        contextlib.ExitStack() as held,
    ):
        host, port = address.split(":")
        for _ in range(300):
            client = held.enter_context(socket.create_connection((host, int(port))))
            with contextlib.suppress(ConnectionError):  # one that gave way to a later one
                client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nA")
        assert asked(address, "/readyz", Host="localhost")[0] == 200


def test_ctrl_c_before_the_end_of_the_demonstration_is_no_success(short_path):
    reading, writing = os.pipe()
    # with no room for its first line it does not come to the demonstration before the signal
    os.write(writing, b" " * fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096))
    process = Shell(short_path).begin("dev", "--once", *ANY_PORTS, stdout=writing)
    os.close(writing)
    until("it listens", lambda: process.poll() is not None or listens(process.pid))
    process.send_signal(signal.SIGINT)
    with open(reading) as out:  # noqa: PTH123 - a descriptor
        out.read()
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, without_end(err)) == (130, "")
    assert not list(short_path.iterdir())


def test_of_several_relays_a_command_asks_which_one_is_meant(short_path):
    if Path("/etc/relay/relay.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    shell, home = Shell(short_path), {"HOME": str(short_path)}
    one, two, test = (short_path / name for name in ("one", "two", "test"))  # each is a TMPDIR
    for folder in (one, two, test):
        folder.mkdir()
    kept = ("--no-demo", "--dir", str(short_path / "kept"))
    with running_dev(one, *kept, **home) as first:
        words = ("send", "--token", "alice", "--to", "bob@example.test", "--body", "x")
        assert shell(*words, "--subject", "first").returncode == 0
        program = ("--no-demo", "--ready-file", str(test / "ready"))
        with running_dev(test, *program, **home):
            assert '"first"' in shell("trace", "last").stdout
        with running_dev(two, "--no-demo", **home) as second:
            for verb in ("list", "reset", "send"):
                done = shell(verb, *words[1:] if verb == "send" else ())
                assert (done.returncode, done.stdout) == (64, "")
            named = dict(re.findall(r"HTTP (\S+):  (--config \S+)$", done.stderr, re.MULTILINE))
            assert set(named) == {first, second}
            assert done.stderr.count("  SMTP 127.0.0.1:") == 2
            # a program cannot choose: that without --dir
            assert shell("sendmail", "bob@example.test").returncode == 0
            for address, text in ((first, '"first"'), (second, "bob@")):
                listed = shell("list", *named[address].split()).stdout
                assert (text in listed, listed.count("\n")) == (True, 1)
        assert '"first"' in shell("list").stdout
    assert "`relay dev` does not run" in shell("list").stderr


def test_a_service_whose_file_the_user_cannot_read_hides_no_relay_dev(short_path):
    service = short_path / "relay.toml"
    service.write_text('hostname = "relay.example.org"')
    service.chmod(0)
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]  # root reads all files
    default = f"environment.DEFAULT_CONFIG = pathlib.Path({str(service)!r})\n"
    program = FROM_SHELL.replace(
        "runpy.", f"from relay.base.settings import environment; {default}runpy.", 1
    )
    with running_dev(short_path, "--no-demo", HOME=str(short_path)):
        words = ("send", "--token", "alice", "--to", "bob@example.test", "--body", "x")
        done = run_command(
            [*([] if os.geteuid() else rights), sys.executable, "-c", program, *words],
            env=Shell(short_path).environment,
        )
    assert done.returncode == 0, done.stderr


def test_a_closed_or_full_output_keeps_the_exit_code(shell, sent):
    command = f"{shlex.join(RELAY)} trace {sent} "
    for closed, code in (
        (">&-", 0),
        (">/dev/full", 69),
        (">/dev/full 2>&1", 69),
        ("unknown 2>/dev/full", 64),
        ("| true; exit ${PIPESTATUS[0]}", 0),
    ):
        done = run_command(["/bin/bash", "-c", command + closed], env=shell.environment)
        assert done.returncode == code, (closed, done.stderr)
        assert ("No space left" in done.stderr) == (closed == ">/dev/full"), done.stderr
        assert "Exception ignored" not in done.stderr
        assert "Traceback" not in done.stderr


@each_row(
    "words, code, expected_text",
    [
        (["trace", "unknown"], 65, 'unknown message "unknown"'),
        (["queue", "show", "unknown"], 65, 'unknown message "unknown"'),
        (["queue", "retry", "unknown"], 65, 'not in the queue: "unknown"'),
        (["wait", "unknown", "--timeout", "0"], 75, "no message appeared"),
        (
            ["wait", "friend@elsewhere.test", "--timeout", "0", "--state", "relayed"],
            75,
            "at step 7",
        ),
        (
            ["wait", "friend@elsewhere.test", "--timeout", "600", "--state", "relayed"],
            75,
            "failed: relayed can no longer come by itself",
        ),
        (["send", "--to", "not an address"], 65, "is not an address"),
        (["queue", "list", "--sender", "\udcff"], 64, "an argument that is not text in UTF-8"),
        (["send", "--to", "bob@example.test", "--subject", "a\nBcc: x@y.test"], 65, "line break"),
        (["send", "--to", "bob@example.test", "--token", "a\nb"], 65, "token"),
        (
            ["send", "--to", "bob@example.test", "--token", "alice", "--from", "bob@example.test"],
            77,
            "403",
        ),
        (["trace", "last", "--config", "/nonexistent"], 78, "/nonexistent: found no such file"),
    ],
)
def test_failures_have_their_text_and_exit_code(shell, dev, words, code, expected_text):
    done = shell(*words)
    assert done.returncode == code, done.stderr
    assert expected_text in done.stderr


def test_serve_does_not_take_the_configuration_of_a_running_dev(shell, dev):
    if Path("/etc/relay/relay.toml").exists():
        pytest.skip("this machine has a configuration of its own")
    done = shell("serve")
    assert (done.returncode, done.stdout) == (78, "")
    assert "/etc/relay/relay.toml: found no such file" in done.stderr


@pytest.mark.usefixtures("dev")
@pytest.mark.parametrize("words", [("queue", "stats"), ("trace", "last")])
def test_client_commands_do_not_import_the_daemon(shell, words):
    asked = [sys.executable, "-X", "importtime", *RELAY[1:], *words]
    done = run_command(asked, env=shell.environment)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "relay.operation.commands.operator_client" in loaded
    assert not loaded & {
        "apsw",
        "asyncio",
        "asyncpg",
        "logging",
        "relay.store.mailbox",
        "relay.store.spool.sqlite",
    }
    assert not loaded & {"argon2", "cryptography", "joserfc", "starlette", "tomlkit", "uvicorn"}
