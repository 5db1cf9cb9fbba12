"""`relay dev` with its options: what it listens to, whose mail it keeps, what leaves it."""

import json
import os
import smtplib
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.relay_process import ROOT, until

PORTS = [f"--{name}=127.0.0.1:0" for name in ("http", "https", "smtp")]
REJECTING = """
[[rule]]
name = "{name}"
when = {{ subject = ["{subject}"] }}
then = [ {{ reject = "5.7.1 not here" }} ]
"""


class DevProcess:
    """A running `relay dev`, and what its ready file says."""

    def __init__(self, process: "subprocess.Popen[bytes]", ready: dict[str, Any], output: Path):
        self.process = process
        self.ready = ready
        self._output = output
        self.http = f"http://{ready['http'][0]}"
        host, port = ready["smtp"][0].rsplit(":", 1)
        self.smtp = (host, int(port))

    @property
    def output(self) -> str:
        return self._output.read_text()

    def get(self, path: str, token: str = "alice", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(self.http + path, headers=headers, trust_env=False, **more)

    def inbox(self, token: str) -> list[str]:
        answer = self.get("/v1.0/me/mailFolders/inbox/messages", token)
        return [one["subject"] for one in answer.json()["value"]]

    def send(self, sender: str, recipient: str, subject: str) -> None:
        with smtplib.SMTP(*self.smtp) as session:
            session.sendmail(sender, [recipient], f"Subject: {subject}\n\nx")


@contextmanager
def relay_dev(*words: str, ports: list[str] = PORTS, **variables: str) -> Iterator[DevProcess]:
    """Run `relay dev` in a short directory until it is ready."""
    with tempfile.TemporaryDirectory(prefix="relay-options-") as name:
        folder = Path(name)
        ready, output = folder / "ready.json", folder / "output"
        command = [sys.executable, "-m", "relay", "dev", *ports, "--ready-file", str(ready), *words]
        with output.open("wb") as out:
            process = subprocess.Popen(
                command, env=environment(folder) | variables, stdout=out, stderr=out
            )
        try:
            until("it is ready", lambda: ready.exists() or process.poll() is not None)
            assert ready.exists(), output.read_text()
            yield DevProcess(process, json.loads(ready.read_text()), output)
        finally:
            sys.stderr.write(output.read_text())  # pytest shows it with a failure
            process.terminate()
            process.wait(20)
    assert process.returncode == 0


def environment(folder: Path) -> dict[str, str]:
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return kept | {"HOME": str(folder), "TMPDIR": str(folder)}


def run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run `relay dev`, which is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "relay", "dev", *PORTS, *words], env=environment(folder),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def dev() -> Iterator[DevProcess]:
    with relay_dev() as running:
        yield running


def test_the_demonstration_leaves_nothing(dev: DevProcess) -> None:
    assert "one message, seven steps" in dev.output
    for name in ("alice", "bob"):
        assert dev.get("/v1.0/me/messages", name).json()["value"] == []
    assert dev.get("/relay/v1/messages", dev.ready["token"]).json()["messages"] == []
    assert dev.get("/relay/v1/queue", dev.ready["token"]).json() == []
    folders = [one.name for one in Path(dev.ready["dir"]).parent.glob("relay-dev-*")]
    assert folders == [f"relay-dev-{os.getuid()}"], "the relay of the demonstration is gone"


def test_smtp_has_starttls_with_the_development_certificate(dev: DevProcess) -> None:
    trust = ssl.create_default_context(cafile=dev.ready["ca"])
    with smtplib.SMTP("localhost", dev.smtp[1]) as session:
        session.login("alice", "alice")  # on loopback also without TLS
    with smtplib.SMTP("localhost", dev.smtp[1]) as session:
        session.starttls(context=trust)
        session.login("alice", "alice")
        session.sendmail("alice@example.test", ["bob@example.test"], "Subject: by TLS\n\nx")
    until("bob has it", lambda: dev.inbox("bob") == ["by TLS"])


def test_no_demo_shows_none_and_the_ready_file_is_private() -> None:
    with relay_dev(RELAY_DEV_NO_DEMO="1", RELAY_DEV_NO_SUCH="1") as running:
        assert "seven steps" not in running.output
        assert "RELAY_DEV_NO_SUCH is ignored" in running.output
        assert Path(running.ready["dir"]).is_dir()
        [ready] = Path(running.ready["dir"]).parent.glob("ready.json*")
        assert ready.stat().st_mode & 0o777 == 0o600


def test_changed_rules_are_loaded_and_faulty_ones_are_not(tmp_path: Path) -> None:
    rules = tmp_path / "10-mine.toml"
    rules.write_text(REJECTING.format(name="one", subject="one"))

    def is_rejected(subject: str) -> bool:
        try:
            running.send("a@b.test", "bob@example.test", subject)
        except smtplib.SMTPDataError as error:
            return b"5.7.1 not here" in bytes(error.smtp_error)
        return False

    with relay_dev("--no-demo", "--rules", str(tmp_path)) as running:
        assert (is_rejected("one"), is_rejected("two")) == (True, False)
        rules.write_text("[[rule]]\nnames = 1\n")
        until("the fault is shown", lambda: f"{rules}:2: " in running.output)
        assert "the rules before this change stay in force" in running.output
        assert is_rejected("one")
        rules.write_text(REJECTING.format(name="two", subject="two"))
        until("it is loaded", lambda: "1 rule in force" in running.output)
        assert (is_rejected("one"), is_rejected("two")) == (False, True)
        rules.unlink()
        until("none are left", lambda: "0 rules in force" in running.output)


def test_no_rules_accepts_what_the_shipped_rules_reject(tmp_path: Path) -> None:
    with relay_dev("--no-demo", "--no-rules", "--dir", str(tmp_path / "d")) as running:
        text = (
            "Subject: x\nMIME-Version: 1.0\nContent-Type: application/x-msdownload;"
            ' name="setup.exe"\nContent-Disposition: attachment; filename="setup.exe"\n\nMZ'
        )
        with smtplib.SMTP(*running.smtp) as session:
            assert session.sendmail("a@b.test", ["bob@example.test"], text) == {}


@pytest.mark.parametrize("words", [(), ("--once",)])
def test_faulty_rules_end_it_with_file_and_line(short_path: Path, words: tuple[str, ...]) -> None:
    rules = short_path / "10-mine.toml"
    rules.write_text("[[rule]]\nname = 'x'\nwhen = { subjects = ['x'] }\n")
    done = run(short_path, "--rules", str(short_path), *words)
    assert (done.returncode, done.stdout) == (78, "")
    assert f"{rules}:3: " in done.stderr


def test_exit_after_counts_captured_messages(tmp_path: Path) -> None:
    with relay_dev("--no-demo", "--exit-after", "2", "--json") as running:
        running.send("a@b.test", "c@d.test", "one")
        running.send("a@b.test", "bob@example.test", "two")
        assert running.process.wait(30) == 0
        lines = [json.loads(line) for line in running.output.splitlines()]
        assert {line["name"] for line in lines[1:]} >= {"policy and routing", "delivery"}
