"""The commands of "First five minutes" in docs/development.md print what the page shows.

Ids, times and ports differ. In what the page shows, "…" is any text, and any lines if it stands
alone.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.dev_process import DevProcess
from tests.support.relay_process import ROOT, until

PAGE = ROOT / "docs/development.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", re.MULTILINE)
VARIES = {
    "id": r"\b06g[0-9a-z]{13}\b",
    "time": r"\b\d\d:\d\d:\d\d\.\d{3,6}Z",
    "date": r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?",
    "size": r"(?<=size )\d+",
}
PORTS = {"1025": "smtp", "8025": "http", "8443": "https"}


@dataclass(frozen=True)
class Step:
    """A command, and what it prints."""

    command: str
    output: str

    @property
    def repeatable(self) -> bool:
        """Whether the command only reads, so that it can wait for what comes a little later."""
        return self.command.startswith("curl ") and " -d " not in self.command

    def prints(self, output: str) -> bool:
        return pattern_for(self.output).fullmatch(output.rstrip("\n")) is not None


def steps() -> list[Step]:
    """The commands of the section."""
    section = PAGE.read_text().partition("\n## First five minutes\n")[2].partition("\n## ")[0]
    found = [step for block in BLOCK.findall(section) for step in COMMAND.findall(block)]
    return [Step(command.replace("\n> ", "\n"), output) for command, output in found]


def pattern_for(output: str) -> re.Pattern[str]:
    """The pattern of what a command prints, without the line feeds at its end."""
    lines = output.splitlines()
    return re.compile(
        r"\n".join(".*(?:\n.*)*" if one == "…" else pattern_for_line(one) for one in lines)
    )


def pattern_for_line(line: str) -> str:
    kinds = "|".join(f"(?P<{name}>{pattern})" for name, pattern in VARIES.items())
    found, end = "", 0
    for varies in re.finditer(f"…|{kinds}", line):
        found += re.escape(line[end : varies.start()]) + VARIES.get(varies.lastgroup or "", ".*")
        end = varies.end()
    return found + re.escape(line[end:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout, as far as the commands see it."""
    path = tmp_path / ".venv/bin/relay"
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m relay "$@"\n')
    path.chmod(0o755)
    return tmp_path


def test_commands_print_what_the_page_shows(folder: Path) -> None:
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    with DevProcess("--no-demo") as relay:
        environment = {"PATH": os.environ["PATH"], "RELAY_CONFIG": str(relay.config_file)}

        def run(text: str) -> str:
            for usual, name in PORTS.items():
                text = re.sub(rf"\b{usual}\b", relay.ready[name][0].rpartition(":")[2], text)
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail\n{text}"], cwd=folder, env=environment,
                capture_output=True, text=True, timeout=40, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
            return done.stdout

        assignment, *rest = steps()
        assert len(rest) >= 8
        for step in rest:
            printed = [run(assignment.command + step.command)]

            def is_right(step: Step = step, printed: list[str] = printed) -> bool:
                if step.repeatable and not step.prints(printed[-1]):
                    printed.append(run(assignment.command + step.command))
                return step.prints(printed[-1])

            if step.repeatable:
                until(f"{step.command} prints what the page shows", is_right, timeout_s=10)
            assert is_right(), f"{step.command}\nprinted:\n{printed[-1]}\nexpected:\n{step.output}"
