"""`make release` in a clean clone: the files that the workflow of a release publishes."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from relay import __version__
from tests.support.containers import PODMAN, container_program
from tests.support.long_tests import long
from tests.support.relay_process import ROOT

FILES = {
    "graph_relay-VERSION-py3-none-any.whl",
    "graph_relay-VERSION.tar.gz",
    "pytest_graph_relay-VERSION-py3-none-any.whl",
    "pytest_graph_relay-VERSION.tar.gz",
    "graph_relay-manual.tar.gz",
    "graph-relay-VERSION.tgz",
    "graph-relay_VERSION+deb12_MACHINE.deb",
    "graph-relay_VERSION+deb13_MACHINE.deb",
    "graph-relay-mta_VERSION+deb12_MACHINE.deb",
    "graph-relay-mta_VERSION+deb13_MACHINE.deb",
    "relay-image-MACHINE.tar.gz",
}


@long
def test_make_release_makes_each_file_and_starts_wheel_and_image() -> None:
    program = container_program("docker", "podman", PODMAN)
    for needed in ("npm", "dpkg-deb", "openssl"):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    own = ("MAKE", "MFLAGS", "PYTHON", "RELAY_TEST", "VENV", "VIRTUAL_ENV")  # of the run of tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    with TemporaryDirectory(dir="/var/tmp") as folder:
        if subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=False).returncode:
            pytest.skip("this is no git checkout")

        def release(**settings: str) -> subprocess.CompletedProcess[str]:
            values = [f"{name}={value}" for name, value in settings.items()]
            command = ["make", "release", f"ENGINE={program}", *values]
            return subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )

        errors = release(TAG="v0.0.1").stderr
        assert f"found the tag v0.0.1, expected v{__version__}, as in pyproject.toml" in errors
        done = release(IMAGE="required")
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        assert done.stdout.count("Undeliverable: ") == 2
        dist = Path(folder, "dist")
        machine = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        made = {
            re.sub(r"\+git\d+\.\w+", "", one.name)
            .replace(__version__, "VERSION")
            .replace(machine, "MACHINE")
            for one in dist.iterdir()
        }
        assert made == FILES
        with tarfile.open(dist / "graph_relay-manual.tar.gz") as manual:
            assert {"./man/man1/relay.1", "./man/man5/relay.toml.5"} <= set(manual.getnames())
        with tarfile.open(dist / f"graph-relay-{__version__}.tgz") as node:
            names = {one.removeprefix("package/") for one in node.getnames()}
        assert names == {"package.json", "index.js", "index.d.ts", "LICENSE"}
