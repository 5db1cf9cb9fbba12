"""The packages of `make deb` in roots of Debian 12 and 13: installed, upgraded, removed, purged.

RELAY_DEBIAN_ROOTS names a directory in which the roots are kept, `bookworm` and `trixie`: debootstrap makes those
that are missing. Without it they are made each time. A root is not changed: what is installed there is in memory.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.long_tests import long
from tests.support.own_machine import SYSTEMCTL, OwnMachine, checkout, run
from tests.support.relay_process import until

VERSIONS = {"older": "0.2.9", "newer": "0.3.0.dev7", "in/another/folder": "0.3.0.dev7"}
ROOTS = {"12": ("bookworm", "python3.11"), "13": ("trixie", "python3.13")}
NEEDED = "libstdc++6,ca-certificates,systemd,debconf,curl,procps"
EDIT = """sed -i 's/relay.example.org/mail.example.org/; s/0.1:25"/0.1:2525"/; s/^.mailboxes]$/&\\ndomains = ["example.org"]/'"""
# a certificate for another name, with which relay check finds a fault, but Relay starts
FOREIGN = r"""cd /etc/relay && umask 027 && openssl req -x509 -newkey ed25519 -nodes -subj /CN=x -keyout x.key -out x.crt
chgrp relay x.* && chmod 640 x.*; printf '[[smtp]]\nlisten = "0.0.0.0:2526"\ntls = { certificate = "x.crt", key = "x.key" }\n' >>relay.toml"""
COMMIT = "git init -q && git add . && git -c user.name=a -c user.email=a@a.test commit -qm x"


def build(folder: Path, version: str) -> dict[str, Path]:
    """Build a commit that has this version, as a user without rights; return the package of each release."""
    checkout(folder)
    for file in (folder / "pyproject.toml", folder / "relay/__init__.py"):
        text = re.sub(r'(?m)^(_*version_*) = ".*"$', rf'\1 = "{version}"', file.read_text())
        file.write_text(text)
    subprocess.run(["chown", "-R", "nobody:", folder], check=True)
    own = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    when = "2026-11-01T10:00:00Z"  # two checkouts have the same commit
    own |= dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), when)
    command = f"{COMMIT} && make deb PYTHON=/usr/bin/python3"
    done = subprocess.run(
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "bash", "-ec", command],
        cwd=folder,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "(from versions: none)" in done.stderr:
        pytest.skip("no package index answers")
    assert done.returncode == 0, done.stdout + done.stderr
    return {one: next(folder.glob(f"dist/*+deb{one}_*.deb")) for one in ROOTS}


@pytest.fixture(scope="module")
def packages() -> Iterator[Sequence[dict[str, Path]]]:
    """Those of an older version, and of this one."""
    needed = "dpkg-deb --version && /usr/bin/python3 -c 'import ensurepip' && unshare --mount true"
    if subprocess.run(needed, shell=True, capture_output=True, check=False).returncode:
        pytest.skip("only root of a Debian with python3-venv can do this")
    with TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        top.chmod(0o755)
        older, newer, again = (build(top / one, version) for one, version in VERSIONS.items())
        for release in ROOTS:
            assert newer[release].read_bytes() == again[release].read_bytes()
        yield older, newer


def root_of(release: str, folder: Path) -> Path:
    name, python = ROOTS[release]
    place = Path(os.environ.get("RELAY_DEBIAN_ROOTS", folder), name)
    if not place.exists():
        command = f"debootstrap --variant=minbase --include={python},{NEEDED} {name} {place} 2>&1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(place, ignore_errors=True)
            pytest.skip(f"no root of Debian {release}: {done.stdout.splitlines()[-1]}")
    return place


def in_root(command: str, *, code: int = 0) -> str:
    """Run a command of the administrator in the root."""
    done = subprocess.run(
        [
            "chroot",
            "root",
            "env",
            "-i",
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "bash",
            "-ec",
            command,
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def follow(root: Path, older: Path, newer: Path) -> None:
    """All of it, in one process of the machine."""
    run("mkdir", "root", "over", "aside")
    layers = f"lowerdir={root},upperdir=over,workdir=aside"
    run("mount", "-t", "overlay", "-o", layers, "none", "root")
    run("mount", "-t", "proc", "none", "root/proc")
    run("mount", "--rbind", "/dev", "root/dev")
    Path("root/run/systemd/system").mkdir(parents=True)
    Path("root/usr/local/bin/systemctl").write_text(SYSTEMCTL)
    run("chmod", "755", "root/usr/local/bin/systemctl")
    shutil.copy(older, "root/older.deb")
    shutil.copy(newer, "root/newer.deb")
    try:
        install_and_upgrade()
        remove_and_purge()
    finally:
        in_root("systemctl stop relay")


def install_and_upgrade() -> None:
    in_root("dpkg -i older.deb")
    assert in_root("relay --version").startswith("relay 0.2.9 (")
    in_root("systemctl --quiet is-active relay", code=1)
    assert in_root("stat -c '%a %U %G' /etc/relay/{relay,accounts}.toml") == "640 root relay\n" * 2
    assert "relay\\-check" in in_root("gzip -dc /usr/share/man/man5/relay.toml.5.gz")
    completed = "COMP_WORDS='relay que' COMP_CWORD=1 _RELAY_COMPLETE=bash_complete relay"
    assert in_root(f"{completed}; ls /usr/share/bash-completion/completions/relay").startswith(
        "plain,queue\n/usr"
    )
    in_root(f"{EDIT} /etc/relay/relay.toml")
    in_root(FOREIGN)
    in_root("relay account add bob@example.org; relay check || [ $? = 78 ]")
    in_root("systemctl enable --now relay")
    checked = in_root("relay check || [ $? = 78 ]")
    in_root("systemctl stop relay")
    assert in_root("relay check || [ $? = 78 ]") == checked
    in_root("systemctl start relay")
    in_root("relay send --to bob@example.org --body x")
    inbox = Path("root/var/lib/relay/mail/example.org/bob/new")
    until("it is in the mailbox", lambda: list(inbox.glob("*")))
    before = in_root("cat /run/relay.pid")
    in_root("dpkg -i newer.deb")
    assert in_root("relay --version").startswith("relay 0.3.0.dev7 (")
    assert before != (running := in_root("cat /run/relay.pid"))
    assert 'version="0.3.0.dev7"' in in_root("curl -s http://127.0.0.1:8025/metrics")
    # what it would not start with keeps the old one running
    in_root(
        "grep mail.example.org /etc/relay/relay.toml && sed -i '1 i nonsense = 1' /etc/relay/relay.toml"
    )
    assert "relay.toml:1: nonsense" in in_root("dpkg -i newer.deb")
    assert running == in_root(
        "curl -sf http://127.0.0.1:8025/readyz >/dev/null; cat /run/relay.pid"
    )


def remove_and_purge() -> None:
    in_root("dpkg -r graph-relay")
    in_root("systemctl --quiet is-active relay", code=1)
    assert in_root("find /opt/relay /usr -name 'relay*' 2>/dev/null || true") == ""
    in_root("dpkg -P graph-relay")
    kept = "/etc/relay/accounts.toml /var/lib/relay/spool.sqlite /var/lib/relay/mail/*/bob"
    in_root(f"ls -d {kept} && ! ls /etc/relay/relay.toml && id relay")
    in_root("dpkg -i newer.deb && grep bob@ /etc/relay/accounts.toml")
    in_root("echo graph-relay graph-relay/delete-mail boolean true | debconf-set-selections")
    in_root("dpkg -P graph-relay && ! ls -d /etc/relay /var/lib/relay /var/spool/relay | grep .")


@long
@pytest.mark.parametrize("release", ROOTS)
def test_a_package_is_installed_upgraded_and_purged(packages, tmp_path, release: str) -> None:
    root = root_of(release, tmp_path)
    with OwnMachine() as machine:
        machine.call(follow, root, *(each[release] for each in packages))
