"""Dovecot as docs/operation-routes.md sets it up on the mailboxes: the commands of its version, run as printed."""

import imaplib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import argon2
import pytest

from tests.support.commands import run_command
from tests.support.dovecot import NoDovecotError, dovecot_program, dovecot_version
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, WAIT_S, RelayProcess, until
from tests.support.tls import self_signed

PAGE = (ROOT / "docs" / "operation-routes.md").read_text()
RECIPE = PAGE.partition("\n## Dovecot and mutt on the same mailboxes\n")[2].partition(
    "mutt needs no"
)[0]
USER = 65532  # `relay`, in the mount namespace
LOCAL = """
protocols = imap
listen = 127.0.0.1
ssl = no
base_dir = {folder}/run
state_dir = {folder}/run
log_path = {folder}/log
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
"""
START = """\
for name in dovecot passwd group; do mount --bind "$0/$name" "/etc/$name"; done
bash -e "$0/page.sh"
cat "$0/local.conf" >>/etc/dovecot/local.conf
exec "$1" -F
"""


def commands(version: str) -> str:
    """The page's commands for a version, without those that install and restart the service."""
    blocks = re.findall(r"^([^\n]*):\n\n```\n(.*?)^```$", RECIPE, re.MULTILINE | re.DOTALL)
    chosen = [block for title, block in blocks if "Dovecot" not in title or version in title]
    assert len(chosen) == len(blocks) - 1
    lines = "".join(chosen).splitlines(keepends=True)
    return "".join(one for one in lines if not one.startswith(("apt-get ", "systemctl ")))


@pytest.fixture
def dovecot(relay: RelayProcess) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """The process of the daemon, its port, and the page's last command, which asks it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount namespace needs root and unshare")
    try:
        program, text = dovecot_program(), commands(dovecot_version())
    except NoDovecotError as why:
        pytest.skip(str(why))
    if not Path("/etc/dovecot/conf.d/20-imap.conf").exists():
        pytest.skip("dovecot-imapd is not installed")
    text = text.replace("/var/lib/relay/mail", str(relay.folder / "mail"))
    text = text.replace("example.org", "example.test")
    text = re.sub(r"\$argon2id\S+", lambda _: argon2.PasswordHasher().hash("alice"), text)
    page, _, question = text.rstrip().rpartition("\n")
    with tempfile.TemporaryDirectory(prefix="relay-dovecot-") as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o755)
        (folder / "run").mkdir()
        shutil.copytree("/etc/dovecot", folder / "dovecot", symlinks=True)
        pair = self_signed(folder, "DNS:localhost")  # for that of the package ssl-cert
        for source, link in ((pair.certificate, "dovecot.pem"), (pair.key, "dovecot.key")):
            (folder / "dovecot/private" / link).unlink(missing_ok=True)
            source.rename(folder / "dovecot/private" / link)
        for file, line in (
            ("passwd", f"relay:x:{USER}:{USER}::/:/bin/false"),
            ("group", f"relay:x:{USER}:"),
        ):
            (folder / file).write_text(Path("/etc", file).read_text() + line + "\n")
        (folder / "page.sh").write_text(page)
        (folder / "local.conf").write_text(LOCAL.format(folder=folder, port=port))
        command = ["unshare", "--mount", "bash", "-ec", START, str(folder), program]
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            until("Dovecot listens, or ends", lambda: is_open(port) or process.poll() is not None)
            told = (folder / "out").read_text()
            if told.startswith(("unshare:", "mount:")):
                pytest.skip(told)
            assert process.poll() is None, told
            yield process, port, question
            log = (folder / "log").read_text()
            assert not re.search(r"\b(Error|Warning|Panic|Fatal):", log), log
        finally:
            process.terminate()
            process.wait(WAIT_S)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_it_serves_what_relay_delivers(relay: RelayProcess, dovecot) -> None:
    process, port, question = dovecot
    content = b"Subject: hello\r\n\r\nHello.\r\n"
    relay.until_final(relay.submit("guest@remote.test", ["alice@example.test"], content))
    for path in (relay.folder, relay.folder / "mail"):  # the service's user owns them
        os.chown(path, USER, USER)
    for path in (relay.folder / "mail").rglob("*"):
        os.chown(path, USER, USER)
    imap = imaplib.IMAP4("127.0.0.1", port)
    imap.login("alice@example.test", "alice")
    assert imap.select("INBOX") == ("OK", [b"1"])
    assert b"Subject: hello" in imap.fetch("1", "(BODY[HEADER])")[1][0][1]
    imap.logout()
    done = run_command(
        [
            "nsenter",
            f"--target={process.pid}",
            "--mount",
            "--root",
            "bash",
            "-c",
            f"cd /; {question}",
        ]
    )
    assert "INBOX messages=1 unseen=0" in done.stdout.splitlines(), done
