"""The test kit for Node, clients/node: its own tests, its types, and the examples with vitest and Playwright."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED
from tests.support.long_tests import long
from tests.support.relay_process import ROOT

EXAMPLE = ROOT / "docs/examples/sign-up"
OWN = ROOT / "tests/clients/node_kit.mjs"

pytestmark = long


@pytest.fixture
def trust() -> None:
    """The programs are other processes, which need no certificate."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that has the npm packages, the example and the kit's own tests."""
    if not (INSTALLED / "node_modules/graph-relay").exists() or not shutil.which("node"):
        pytest.skip("node and the npm packages are not installed: make clients")
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    for file in (*EXAMPLE.iterdir(), OWN):
        shutil.copy(file, tmp_path)
    relay = tmp_path / "a relay"
    relay.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m relay "$@"\n')
    relay.chmod(0o755)
    return tmp_path


def run(project: Path, *words: str) -> str:
    """Run a program of Node, which must end with 0; return what it prints, without colours."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(project), "LANG": "C.UTF-8", "NO_COLOR": "1",
        "RELAY_COMMAND": str(project / "a relay"),
    }  # fmt: skip
    done = subprocess.run(
        ["node", *words], cwd=project, env=environment, capture_output=True, text=True,
        timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_kit(project: Path) -> None:
    assert re.search(r"^# pass 10$", run(project, "--test", OWN.name), re.MULTILINE)


def test_types(project: Path) -> None:
    how = ["--noEmit", "--strict", "--checkJs", "--module", "nodenext", "--target", "es2022"]
    run(project, "node_modules/typescript/bin/tsc", *how, "--types", "node", OWN.name)


def test_example_with_vitest(project: Path) -> None:
    assert re.search(r"Tests +3 passed", run(project, "node_modules/vitest/vitest.mjs", "run"))


def test_example_with_playwright(project: Path) -> None:
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("Debian's chromium is not installed")
    assert "1 passed" in run(project, "node_modules/@playwright/test/cli.js", "test")
