"""The programs in docs/graph.md run as they are written there, against `relay dev`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.development.verbs.dev_options import PORTS
from tests.clients.conftest import INSTALLED
from tests.support.endpoint_rows import PAGE
from tests.support.relay_process import ROOT, until

SECTION = PAGE.read_text().partition("\n## Client libraries\n")[2].partition("\n## ")[0]
PROGRAM = re.compile(r"^\*\*([^*]+)\*\*.*?^```(python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    title.split()[0]: (language, text) for title, language, text in PROGRAM.findall(SECTION)
}
SHELL = re.compile(r"^```\n((?:curl |api=|printf |etag=).*?)^```$", re.MULTILINE | re.DOTALL)
LINES_MAX = 16


@dataclass(frozen=True)
class DevelopmentRelay:
    """`relay dev` on free ports."""

    ready: dict[str, Any]
    folder: Path

    def with_its_ports(self, text: str) -> str:
        """Return a program with the ports of this relay instead of the usual ones."""
        for usual, name in ((8025, "http"), (8443, "https")):
            for taken in self.ready.get(name, []):
                text = text.replace(f":{usual}", ":" + taken.rpartition(":")[2])
        return text

    def subjects(self, user: str, folder: str) -> list[str]:
        """The subjects of the messages in a folder of a user."""
        answer = httpx.get(
            f"http://{self.ready['http'][0]}/v1.0/me/mailFolders/{folder}/messages",
            headers={"Authorization": f"Bearer {user}"},
        )
        return [one["subject"] for one in answer.json()["value"]]

    def send(self, recipient: str, subject: str) -> None:
        """Send a message as alice, and wait until it is there."""
        to = {"emailAddress": {"address": recipient}}
        with httpx.Client(
            base_url=f"http://{self.ready['http'][0]}", headers={"Authorization": "Bearer alice"}
        ) as client:
            body = {"message": {"subject": subject, "toRecipients": [to]}}
            sent = client.post("/v1.0/me/sendMail", json=body)
            waited = client.get(
                f"/relay/v1/messages/{sent.headers['x-relay-message-id']}/wait", timeout=60
            )
        assert waited.json()["reached"]

    def run(self, *command: str, text: str, suffix: str) -> str:
        """Run a program, which must end with 0; return what it prints."""
        path = self.folder / f"program{suffix}"
        path.write_text(self.with_its_ports(text))
        ca = str(self.ready["ca"])
        trusts = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), ca)
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        done = subprocess.run(
            [*command, str(path)], cwd=self.folder, capture_output=True, text=True, timeout=120,
            env=kept | trusts | {"NODE_PATH": str(INSTALLED / "node_modules")}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def trust() -> None:
    """The programs are other processes, which get the certificate by their environment."""


@pytest.fixture(scope="module")
def development(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevelopmentRelay]:
    folder = tmp_path_factory.mktemp("dev")
    ready = folder / "ready.json"
    ports = [word for name in PORTS for word in (f"--{name}", "127.0.0.1:0")]
    command = [sys.executable, "-m", "relay", "dev", "--dir", str(folder / "dev"), *ports]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--ready-file", str(ready)], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        until("ready, or ended", lambda: ready.exists() or process.poll() is not None)
        yield DevelopmentRelay(json.loads(ready.read_text()), folder)
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("msgraph-sdk", r"\["),
        ("azure-identity", r"\w{10,}\n"),
        ("msal", "202\n"),
        ("O365", "True\n"),
        ("@microsoft/microsoft-graph-client", "sent\n"),
    ],
)
def test_program(development: DevelopmentRelay, name: str, printed: str) -> None:
    language, text = PROGRAMS[name]
    assert len(text.splitlines()) <= LINES_MAX
    if language == "js":
        node = shutil.which("node")
        if node is None or not (INSTALLED / "node_modules").is_dir():
            pytest.skip("node and its packages are not installed: make clients")
        output = development.run(node, text=text, suffix=".js")
    else:
        for module in re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE):
            pytest.importorskip(module, reason=f"make clients installs {module}")
        output = development.run(sys.executable, text=text, suffix=".py")
    assert re.match(printed, output), output
    if subject := re.search(r"From [\w ]+(?=['\"])", text):
        until("Bob has the message", lambda: subject[0] in development.subjects("bob", "inbox"))


def test_shell_examples(development: DevelopmentRelay) -> None:
    """All of them in one shell, in the order of the page: some use variables of those before."""
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    examples = SHELL.findall(PAGE.read_text().partition("\n## /relay/v1")[0])
    assert len(examples) > 5
    development.send("alice@example.test", "a message that the examples read")
    text = "set -euo pipefail\n" + "\n".join(examples)
    output = development.run("bash", text=text, suffix=".sh")
    assert '"error"' not in output
    assert re.findall(r"^HTTP/1.1 [345].*", output, re.MULTILINE) == []
    until("Bob has the report", lambda: "Report" in development.subjects("bob", "inbox"))


def test_every_program_is_run() -> None:
    marks = test_program.pytestmark[0].args[1]
    assert {name for name, _ in marks} == set(PROGRAMS)
