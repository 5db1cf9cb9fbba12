"""`make release` in a clean clone: the files that the workflow of a release publishes."""

import json
import os
import re
import shutil
import subprocess
import tarfile
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from relay import __version__
from tests.support.containers import PODMAN, container_program
from tests.support.long_tests import long
from tests.support.relay_process import ROOT

VERSION = re.compile(r"\d+\.\d+\.\d+([.~-]dev\.?\d+)?(\+git\d+\.\w+)?")
FILES = """
graph_relay-VERSION-py3-none-any.whl graph_relay-VERSION.tar.gz graph_relay-manual.tar.gz graph-relay-VERSION.tgz
pytest_graph_relay-VERSION-py3-none-any.whl pytest_graph_relay-VERSION.tar.gz relay-image-MACHINE.tar.gz
graph-relay_VERSION+deb12_MACHINE.deb graph-relay-mta_VERSION+deb12_all.deb
graph-relay_VERSION+deb13_MACHINE.deb graph-relay-mta_VERSION+deb13_all.deb
graph_relay-VERSION-py3-none-any.cdx.json relay-image-MACHINE.cdx.json
graph-relay_VERSION+deb12_MACHINE.cdx.json graph-relay_VERSION+deb13_MACHINE.cdx.json
"""
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(sys.stdin.read()))
"""
LABELS = "base.digest base.name description licenses revision source title version"


@long
def test_make_release_makes_each_file_and_starts_wheel_and_image() -> None:
    program = container_program("docker", "podman", PODMAN)
    if missing := [one for one in ("npm", "dpkg-deb", "openssl") if shutil.which(one) is None]:
        pytest.skip(f"{missing} are not installed")
    own = ("MAKE", "MFLAGS", "PYTHON", "RELAY_TEST", "VENV", "VIRTUAL_ENV")  # of the run of tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    with TemporaryDirectory(dir="/var/tmp") as folder:
        if subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=False).returncode:
            pytest.skip("this is no git checkout")
        command = ["make", "release", f"ENGINE={program}", "IMAGE=required"]
        release = partial(
            subprocess.run, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        errors = release([*command, "TAG=v0.0.1"]).stderr
        assert f"found the tag v0.0.1, expected v{__version__}, as in pyproject.toml" in errors
        done = release(command)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        assert done.stdout.count("Undeliverable: ") == 2
        dist = Path(folder, "dist")
        machine = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
        made = {
            VERSION.sub("VERSION", one.name).replace(machine, "MACHINE") for one in dist.iterdir()
        }
        assert made == set(FILES.split())
        for each in dist.glob("*.cdx.json"):
            validate = [f"{folder}/.venv/bin/python", "-c", VALIDATE]
            assert subprocess.check_output(validate, input=each.read_bytes()) == b"None\n"
            components = json.loads(each.read_text())["components"]
            assert all(one["licenses"] for one in components)
            names = {one["name"] for one in components}
            assert {"graph-relay", "cryptography"} < names < names | {"hatchling"}
            assert ("dovecot-imapd" in names) == ("image" in each.name)
        look = [program, "inspect", "--format={{json .Config.Labels}}", f"relay-release:{machine}"]
        labels = json.loads(subprocess.check_output(look))
        assert all(labels[f"org.opencontainers.image.{name}"] for name in LABELS.split())
        with tarfile.open(*dist.glob("*.tgz")) as node:
            names = {one.removeprefix("package/") for one in node.getnames()}
        assert names == {"package.json", "index.js", "index.d.ts", "LICENSE"}
