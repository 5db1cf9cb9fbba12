"""`relay dev` as a proxy: programs that say graph.microsoft.com reach it with the printed variables alone."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from relay.development.options import PROXY_HOSTS
from tests.integration.test_dev_https import CURL, HTTPX, REQUESTS
from tests.support.commands import run_command
from tests.support.dev_process import DevProcess, run_dev

ME = "https://graph.microsoft.com/v1.0/me"
URLLIB = """
import json, sys, urllib.request
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer alice"})
answer = json.load(urllib.request.urlopen(asked))
sys.exit(answer["mail"] != "alice@example.test")
"""
MSAL = """
import msal, sys
app = msal.ConfidentialClientApplication(
    "shop@example.test", client_credential="any",
    authority="https://login.microsoftonline.com/contoso.onmicrosoft.com")
found = app.acquire_token_for_client(["https://graph.microsoft.com/.default"])
sys.exit("access_token" not in found and str(found))
"""
O365 = """
import O365, sys
account = O365.Account(
    ("shop@example.test", "any"), auth_flow_type="credentials", tenant_id="contoso",
    token_backend=O365.FileSystemTokenBackend(token_path="."))
assert account.authenticate()
message = account.mailbox("alice@example.test").new_message()
message.to.add("ann@customer.example")
message.subject = "unmodified"
sys.exit(not message.send())
"""
PROGRAMS = {
    "curl": CURL,
    "urllib": (sys.executable, "-c", URLLIB),
    "httpx": (sys.executable, "-c", HTTPX),
    "requests": (sys.executable, "-c", REQUESTS),
    "msal": (sys.executable, "-c", MSAL),
    "O365": (sys.executable, "-c", O365),
}


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--proxy-host", "graph.microsoft.us")


def printed(relay: DevProcess) -> dict[str, str]:
    """The variables in the lines that `relay dev` prints for shells."""
    lines = re.findall(r"^  (?:Trust +)?((?:CA=|export ).*?)(?: {4}.*)?$", relay.log, re.MULTILINE)
    script = "".join(f"{line}\n" for line in lines)
    names = "SSL_CERT_FILE REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS CURL_CA_BUNDLE"
    show = "".join(f"printenv {name};" for name in [*names.split(), "HTTPS_PROXY", "NO_PROXY"])
    done = subprocess.run(
        ["sh", "-euc", script + show], capture_output=True, text=True, check=True, env=bare()
    )
    return dict(zip([*names.split(), "HTTPS_PROXY", "NO_PROXY"], done.stdout.split(), strict=True))


def bare() -> dict[str, str]:
    return {"PATH": os.environ["PATH"]}


def run(words: tuple[str, ...], variables: Mapping[str, str], folder: Path) -> str:
    """Run a program, which must end with 0; return what it wrote."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = run_command(words, env=bare() | {"HOME": str(folder)} | variables, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_link_to_a_page_leads_here_and_not_to_microsoft(
    relay: DevProcess, tmp_path: Path
) -> None:
    relay.send_captured("ann@customer.example", b"Subject: linked\r\n\r\nx\r\n")
    curl = ("curl", "-sSf", "-H", "Authorization: Bearer app")
    url = f"{ME}/messages?$select=webLink".replace("/me/", "/users/ann@customer.example/")
    for host in ("graph.microsoft.com", "Graph.Microsoft.COM."):
        asked = (*curl, "-H", f"Host: {host}", url)
        shown = json.loads(run(asked, printed(relay), tmp_path))
        [link] = [one["webLink"] for one in shown["value"]]
        assert link.startswith(f"{relay.url}/messages/")


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_that_say_graph_microsoft_com(
    relay: DevProcess, program: str, tmp_path: Path
) -> None:
    run((*PROGRAMS[program], ME), printed(relay), tmp_path)


