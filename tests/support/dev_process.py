"""`relay dev` as a process of its own, in a folder of its own, and what a test asks it.

    with DevProcess() as relay:
        relay.submit("app@example.test", ["someone@gmail.com"])

Every port is a free one. The demonstration has ended when start() returns.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from relay.development.verbs.dev_options import PORTS
from tests.support.graph_client import Answer
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until


class DevProcess(RelayProcess):
    """One development relay. The token OPERATOR stands for that of its ready file."""

    def __init__(self, *options: str, environment: Mapping[str, str] | None = None) -> None:
        """`options` are further ones of `relay dev`."""
        self.folder = Path(tempfile.mkdtemp(prefix="relay-dev-"))
        self.config_file = self.folder / "relay.toml"
        self.process = None
        self.ready = {}
        self._environment = dict(environment or {})
        self._options = options

    def _start_command(self) -> list[str]:
        ports = [f"--{name}=127.0.0.1:0" for name in PORTS]
        command = self._command("dev", "--dir", str(self.folder), *ports, *self._options)
        return [one for one in command if one not in ("--config", str(self.config_file))]

    def mailbox_of(self, address: str) -> Path:
        """The Maildir of an address."""
        local_part, _, domain = address.rpartition("@")
        return self.folder / "mail" / domain / local_part

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Answer:
        headers = dict(headers or {})
        if headers.get("Authorization") == f"Bearer {OPERATOR}":
            headers["Authorization"] = f"Bearer {self.ready['token']}"
        return super().request(method, path, body, headers, **options)

    def until_messages(self, address: str, count: int) -> list[dict[str, Any]]:
        """Wait until the inbox of a captured recipient has so many messages; return them."""

        def messages() -> list[dict[str, Any]]:
            answer = self.graph("GET", f"/users/{quote(address)}/mailFolders/inbox/messages")
            found = list(answer.json()["value"]) if answer.status == 200 else []
            return found if len(found) >= count else []

        return until(f"{count} messages for {address}", messages)


def running_dev(*options: str) -> Iterator[DevProcess]:
    """Yield a relay without demonstration, for a fixture; close it after its tests."""
    made = DevProcess("--no-demo", *options)
    try:
        yield made.start()
    finally:
        made.close()
