"""The sample project uses the test kit as a project outside this one does."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.support.commands import run_command
from tests.support.long_tests import long

PROJECT = Path(__file__).parents[1] / "sample_project"


def run(name: str, folder: Path) -> str:
    # Without --basetemp it would remove the oldest of all temporary trees, which can take minutes.
    # Python 3.11 may fail to parse Hypothesis, which its plugin imports at the end, after msgraph-sdk.
    unused = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    ended = run_command(
        [sys.executable, "-m", "pytest", *unused, f"--basetemp={folder / 'tmp'}", "-rs", name],
        cwd=PROJECT,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@long
@pytest.mark.skipif(not importlib.util.find_spec("django"), reason="Django is not installed")
def test_django(tmp_path):
    assert "4 passed" in run("test_django.py", tmp_path)


@pytest.mark.skipif(not importlib.util.find_spec("django"), reason="Django is not installed")
@pytest.mark.skipif(not importlib.util.find_spec("msgraph"), reason="needs make clients")
def test_msgraph_sdk(tmp_path):
    assert "2 passed" in run("test_graph.py", tmp_path)
