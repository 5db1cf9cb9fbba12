"""One `relay serve` in a folder of its own, and what it costs.

It is ended by its own process id. Raises SystemExit with the end of its log when it does not start.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

_CONFIGURATION = """\
hostname = "relay.bench.test"
state_dir = "state"
[http]
listen = ["127.0.0.1:0"]
[[smtp]]
listen = "127.0.0.1:0"
trusted_networks = ["127.0.0.0/8"]
[mailboxes]
domains = ["example.test"]
root = "mail"
accounts = "accounts.toml"
[dns]
nameservers = ["{dns}"]
[delivery]
port = {port}
tls = "none"
[observe]
log = "json"
"""
_OPERATOR = '[[account]]\naddress = "operator@example.test"\ntoken = "plain:o"\nrole = "operate"\n'
_START_S = 120.0


class Instance:
    """`with Instance(folder, ...) as relay`; a folder that has a spool keeps it."""

    def __init__(self, folder: Path, *, command: Sequence[str], dns: str, port: int) -> None:
        """`port` is where every host takes mail."""
        self.folder = folder
        self.began_s = 0.0
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] = {}
        (folder / "policies").mkdir(parents=True, exist_ok=True)
        (folder / "relay.toml").write_text(_CONFIGURATION.format(dns=dns, port=port))
        accounts = folder / "accounts.toml"
        accounts.touch(0o600)
        accounts.write_text(_OPERATOR)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it is ready."""
        ready = self.folder / "ready"
        ready.unlink(missing_ok=True)
        self.began_s = time.monotonic()
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*self._command, "serve", "--config", str(self.folder / "relay.toml"),
                 "--ready-file", str(ready)], stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > self.began_s + _START_S:
                sys.exit(f"the relay did not start:\n{(self.folder / 'log').read_text()[-3000:]}")
            time.sleep(0.005)
        self._ready = json.loads(ready.read_text())
        return self

    def stop(self) -> None:
        """End it, by force if it must be."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def remove(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def smtp_port(self) -> int:
        return int(self._ready["smtp"][0].rpartition(":")[2])

    def resident_mb(self) -> float:
        """Its resident memory."""
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0

    def cpu_s(self) -> float:
        """Processor time until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        http = self._ready["http"][0]
        address = http if "://" in http else f"http://{http}"
        with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def run(self, *words: str) -> float:
        """Run a relay command beside it; return how long it took. Raises CalledProcessError."""
        began_s = time.monotonic()
        command = [*self._command, *words, "--config", str(self.folder / "relay.toml")]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=120)
        return time.monotonic() - began_s
