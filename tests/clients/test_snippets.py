"""The programs in docs/graph.md run as they are written there, against `relay dev`."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import node, run
from tests.support.dev_process import DevProcess
from tests.support.endpoint_rows import PAGE
from tests.support.relay_process import until

SECTION = PAGE.read_text().partition("\n## Client libraries\n")[2].partition("\n## ")[0]
PROGRAM = re.compile(r"^\*\*([^*]+)\*\*.*?^```(python|js)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {
    title.split()[0]: (language, text) for title, language, text in PROGRAM.findall(SECTION)
}
SHELL = re.compile(r"^```\n((?:curl |api=|printf ).*?)^```$", re.MULTILINE | re.DOTALL)
LINES_MAX = 16


def run_text(relay: DevProcess, folder: Path, *command: str, text: str, suffix: str) -> str:
    """Run a program, with the ports of this relay; return what it prints."""
    path = folder / f"program{suffix}"
    for usual, name in ((8025, "http"), (8443, "https")):
        text = text.replace(f":{usual}", ":" + relay.ready[name][0].rpartition(":")[2])
    path.write_text(text)
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
    return run([*command, str(path)], folder, **dict.fromkeys(names, str(relay.ready["ca"])))


@pytest.fixture
def trust() -> None:
    """The programs are other processes, which get the certificate by their environment."""


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("azure-identity", r"\w{10,}\n"),
        ("msal", "202\n"),
        ("O365", "True\n"),
        ("@microsoft/microsoft-graph-client", "sent\n"),
    ],
)
def test_program(plain_dev: DevProcess, tmp_path: Path, name: str, printed: str) -> None:
    language, text = PROGRAMS[name]
    assert len(text.splitlines()) <= LINES_MAX
    if language == "js":
        output = run_text(plain_dev, tmp_path, node(), text=text, suffix=".js")
    else:
        for module in re.findall(r"^(?:import|from) ([\w.]+)", text, re.MULTILINE):
            pytest.importorskip(module, reason=f"make clients installs {module}")
        output = run_text(plain_dev, tmp_path, sys.executable, text=text, suffix=".py")
    assert re.match(printed, output), output
    if subject := re.search(r"From [\w ]+(?=['\"])", text):
        until("Bob has the message", lambda: subject[0] in plain_dev.subjects("bob"))


def test_shell_examples(plain_dev: DevProcess, tmp_path: Path) -> None:
    """All of them in one shell, in the order of the page: some use variables of those before."""
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    examples = SHELL.findall(PAGE.read_text().partition("\n## /relay/v1")[0])
    assert len(examples) > 5
    to, subject = ["alice@example.test"], "a message that the examples read"
    plain_dev.until_final(plain_dev.send_mail(to=to, subject=subject))
    text = "set -euo pipefail\n" + "\n".join(examples)
    output = run_text(plain_dev, tmp_path, "bash", text=text, suffix=".sh")
    assert '"error"' not in output
    assert re.findall(r"^HTTP/1.1 [345].*", output, re.MULTILINE) == []
    until("Bob has the report", lambda: "Report" in plain_dev.subjects("bob"))


def test_every_program_is_run() -> None:
    marks = test_program.pytestmark[0].args[1]
    assert {name for name, _ in marks} == set(PROGRAMS)
