"""Programs that other people have published, as they are, work with `relay dev` as with Microsoft's hosts.

What they do is in program_flows.py. In a mount namespace of each, the hosts file leads both names to
the relay, and the file of certifi, which some read whatever the environment says, has its authority.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import INSTALLED
from tests.clients.program_flows import ALICE, CUSTOMER, SENT, received
from tests.support.commands import run_command
from tests.support.dev_process import PORTS, DevProcess
from tests.support.faulty_proxy import FaultyProxy
from tests.support.ports import free_port
from tests.support.relay_process import until
from tests.support.tls import Authority

certifi = pytest.importorskip("certifi", reason="make clients installs the programs")
pytest.importorskip("graphish", reason="make clients installs the programs")

# Not certifi.where(): in a run of tests it is another file.
CERTIFI = str(Path(certifi.__file__).with_name("cacert.pem"))
NAMES = ("graph.microsoft.com", "login.microsoftonline.com")
START = 'mount --bind "$0" /etc/hosts; mount --bind "$1" "$2"; shift 2; exec "$@"'


def seed(dev: DevProcess) -> None:
    """Send alice the two messages that each flow finds, one after the other."""
    for message in received(ALICE, CUSTOMER):
        with dev.smtp() as session:
            session.send_message(message)
        until("it is there", lambda subject=message["subject"]: subject in dev.inbox("alice"))


def captured(dev: DevProcess) -> list[str]:
    """The subjects of what has come to the customer."""
    path = f"/v1.0/users/{CUSTOMER}/mailFolders/inbox/messages?$top=50"
    return [one["subject"] for one in dev.get(path, dev.ready["token"]).json().get("value", [])]


def programs_address() -> str:
    """An address of loopback for this process alone: the port has to be 443."""
    return f"127.{os.getpid() >> 16 & 127 | 64}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


@pytest.mark.parametrize("name", SENT)
def test_a_program(name: str, authority: Authority, tmp_path: Path, dev) -> None:
    trial = ["unshare", "--mount", "true"]
    if shutil.which("unshare") is None or subprocess.run(trial, check=False).returncode:
        pytest.skip("a mount namespace needs root and unshare")
    address = programs_address()
    ports = [f"--https={address}:443" if one.startswith("--https") else one for one in PORTS]
    hosts = [word for host in NAMES for word in ("--host", host)]
    pair = authority.issue("DNS:localhost")
    trusted = {"SSL_CERT_FILE": str(authority.certificate)}
    relay = dev("--no-demo", *hosts, ports=ports, **trusted)
    with FaultyProxy(pair.server_context()) as front:
        seed(relay)
        front.upstream = ("localhost", free_port())
        ca = relay.ready["ca"]
        Path(tmp_path, "hosts").write_text(f"127.0.0.1 localhost\n{address} {' '.join(NAMES)}\n")
        Path(tmp_path, "a.txt").write_text("a")
        environment = {
            "PATH": f"{INSTALLED}/venv/bin:{INSTALLED}/node_modules/.bin:{os.environ['PATH']}",
            "PYTHONPATH": str(INSTALLED.parent),
            "HOME": str(tmp_path),
            "SSL_CERT_FILE": ca,
            "REQUESTS_CA_BUNDLE": ca,
            "NODE_EXTRA_CA_CERTS": ca,
            "HOOK_URL": f"{front.url}/hook",
            "HOOK_PORT": str(front.upstream[1]),
            "SMTP_PORT": str(free_port()),
            "POP3_PORT": str(free_port()),
            "CERTIFICATE": str(pair.certificate),
            "KEY": str(pair.key),
            "AUTHORITY": str(authority.certificate),
        }
        start = ["unshare", "--mount", "sh", "-ec", START, str(tmp_path / "hosts"), ca, CERTIFI]
        done = run_command(
            [*start, sys.executable, "-m", "tests.clients.program_flows", name],
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        until("all are sent", lambda: len(captured(relay)) >= len(SENT[name]))
        assert sorted(captured(relay)) == SENT[name]
