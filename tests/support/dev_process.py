"""`relay dev` as a process of its own, in a folder of its own, and what a test asks it.

    def test_it_is_captured(dev) -> None:
        dev("--no-demo").send_captured("someone@gmail.com", b"Subject: x\r\n\r\nx\r\n")

The fixtures `dev`, and `dev_module` for the relay of a module, start it and close it. Every port is a
free one. The demonstration has ended when the relay is started.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest

from relay.development import option_fields
from relay.development.mail_access.dovecot import find_dovecot
from tests.support import relay_starts
from tests.support.graph_client import Answer
from tests.support.ports import free_port
from tests.support.relay_config import OPERATOR
from tests.support.relay_process import RelayProcess, until

PORTS = tuple(
    f"--{name}=127.0.0.1:0"
    for name in (*option_fields.PORTS, *option_fields.IN_CLEAR)
    if name in option_fields.PORTS or not find_dovecot().why_not(name)
)
_TRACE = (
    "strace",
    "-D",
    "-f",
    "-qq",
    "--seccomp-bpf",
    "-e",
    "trace=connect,sendto,sendmsg,sendmmsg",
)
_SOCKADDR = re.compile(
    r"sa_family=(?P<family>AF_\w+)"
    r"(?:.*?(?:inet_addr|inet_pton)\((?:AF_INET6, )?\"(?P<address>[^\"]+)\")?"
)
_FAMILIES = {"AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_UNSPEC"}


class DevProcess(RelayProcess):
    """One development relay. The token OPERATOR stands for that of its ready file."""

    def __init__(
        self,
        *options: str,
        ports: Sequence[str] = PORTS,
        own_dir: bool = True,
        traced: bool = False,
        **variables: str,
    ) -> None:
        """`options` are further ones of `relay dev`, `variables` go into its environment. Its directory
        is its folder; without `own_dir` the one that it chooses, below. With `traced` it runs below strace.
        """
        if traced and shutil.which("strace") is None:
            pytest.skip("strace is not installed")
        self.folder = Path(tempfile.mkdtemp(prefix="relay-dev-"))
        self.config_file = self.folder / "relay.toml"
        self.process = None
        self.ready = {}
        self._environment = {"TMPDIR": str(self.folder)} | variables
        self._traced = traced
        self.options: Sequence[str] = options
        if ports is PORTS and "--listen-all" in options:
            # The relay chooses a port before it binds all addresses: others get it meanwhile.
            ports = [f"--{name}=127.0.0.1:{free_port()}" for name in option_fields.PORTS]
        self._before = [*ports, *(["--dir", str(self.folder)] if own_dir else [])]

    def start(self, *, crash_at: str = "", wait: bool = True) -> Self:
        super().start(crash_at=crash_at, wait=wait)
        if self.ready:
            self.config_file = Path(self.ready["dir"]) / "relay.toml"
        return self

    def start_command(self) -> list[str]:
        tracer = [*_TRACE, "-o", str(self.folder / "trace")] if self._traced else []
        return [*tracer, *relay_starts.RELAY, "dev", *self._before, *self.options]

    def stop_and_see_hosts(self) -> set[str]:
        """The IPv4 addresses that a traced relay named until its end; all others are on loopback."""
        assert self.stop() == 0
        lines = (self.folder / "trace").read_text().splitlines()
        seen = {
            (one["family"], one["address"] or "") for one in map(_SOCKADDR.search, lines) if one
        }
        hosts = {address for family, address in seen if family == "AF_INET"}
        assert {one for one in hosts if not one.startswith("127.")} == set()
        assert {address for family, address in seen if family == "AF_INET6"} <= {"::1"}
        assert {family for family, _ in seen} <= _FAMILIES
        return hosts

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

    def advance(self, seconds: float) -> datetime:
        """Advance its clock; return what it shows then."""
        body = {"advance_s": seconds}
        answer = self.graph("POST", "/relay/v1/dev/clock", body, token=OPERATOR)
        assert answer.status == 200, answer.body
        return datetime.fromisoformat(answer.json()["now"])

    def until_messages(self, address: str, count: int) -> list[dict[str, Any]]:
        """Wait until the inbox of a captured recipient has so many messages; return them."""

        def messages() -> list[dict[str, Any]]:
            answer = self.graph("GET", f"/users/{quote(address)}/mailFolders/inbox/messages")
            found = list(answer.json()["value"]) if answer.status == 200 else []
            return found if len(found) >= count else []

        return until(f"{count} messages for {address}", messages)

    def inbox(self, token: str) -> list[str]:
        """The subjects in somebody's inbox."""
        return [one["subject"] for one in self.messages("inbox", token=token)]

    def send(self, sender: str, recipient: str, subject: str) -> None:
        with self.smtp() as session:
            session.sendmail(sender, [recipient], f"Subject: {subject}\n\nx")

    def send_captured(self, recipient: str, content: bytes) -> str:
        """Send a message to a recipient whose mail is captured; return its queue id once it is."""
        key = self.submit("app@example.test", [recipient], content)
        self.until_state(key, "captured")
        return key


def run_dev(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `relay dev` in a folder; it is expected to end by itself."""
    variables = relay_starts.environment(folder) | {"TMPDIR": str(folder)} | variables
    return relay_starts.run([*relay_starts.RELAY, "dev", *PORTS, *words], cwd=folder, env=variables)
