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


def run_node(project: Path, *words: str, **env: str) -> str:
    """Run a program of Node; return what it prints, without colours."""
    command = str(project / "a relay")
    return run([node(), *words], project, NO_COLOR="1", RELAY_COMMAND=command, **env)


def test_kit(project: Path) -> None:
    assert re.search(r"^# pass 12$", run_node(project, "--test", OWN.name), re.MULTILINE)


def test_kit_with_a_relay_of_another_machine(project: Path, own_address: str, dev) -> None:
    options = ["--listen-all", "--host", own_address, "--no-demo", "--domain", "shop.test"]
    relay = dev(*options, RELAY_DEV_TOKEN="a-token-of-a-good-length")
    url, smtp = (relay.ready[one][0].replace("0.0.0.0", own_address) for one in ("http", "smtp"))
    env = {"RELAY_URL": f"http://{url}", "RELAY_SMTP": smtp, "RELAY_TOKEN": relay.ready["token"]}
    assert re.search(r"^# pass 12$", run_node(project, "--test", OWN.name, **env), re.MULTILINE)


def test_types(project: Path) -> None:
    how = ["--noEmit", "--strict", "--checkJs", "--module", "nodenext", "--target", "es2022"]
    run_node(project, "node_modules/typescript/bin/tsc", *how, "--types", "node", OWN.name)


def test_example_with_vitest(project: Path) -> None:
    assert re.search(r"Tests +3 passed", run_node(project, "node_modules/vitest/vitest.mjs", "run"))


def test_example_with_playwright(project: Path) -> None:
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("Debian's chromium is not installed")
    assert "1 passed" in run_node(project, "node_modules/@playwright/test/cli.js", "test")
