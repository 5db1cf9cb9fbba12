"""The commands with which README.md and two pages of docs begin print what they show.

Ids, times and ports differ, and the order of lines with the same number of a step. In what a page
shows, "…" is any text, and any lines if it stands alone. A block that begins with curl, without a
prompt, is a command as well.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from relay.base.clock import ID_LENGTH
from tests.support.commands import run_command
from tests.support.relay_process import ROOT, until

PAGES = {
    "README.md": ("Send a message",),
    "docs/development.md": ("First five minutes", "Programs for Mailpit"),
    "docs/coming-from.md": ("The first test",),
}
BLOCK = re.compile(r"^```(?:console\n|\n(?=curl ))(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", re.MULTILINE)
STEP = re.compile(r" \d [a-z ]+")
VARIES = {
    "id": rf"\b[0-9a-hjkmnp-tv-z]{{{ID_LENGTH}}}\b",
    # a journey that goes on after midnight has the day in each line
    "time": r"\b(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d\.\d{3,6}Z",
    "date": r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?Z?",
    "moment": r"\b(?:\d{4}-\d\d-\d\d )?\d\d:\d\d UTC",
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
        is_question = self.command.startswith("curl ") and " -d " not in self.command
        return is_question or re.match(r"\S*relay (trace|show) ", self.command) is not None

    def prints(self, output: str) -> bool:
        return pattern_for(in_order(self.output)).fullmatch(in_order(output)) is not None


def in_order(output: str) -> str:
    """Sort successive events of the same step of a journey; drop the line feed at the end."""
    lines = list(enumerate(re.split(r"\n(?! {37})", output.removesuffix("\n"))))
    groups = groupby(lines, lambda one: found[0] if (found := STEP.match(one[1])) else one[0])
    sorted_groups = (
        sorted((re.sub(VARIES["time"], "", text), text) for _, text in group) for _, group in groups
    )
    return "\n".join(text for group in sorted_groups for _, text in group)


def steps(page: str) -> list[Step]:
    """The commands of the page's sections."""
    text, found = (ROOT / page).read_text(), []
    for heading in PAGES[page]:
        section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        for block in BLOCK.findall(section):
            shown = COMMAND.findall(block) if block.startswith("$ ") else [(block, "…\n")]
            found += [Step(command.replace("\n> ", "\n"), output) for command, output in shown]
    return found


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


@pytest.mark.parametrize("page", PAGES)
def test_commands_print_what_the_page_shows(folder: Path, page: str, dev) -> None:
    for name in ("bash", "curl", "jq"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    relay = dev("--no-demo")
    environment = {"PATH": os.environ["PATH"], "RELAY_CONFIG": str(relay.config_file)}

    def run(text: str) -> str:
        for usual, name in PORTS.items():
            text = re.sub(rf"\b{usual}\b", relay.ready[name][0].rpartition(":")[2], text)
        done = run_command(["bash", "-c", f"set -o pipefail\n{text}"], cwd=folder, env=environment)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    found = steps(page)
    assert len(found) >= 2
    assignments = "".join(one.command for one in found if re.match("[A-Z]+=", one.command))
    for step in found:
        printed = [run(assignments + step.command)]

        def is_right(step: Step = step, printed: list[str] = printed) -> bool:
            if step.repeatable and not step.prints(printed[-1]):
                printed.append(run(assignments + step.command))
            return step.prints(printed[-1])

        if step.repeatable:
            until(f"{step.command} prints what the page shows", is_right, timeout_s=120)
        assert is_right(), f"{step.command}\nprinted:\n{printed[-1]}\nexpected:\n{step.output}"