def test_each_host_and_no_other(relay: DevProcess, tmp_path: Path) -> None:
    variables = printed(relay)
    assert len(PROXY_HOSTS) == 6
    for host in (*PROXY_HOSTS, "graph.microsoft.us"):
        words = (*CURL, "--include", f"https://{host}/v1.0/me")
        answer = run(words, variables, tmp_path)
        assert "alice@example.test" in answer
        assert "strict-transport-security" not in answer.lower()
    refused = ("graph.microsoft.de", "example.com", "10.0.0.1", "graph.microsoft.com:25")
    for host in refused:
        proxy = relay.ready["http"][0]
        with socket.create_connection(proxy.rsplit(":", 1), timeout=120) as client:
            target = host if ":" in host else f"{host}:443"
            client.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            answer = client.makefile("rb").read().decode()
        assert answer.startswith("HTTP/1.1 403 ")
        assert all(one in answer for one in (target, "NO_PROXY", "hosts file"))


def test_the_proxy_does_not_take_what_is_on_this_machine(relay: DevProcess, tmp_path: Path) -> None:
    """NO_PROXY names it; the bundle has the authority of the HTTPS listener too."""
    port = relay.ready["https"][0].rpartition(":")[2]
    for host in ("localhost", "127.0.0.1"):
        run((*PROGRAMS["requests"], f"https://{host}:{port}/v1.0/me"), printed(relay), tmp_path)


def test_python_says_what_to_do(relay: DevProcess, tmp_path: Path) -> None:
    program = """
import sys, urllib.request
try:
    urllib.request.urlopen("https://pypi.test/")
except OSError as error:
    sys.exit(0 if "NO_PROXY" in str(error) else str(error))
"""
    run((sys.executable, "-c", program), printed(relay), tmp_path)


def test_a_proxy_that_speaks_tls(relay: DevProcess, tmp_path: Path) -> None:
    variables = printed(relay)
    port = relay.ready["https"][0].rpartition(":")[2]
    words = (*CURL, "--proxy-cacert", relay.ready["ca"], ME)
    assert "alice@example.test" in run(
        words, variables | {"HTTPS_PROXY": f"https://localhost:{port}"}, tmp_path
    )


def test_a_relay_that_others_can_reach_is_no_proxy(tmp_path: Path, dev) -> None:
    running = dev("--no-demo", "--listen-all", RELAY_DEV_TOKEN="a-token-of-a-good-length")
    assert running.ready["bundle"] == running.ready["ca"]
    assert "HTTPS_PROXY" not in running.log
    assert not (running.folder / "tls/proxy.pem").exists()
    with socket.create_connection(("127.0.0.1", running.http[1]), timeout=120) as client:
        client.sendall(b"CONNECT graph.microsoft.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"other machines can reach it" in answer
    for words in (["--listen-all"], ["--smtp=0.0.0.0:0"]):
        done = run_dev(
            tmp_path, *words, "--token", "a-token-of-a-good-length", "--proxy-host", "g.test"
        )
        assert done.returncode == 64
        assert f"{words[0].replace('=', ' ')} and --proxy-host exclude each other" in done.stderr


def test_names_that_the_hosts_file_leads_here(tmp_path: Path, dev) -> None:
    """With --host, which gives them to the ordinary authority."""
    graph, smtp = "graph.microsoft.com", "smtp.office365.com"
    message = tmp_path / "message"
    message.write_bytes(b"From: app@contoso.example\r\nTo: ann@customer.example\r\n\r\nx\r\n")
    sender = ("--mail-from", "app@contoso.example", "--mail-rcpt", "ann@customer.example")
    running = dev("--no-demo", "--host", graph, "--host", smtp)
    variables = {"CURL_CA_BUNDLE": running.ready["ca"]}
    ports = {name: running.ready[name][0].rpartition(":")[2] for name in ("https", "submission")}
    here = ("--resolve", f"{graph}:{ports['https']}:127.0.0.1")
    url = f"https://{graph}:{ports['https']}/v1.0/me"
    answer = run((*CURL, "--include", *here, url), variables, tmp_path)
    assert "alice@example.test" in answer
    assert "strict-transport-security" not in answer.lower()
    here = ("--resolve", f"{smtp}:{ports['submission']}:127.0.0.1", "--ssl-reqd")
    url = f"smtp://{smtp}:{ports['submission']}"
    words = ("curl", *here, url, *sender, "--upload-file", str(message), "--user", "app:any")
    run(words, variables, tmp_path)
