"""`relay dev` over HTTPS: programs trust its CA by environment variables alone."""

import json
import os
import shutil
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from relay.development.option_fields import MAIL, PORTS
from tests.support.commands import run_command
from tests.support.dev_process import run_dev

URL = "https://{}:{}/v1.0/me"
HTTPX = """
import httpx, sys
answer = httpx.get(sys.argv[1], headers={"Authorization": "Bearer alice"})
sys.exit(answer.json()["mail"] != "alice@example.test")
"""
REQUESTS = HTTPX.replace("httpx", "requests")
AIOHTTP = """
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer alice"}) as session:
        async with session.get(sys.argv[1]) as answer:
            return (await answer.json())["mail"] != "alice@example.test"
sys.exit(asyncio.run(main()))
"""
NODE = """
const options = { headers: { authorization: 'Bearer alice' } };
fetch(process.argv[1], options).then((answer) => answer.json())
  .then((user) => process.exit(user.mail === 'alice@example.test' ? 0 : 1))
  .catch((error) => { console.error(error.cause || error); process.exit(2); });
"""
CURL = ("curl", "--fail-with-body", "--silent", "--show-error", "-H", "Authorization: Bearer alice")
PROGRAMS = {
    "httpx": (sys.executable, "-c", HTTPX),
    "requests": (sys.executable, "-c", REQUESTS),
    "aiohttp": (sys.executable, "-c", AIOHTTP),
    "node": ("node", "-e", NODE),
    "curl": CURL,
}


@pytest.fixture(scope="module")
def ready(dev_module) -> dict[str, Any]:
    """The ready file of a development relay."""
    ports = [f"--{name}=localhost:0" for name in PORTS]
    return dict(dev_module("--no-demo", "--host", "mail.test", ports=ports).ready)


def port_of(ready: dict[str, Any], name: str) -> str:
    return str(ready[name][0].rpartition(":")[2])


def test_the_ready_file_has_what_a_client_needs(ready: dict[str, Any]) -> None:
    assert set(ready) == {*PORTS, *MAIL, "pages", "ca", "bundle", "token", "dir", "pid"}
    ca = Path(ready["ca"])
    assert ca.parts[-4:] == ("share", "relay", "ca", "ca.pem")
    assert ca.is_absolute()
    assert (Path(ready["dir"]) / "relay.toml").exists()
    context = ssl.create_default_context(cafile=ca)
    base = f"https://localhost:{port_of(ready, 'https')}"
    with httpx.Client(verify=context, base_url=base) as client:
        login = {"Authorization": f"Bearer {ready['token']}"}
        assert client.get("/relay/v1/queue", headers=login).status_code == 200
        answer = client.get(
            "/v1.0/me", headers={"Authorization": "Bearer alice", "Host": "mail.test"}
        )
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("program", "host"),
    [*((one, "localhost") for one in PROGRAMS), ("curl", "127.0.0.1"), ("curl", "[::1]")],
)
def test_programs_trust_it_by_environment(
    ready: dict[str, Any], program: str, host: str, tmp_path: Path
) -> None:
    words = PROGRAMS[program]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{program} is not installed")
    if program in ("requests", "aiohttp"):
        pytest.importorskip(program)
    bare = host.strip("[]")
    if bare not in {str(one[4][0]) for one in socket.getaddrinfo("localhost", 0)} | {"localhost"}:
        pytest.skip(f"localhost is not {bare} on this machine")
    url = URL.format(host, port_of(ready, "https"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    trust = dict.fromkeys(
        ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), ready["ca"]
    )
    distrusting = [({}, False)] if host == "localhost" else []
    for variables, works in [(trust, True), *distrusting]:
        done = run_command([*words, url], env=environment | variables)
        assert (done.returncode == 0) == works, done.stderr


def test_a_directory_that_cannot_be_written_gets_a_ca_of_its_own(short_path: Path) -> None:
    (short_path / "file").touch()
    words = ("--json", "--once")
    done = run_dev(short_path, *words, XDG_DATA_HOME=str(short_path / "file"))
    assert (done.returncode, done.stderr) == (0, "")
    ca = Path(json.loads(done.stdout.splitlines()[0])["ca"])
    assert ca.parts[-2:] == ("ca", "ca.pem")
    assert ca.is_relative_to(short_path / f"relay-dev-{os.getuid()}")


def test_a_ca_that_is_made_again_for_another_name_is_a_line(short_path: Path) -> None:
    for host, lines in (("one.corp", 0), ("two.corp", 1), ("one.corp", 0)):
        done = run_dev(short_path, "--once", "--host", host, XDG_DATA_HOME=str(short_path))
        assert (done.returncode, done.stderr.count("\n")) == (0, lines)
        assert done.stderr.count(f"{short_path}/relay/ca/ca.pem") == lines
