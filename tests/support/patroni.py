"""A cluster of two PostgreSQL servers that Patroni runs, with etcd as its store, on free loopback ports."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks import short_place
from tests.support.ports import free_port
from tests.support.postgres import OWNER, PASSWORD, PostgresServer
from tests.support.relay_process import until
from tests.support.unpacked import UNPACKED

_CONFIGURATION = Path(__file__).with_suffix(".yml").read_text()
_STORE = (
    "--enable-v2 --logger=zap --data-dir={0}/etcd --listen-client-urls={1} --advertise-client-urls={1}"
    " --listen-peer-urls={2} --initial-advertise-peer-urls={2} --initial-cluster=default={2}"
)
_START_S = 60.0


class Member(PostgresServer):
    """A server, and the Patroni that starts it."""

    def __init__(self, name: str, libraries: Path, *, store: int) -> None:
        super().__init__()
        self.name, self.api = name, free_port()
        self._libraries, self._store = libraries, store

    @property
    def pid(self) -> int:
        """Of the server's first process."""
        return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    def ask(self, path: str, **body: str) -> bool:
        """Whether Patroni's API says 200 to a GET, or to a POST where there is a body."""
        url, data = (
            f"http://127.0.0.1:{self.api}{path}",
            json.dumps(body).encode() if body else None,
        )
        with suppress(OSError), urllib.request.urlopen(url, data, timeout=60 if body else 5):
            return True
        return False

    def stop(self, *, immediate: bool = True) -> None:
        """Kill Patroni, and stop the server that it leaves."""
        super().stop(immediate=immediate)
        with suppress(OSError):
            if Path(f"/proc/{self.pid}/cwd").readlink() == self.data:
                os.kill(self.pid, signal.SIGQUIT)

    def __exit__(self, *_: object) -> None:
        self.stop()
        super().__exit__()

    def _fill(self) -> None:
        """Patroni does."""

    _begin = _fill

    def _command(self) -> list[str]:
        return ["/usr/bin/python3", "-m", "patroni", str(self.folder / "patroni.yml")]

    def _environment(self) -> dict[str, Any]:
        found = super()._environment()
        found["env"]["PYTHONPATH"] = str(self._libraries)
        return found

    def _configure(self) -> None:
        (self.folder / "patroni.yml").write_text(_CONFIGURATION.format(self=self))

    def _is_ready_or_ended(self) -> bool:
        return self.ask("/health") or self._process is None or self._process.poll() is not None


class Cluster:
    """Two members, one of them the primary, the other one a standby that confirms each commit."""

    def __init__(self, until_end: ExitStack) -> None:
        folder = Path(tempfile.mkdtemp(prefix="relay-dcs-", dir=short_place()))
        until_end.callback(shutil.rmtree, folder, ignore_errors=True)
        program = shutil.which("etcd") or UNPACKED / "bin/etcd"
        patroni = [one / "lib/python3/dist-packages" for one in (Path("/usr"), UNPACKED)]
        if not Path(program).exists() or not any((one / "patroni").exists() for one in patroni):
            pytest.skip("patroni or etcd is not installed: tests/system-packages.sh")
        if patroni[1].exists():
            shutil.copytree(patroni[1], folder / "python")
        ports = [free_port() for _ in range(2)]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        with (folder / "log").open("wb") as log:
            command = [program, *_STORE.format(folder, *urls).split()]
            self.store = until_end.enter_context(subprocess.Popen(command, stdout=log, stderr=log))
        until_end.callback(self.store.kill)
        self.members: list[Member] = []
        for name in ("pg-1", "pg-2"):
            member = Member(name, folder / "python", store=ports[0])
            self.members.append(until_end.enter_context(member))
            until("there is a primary", lambda: self.leaders, timeout_s=_START_S)
        self.until_whole()
        self.sql(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")
        self.sql(f"CREATE DATABASE {OWNER} OWNER {OWNER} TEMPLATE template0")

    @property
    def leaders(self) -> list[Member]:
        """Who takes writes, by Patroni's word."""
        return [one for one in self.members if one.ask("/primary")]

    @property
    def primary(self) -> Member:
        return self.leaders[0]

    def until_whole(self) -> None:
        """Wait until there is a primary, and a standby confirms its commits."""
        until(
            "a standby confirms commits",
            lambda: self.leaders and any(one.ask("/synchronous") for one in self.members),
            timeout_s=_START_S,
        )

    def sql(self, statement: str) -> str:
        return self.primary.sql(statement)
