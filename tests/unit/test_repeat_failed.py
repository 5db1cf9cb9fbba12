"""Tests that failed while the machine was busy are repeated alone; crashes and real faults are not
excused."""

import pytest

from tests.support.inner_pytest import pytest_in_workers
from tests.support.long_tests import long

pytestmark = long
PASSES_LATER = """
from pathlib import Path

def test_first_time():
    with Path(__file__).with_suffix(".log").open("a+") as log:
        log.write("x")
        log.seek(0)
        assert len(log.read()) > 1
"""
PASSES_ONCE_MORE = PASSES_LATER.replace("> 1", "== 2")


def run(folder, name, program):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(program)
    plugin = ("-p", "tests.support.repeat_failed")
    ended = pytest_in_workers(folder, *plugin, name, count=1)
    return ended.returncode, ended.stdout, path.with_suffix(".log")


def test_a_test_that_passes_alone_is_named_and_passes(tmp_path):
    status, output, log = run(tmp_path, "test_one.py", PASSES_LATER)
    assert status == 0, output
    assert output.splitlines()[-1].startswith("UNSTABLE test_one.py::test_first_time: failed, then")
    assert log.read_text() == "xxxx"


@pytest.mark.parametrize(
    ("name", "program", "runs"),
    [("test_one.py", PASSES_ONCE_MORE, 3), ("tests/crash/test_one.py", PASSES_LATER, 1)],
    ids=["fails again", "a crash"],
)
def test_others_fail(tmp_path, name, program, runs):
    status, output, log = run(tmp_path, name, program)
    assert status == 1
    assert "UNSTABLE" not in output
    assert log.read_text() == "x" * runs
