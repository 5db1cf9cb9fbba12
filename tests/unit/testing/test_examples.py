"""The examples of the README, docs/development.md and docs/testing.md run as they are written there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE = PROGRAM.findall((TOP / "docs/testing.md").read_text())
DEVELOPMENT = PROGRAM.findall((TOP / "docs/development.md").read_text())
README = PROGRAM.findall((TOP / "README.md").read_text().partition("\n## In tests\n")[2])
CONFTEST = "# conftest.py\n"
FOR_DJANGO = "from django"  # tests/clients/test_sample_project.py runs that


@pytest.fixture
def run(tmp_path):
    def call(files: dict[str, str]) -> str:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:asyncio"]
        ended = subprocess.run(
            [*command, "-W", "error", f"--basetemp={tmp_path / 'tmp'}", "--strict-markers"],
            cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    return call


def test_the_programs_of_the_pages_run(run):
    programs = [one for one in (*README, *DEVELOPMENT, *PAGE) if not one.startswith(CONFTEST)]
    tests = sum(len(re.findall(r"^ *def test_", one, re.MULTILINE)) for one in programs)
    assert len(README) >= 1
    assert tests > 10
    output = run({f"test_{number}.py": text for number, text in enumerate(programs)})
    assert f"{tests} passed" in output


def test_a_shared_relay_is_as_the_page_says(run):
    (conftest,) = [one for one in PAGE if one.startswith(CONFTEST) and FOR_DJANGO not in one]
    test = "def test_it(relay, relay_session): assert relay is relay_session\n"
    assert "2 passed" in run({"conftest.py": conftest, "test_a.py": test, "test_b.py": test})
