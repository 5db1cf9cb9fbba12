"""A pytest plugin: tests that failed in a run of several processes are repeated one after the other.

`make test` keeps two cores busy with four processes, so that a test which depends on time may fail
there though the code is right. A few failures are repeated alone, three times: if all pass, the run
passes, and its last lines name them. They are still defects, of the code or of the test. What a crash
lost is never explained by a busy machine, so tests of crashes are not repeated; nor are many failures.
CPython's test runner does the same (`python -m test --rerun`).
"""

import os
import subprocess
import sys
from collections.abc import Generator

import pytest

REPEATED_MAX = 5
TIMES = 3
_TIMEOUT_S = 900
_CRASHES = "tests/crash/"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    yield  # the report of the run comes first
    config = session.config
    if session.exitstatus != pytest.ExitCode.TESTS_FAILED:
        return
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    found = [*reporter.stats.get("failed", ()), *reporter.stats.get("error", ())]
    names = sorted({report.nodeid for report in found})
    if len(names) > REPEATED_MAX or any(name.startswith(_CRASHES) for name in names):
        return
    reporter.write_sep("=", f"repeating, alone: {len(names)}", yellow=True)
    reporter.flush()
    if all(_passes(names) for _ in range(TIMES)):
        session.exitstatus = pytest.ExitCode.OK
        for name in names:
            reporter.write_line(f"UNSTABLE {name}: failed, then passed {TIMES} times alone")


def _passes(names: list[str]) -> bool:
    # Without the options that may be there for the whole run, such as -x or --lf.
    environ = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", "-p", "no:cacheprovider", *names]
    try:
        return subprocess.run(command, env=environ, timeout=_TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
