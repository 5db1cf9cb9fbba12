"""The build hook of pyproject.toml: writes the commit that is built into the sdist and the wheel.

relay/_shipped/commit is its place there, and `relay --version` shows it. It is the variable
RELAY_COMMIT, for a build without Git; else that of the sdist of which a wheel is made; else that of
the checkout, with `-dirty` if a file of Git was changed. Without any of them there is no such file.
"""

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "relay/_shipped/commit"


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """An editable installation has none: a checkout goes on to other commits."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file, and have it built in."""
        given = os.environ.get("RELAY_COMMIT", "")
        found = given or ("" if Path(self.root, PLACE).exists() else _of_checkout(self.root))
        if found and version != "editable":
            self._written.parent.mkdir(parents=True, exist_ok=True)
            self._written.write_text(f"{found}\n")
            build_data["force_include"][str(self._written)] = PLACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002 - hatchling's signature
        """Remove the file."""
        self._written.unlink(missing_ok=True)

    @property
    def _written(self) -> Path:
        return Path(self.directory, "commit")


def _of_checkout(root: str) -> str:
    if not Path(root, ".git").exists():  # it may lie in another repository
        return ""
    command = "git -c safe.directory=* describe --always --exclude=* --abbrev=12 --dirty"
    try:
        done = subprocess.run(  # noqa: S603 - a constant
            command.split(), cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
