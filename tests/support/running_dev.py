"""`relay dev` as a process of its own, in a short directory, and what its ready file says."""

import json
import os
import smtplib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from relay.development.verbs import dev_options
from tests.support import relay_starts
from tests.support.relay_process import ROOT, until

PORTS = tuple(f"--{name}=127.0.0.1:0" for name in dev_options.PORTS)


class RunningDev:
    """A running `relay dev`, and what its ready file says."""

    def __init__(self, process: relay_starts.Started, ready: dict[str, Any], output: Path):
        self.process = process
        self.ready = ready
        self._output = output
        self.folder = output.parent  # its home, and its directory of temporary files
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

    def send_captured(self, recipient: str, content: bytes) -> str:
        """Send a message to a recipient whose mail is captured; return its queue id once it is."""
        with smtplib.SMTP(*self.smtp) as session:
            session.ehlo()
            session.mail("app@example.test")
            session.rcpt(recipient)
            code, reply = session.data(content)
        assert code == 250
        key = reply.split()[-1].decode()
        answer = self.get(f"/relay/v1/messages/{key}/wait?state=captured", self.ready["token"])
        assert answer.status_code == 200
        return str(key)

    def send(self, sender: str, recipient: str, subject: str) -> None:
        with smtplib.SMTP(*self.smtp) as session:
            session.sendmail(sender, [recipient], f"Subject: {subject}\n\nx")


@contextmanager
def relay_dev(*words: str, ports: Sequence[str] = PORTS, **variables: str) -> Iterator[RunningDev]:
    """Run `relay dev` in a short directory until it is ready."""
    with tempfile.TemporaryDirectory(prefix="relay-options-") as name:
        folder = Path(name)
        ready, output = folder / "ready.json", folder / "output"
        command = [*relay_starts.RELAY, "dev", *ports, "--ready-file", str(ready), *words]
        with output.open("wb") as out:
            process = relay_starts.start(
                command, cwd=folder, env=environment(folder) | variables, stdout=out, stderr=out
            )
        try:
            until("it is ready", lambda: ready.exists() or process.poll() is not None)
            assert ready.exists(), output.read_text()
            yield RunningDev(process, json.loads(ready.read_text()), output)
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
    command = [*relay_starts.RELAY, "dev", *PORTS, *words]
    return relay_starts.run(command, cwd=folder, env=environment(folder))


def relay_command(running: RunningDev, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run another command of relay on it."""
    folder = Path(running.ready["dir"])
    command = [*relay_starts.RELAY, *words, "--config", str(folder / "relay.toml")]
    return relay_starts.run(command, cwd=folder, env=environment(folder))
