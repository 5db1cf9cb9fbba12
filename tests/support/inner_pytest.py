"""A run of pytest within a test, in a folder of files that the test wrote."""

import os
import subprocess
from pathlib import Path

from tests.support import relay_starts


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
        ended = subprocess.run(
            [python, "-m", "pytest", "-p", "no:asyncio", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
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
