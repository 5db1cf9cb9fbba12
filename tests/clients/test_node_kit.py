"""The test kit for Node, clients/node: its own tests, its types, and the examples with vitest and Playwright."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED, node, run
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
    node("graph-relay")
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    for file in (*EXAMPLE.iterdir(), OWN):
        shutil.copy(file, tmp_path)
    relay = tmp_path / "a relay"
    relay.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m relay "$@"\n')
    relay.chmod(0o755)
    return tmp_path


def run_node(project: Path, *words: str) -> str:
    """Run a program of Node; return what it prints, without colours."""
    return run([node(), *words], project, NO_COLOR="1", RELAY_COMMAND=str(project / "a relay"))


def test_kit(project: Path) -> None:
    assert re.search(r"^# pass 10$", run_node(project, "--test", OWN.name), re.MULTILINE)


def test_types(project: Path) -> None:
    how = ["--noEmit", "--strict", "--checkJs", "--module", "nodenext", "--target", "es2022"]
    run_node(project, "node_modules/typescript/bin/tsc", *how, "--types", "node", OWN.name)


def test_example_with_vitest(project: Path) -> None:
    assert re.search(r"Tests +3 passed", run_node(project, "node_modules/vitest/vitest.mjs", "run"))


def test_example_with_playwright(project: Path) -> None:
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("Debian's chromium is not installed")
    assert "1 passed" in run_node(project, "node_modules/@playwright/test/cli.js", "test")
