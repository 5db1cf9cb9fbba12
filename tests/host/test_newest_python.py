"""`make quick-tests` with the Python of Debian testing: in a new root, as a user without rights.

mmdebstrap makes the root from the first mirror of Debian that apt has here, even if its index has expired. There
pip has the settings and authorities of this machine.
"""

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.long_tests import long
from tests.support.own_machine import checkout

MIRRORS = "apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian'"
MAKE_ROOT = f"""
mirror=$({MIRRORS} | head -n 1)
mmdebstrap --variant=minbase --include=ca-certificates,git,make,passwd,python3,python3-venv \
    --aptopt='Acquire::Check-Valid-Until "false"' testing "$0" "${{mirror:-http://deb.debian.org/debian}}"
for each in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do [ ! -e $each ] || cp $each "$0$each"; done
chroot "$0" useradd --create-home --home-dir /srv/ann --uid 1000 ann
"""
RUN_TESTS = """
mount --make-rprivate /
mount -t proc none "$0/proc"
mount --rbind /dev "$0/dev"
mount -t tmpfs none "$0/dev/shm"
chown -R 1000:1000 "$0/srv/ann"
exec chroot --userspec=1000:1000 "$0" env -C /srv/ann/relay HOME=/srv/ann make quick-tests
"""
FIXED = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PIP_NO_COMPILE": "1"}
PASSED_ON = ("PIP_", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def run(script: str, root: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    variables = {name: text for name, text in os.environ.items() if name.startswith(PASSED_ON)}
    return subprocess.run(
        [*before, "bash", "-ec", script, root],
        env=variables | FIXED,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@long
def test_quick_tests_pass_on_debian_testing():
    if os.geteuid() or not shutil.which("mmdebstrap"):
        pytest.skip("only root can make a root of Debian, by mmdebstrap")
    with TemporaryDirectory(dir="/var/tmp") as folder:  # a disk with devices
        root = Path(folder, "root")
        made = run(MAKE_ROOT, root)
        if made.returncode:
            pytest.skip(f"no root of Debian testing: {made.stdout[-300:]}")
        checkout(root / "srv/ann/relay")
        done = run(RUN_TESTS, root, "unshare", "--mount", "--pid", "--fork", "--kill-child")
        if "(from versions: none)" in done.stdout:
            pytest.skip("no package index answers")
        assert done.returncode == 0, done.stdout
