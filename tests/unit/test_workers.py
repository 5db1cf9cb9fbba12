"""Processes of the tests: each test runs once, also behind one that ends its process."""

import re

import pytest

from tests.support.inner_pytest import pytest_in_workers

KILLED = """
import os, pathlib, pytest

@pytest.fixture(scope="session")
def place():
    yield pathlib.Path(__file__).parent
    (pathlib.Path(__file__).parent / "left").touch()

@pytest.mark.parametrize("number", range(4))
def test_each(number, place, capfd):
    os.write(1, b"seen")
    assert capfd.readouterr().out == "seen"
    if number == 1:
        os._exit(7)
"""
PASSES = "def test_passes(tmp_path): (tmp_path / 'file').touch()\n"
HANGS = """
import threading

def test_hangs():
    threading.Event().wait()
"""
FAILS = "def test_fails(): assert False, 'as it should'\n"


def test_a_test_that_ends_its_process_fails_and_the_others_run(tmp_path):
    many = {f"test_passes{n}": PASSES for n in range(5)}
    ended = pytest_in_workers(tmp_path, test_killed=KILLED, **many)
    assert re.search(r"\b1 failed, 8 passed", ended.stdout), ended.stdout
    assert "FAILED test_killed.py::test_each[1] - the process of this test ended: 7" in ended.stdout
    assert (tmp_path / "left").exists()


@pytest.mark.parametrize(("options", "failed"), [((), 3), (("-x",), 1)])
def test_a_failure_is_reported_with_its_text_and_may_end_the_run(tmp_path, options, failed):
    one_file = {
        "test_fails": FAILS + FAILS.replace("fails", "then") + FAILS.replace("fails", "last")
    }
    ended = pytest_in_workers(tmp_path, *options, **one_file)
    assert re.search(rf"\b{failed} failed", ended.stdout), ended.stdout
    assert "as it should" in ended.stdout


def test_a_test_that_does_not_end_fails_and_shows_where_it_waits(tmp_path):
    ended = pytest_in_workers(tmp_path, "--limit=1", test_hangs=HANGS, test_passes=PASSES)
    assert re.search(r"\b1 failed, 1 passed", ended.stdout), ended.stdout
    assert "test_hangs - the process of this test took too long" in ended.stdout
    assert 'test_hangs.py", line 5 in test_hangs' in ended.stderr
