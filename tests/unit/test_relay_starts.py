"""Relays that tests fork from a loaded process are like those that Python starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import relay_starts
from tests.support.long_tests import long
from tests.support.relay_process import RelayProcess

pytestmark = long
ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONPATH": str(relay_starts.ROOT), "NO_COLOR": "1"}
WORDS = [
    ["--version"],
    ["queue", "list", "--config", "missing.toml"],
    ["explain"],
    ["policy", "check", "missing"],
    ["no-such-verb"],
]


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_commands_print_and_return_the_same(tmp_path: Path, words: list[str]) -> None:
    command = [*relay_starts.RELAY, *words]
    started = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    forked = relay_starts.run(command, cwd=tmp_path, env=ENVIRONMENT)
    assert vars(forked) == vars(started)


def test_each_relay_is_a_process_with_the_environment_and_signals_of_its_own() -> None:
    with RelayProcess() as one, RelayProcess(environment={"TZ": "Asia/Kolkata"}) as other:
        assert one.process is not None
        assert other.process is not None
        assert one.process.pid != other.process.pid
        assert one.ready["pid"] == one.process.pid
        assert other.process.poll() is None
        one.kill()
        assert one.process.returncode == -signal.SIGKILL
        assert other.stop() == 0
        one.start()
        assert one.process.poll() is None


def test_what_python_reads_at_its_start_starts_python(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"PYTHONWARNINGS": "error"}
    forked = relay_starts.start([*relay_starts.RELAY, "--version"], cwd=tmp_path, env=ENVIRONMENT)
    assert isinstance(forked, relay_starts.StartedRelay)
    assert forked.wait(20) == 0
    for words, variables in (
        ([*relay_starts.RELAY, "--version"], environment),
        ([sys.executable, "-c", ""], ENVIRONMENT),
    ):
        process = relay_starts.start(words, cwd=tmp_path, env=variables)
        assert isinstance(process, subprocess.Popen)
        assert process.wait(20) == 0
