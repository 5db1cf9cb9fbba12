"""The programs in docs/snippets.md run as they are written there, apart from the ports, against `relay dev`."""

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.conftest import node, run
from tests.support.dev_process import DevProcess
from tests.support.long_tests import long
from tests.support.relay_process import ROOT

PAGE = ROOT / "docs/snippets.md"
EXAMPLES = ROOT / "docs/examples"
RECIPIENT = "ann@customer.example"
PORTS = {"1025": "smtp", "8025": "http", "8443": "https"}
JARS = [Path("/usr/share/java") / f"javax.{name}.jar" for name in ("mail", "activation")]


@dataclass(frozen=True)
class Program:
    """A program of the page."""

    language: str
    text: str

    @property
    def subject(self) -> str:
        """The subject of what it sends; no other program has it."""
        found = re.search(r"\bFrom (?:[A-Z][\w.-]*|\.NET|[a-z][\w-]*)(?=[\"'\n\\])", self.text)
        assert found, f"no subject in\n{self.text}"
        return found[0]


PROGRAMS = [
    Program(*found)
    for found in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.fixture
def trust() -> None:
    """The programs are other processes, which need no certificate."""


def program_of(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def python(program: Path) -> list[list[str]]:
    modules = re.findall(r"^(?:import|from) ([\w.]+)", program.read_text(), re.MULTILINE)
    for module in modules:
        pytest.importorskip(module, reason=f"make clients installs {module}")
    return [[sys.executable, str(program)]]


def javascript(program: Path) -> list[list[str]]:
    return [[node(), str(program)]]


def java(program: Path) -> list[list[str]]:
    """With Debian's libmail-java, which is Jakarta Mail 1.6: its package has the older name."""
    if not all(one.exists() for one in JARS):
        pytest.skip("libmail-java is not installed")
    program.write_text(program.read_text().replace("import jakarta.mail", "import javax.mail"))
    return [[program_of("java"), "-cp", ":".join(map(str, JARS)), str(program)]]


def csharp(program: Path) -> list[list[str]]:
    """With Mono, because Debian has no .NET SDK."""
    compiler, runtime = program_of("mcs"), program_of("mono")
    return [
        [compiler, "-r:System.Net.Http.dll", str(program)],
        [runtime, str(program.with_suffix(".exe"))],
    ]


def run_by(name: str) -> Callable[[Path], list[list[str]]]:
    return lambda program: [[program_of(name), str(program)]]


COMMANDS: dict[str, tuple[str, Callable[[Path], list[list[str]]]]] = {
    "python": ("program.py", python),
    "js": ("program.js", javascript),
    "java": ("Send.java", java),
    "csharp": ("program.cs", csharp),
    "ruby": ("program.rb", run_by("ruby")),
    "php": ("program.php", run_by("php")),
    "bash": ("program.sh", run_by("bash")),
}


def with_its_ports(relay: DevProcess, text: str) -> str:
    """Return a program with the ports of this relay instead of the usual ones."""
    for usual, name in PORTS.items():
        text = re.sub(rf"\b{usual}\b", relay.ready[name][0].rpartition(":")[2], text)
    return text


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda one: one.subject)
def test_program(plain_dev: DevProcess, program: Program, tmp_path: Path) -> None:
    name, commands = COMMANDS[program.language]
    path = tmp_path / name
    path.write_text(with_its_ports(plain_dev, program.text))
    if program.language == "bash":
        for needed in ("curl", "jq"):
            program_of(needed)

    for command in commands(path):
        output = run(command, tmp_path)

    assert re.search(rf"captured|{program.subject}", output), output
    listed = plain_dev.graph("GET", f"/users/{RECIPIENT}/messages?$select=subject&$top=100")
    assert program.subject in [one["subject"] for one in listed.json()["value"]]


def test_subjects_differ() -> None:
    assert len({one.subject for one in PROGRAMS}) == len(PROGRAMS) > 8


@pytest.fixture
def command(tmp_path: Path) -> str:
    """`relay` of this environment, as the examples start it."""
    path = tmp_path / "relay"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m relay "$@"\n')
    path.chmod(0o755)
    return str(path)


@long
def test_end_to_end_in_java(tmp_path: Path, command: str) -> None:
    output = run(
        [program_of("java"), str(EXAMPLES / "EndToEnd.java")], tmp_path, RELAY_COMMAND=command
    )
    assert output == "all tests passed\n"
