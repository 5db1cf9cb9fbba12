"""A run of pytest within a test, in a folder of files that the test wrote."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import relay_starts
from tests.support.commands import run_command


def inner_pytest(
    folder: Path, *arguments: str, python: Path | None = None, user: int = 0, **modules: str
) -> tuple[int, str]:
    """Write modules into a folder and run pytest there; return its exit code and output.

    Most runs are forked from a process that has loaded Relay, with no plugin but its own. With
    `python`, this one is started, with all plugins that are installed, as users do. With `user`,
    root runs it as the user with this number.
    """
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    words = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", *arguments]
    if python:
        ended = run_command([python, "-m", "pytest", "-p", "no:asyncio", *words], cwd=folder)
    else:
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ended = relay_starts.run(
            [*relay_starts.PYTEST, "-p", "relay.testing.plugin", *words],
            cwd=folder,
            env=own | {"PYTHONPATH": str(relay_starts.ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            timeout_s=240,
            user=user,
        )
    return ended.returncode, ended.stdout + ended.stderr


def pytest_in_workers(
    folder: Path, *arguments: str, count: int = 2, **modules: str
) -> "subprocess.CompletedProcess[str]":
    """Write modules into a folder and run them there, with no plugin but that of the processes."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    plugins = ["-p", "tests.support.workers", "-p", "no:cacheprovider", "-n", f"{count}"]
    return run_command(
        [sys.executable, "-m", "pytest", *plugins, f"--basetemp={folder / 'tmp'}", *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{relay_starts.ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
