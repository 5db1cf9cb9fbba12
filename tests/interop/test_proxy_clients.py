"""Clients of a reverse proxy (nginx) count by the address that it forwards."""

import http.client
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx
import pytest

from relay.base.accounts.passwords import FREE_FAILURES
from tests.interop.conftest import program
from tests.support.long_tests import sampled
from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess, account, until

PAT, PASSWORD = "pat@example.test", "right"
CLIENT_ID, SECRET = "program", "s3cret"
ATTACKER, VICTIM = "127.0.0.66", "127.0.0.9"
STALLED = 1100


@dataclass(frozen=True)
class Proxied:
    """A relay behind nginx, which listens on `port` and appends to X-Forwarded-For."""

    relay: RelayProcess
    port: int

    def client(self, address: str, **fields: str) -> httpx.Client:
        """Return a client with this address of its own."""
        transport = httpx.HTTPTransport(local_address=address)
        base = f"http://127.0.0.1:{self.port}"
        return httpx.Client(transport=transport, base_url=base, headers=fields, timeout=30)

    def log_in(self, address: str, password: str, *, user: str = PAT, **fields: str) -> int:
        """Return the status of a login."""
        with self.client(address, **fields) as client:
            token = re.search(r'name="csrf" value="([^"]*)"', client.get("/login").text)[1]
            form = {"csrf": token, "user": user, "password": password}
            return client.post("/login", data=form).status_code

    def sign_in(self, address: str, secret: str, **fields: str) -> int:
        """Return the status of the token endpoint."""
        form = {"grant_type": "client_credentials", "client_id": CLIENT_ID, "client_secret": secret}
        with self.client(address, **fields) as client:
            return client.post("/common/oauth2/v2.0/token", data=form).status_code


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    command = [program("nginx"), "-p", str(folder), "-e", "stderr"]
    config = {
        "http": {
            "listen": ["127.0.0.1:0", f"unix:{folder}/relay.sock"],
            "pages": True,
            "proxy_networks": ["127.0.0.1/32"],
            "public_url": f"http://127.0.0.1:{port}",
        }
    }
    accounts = [  # whose passwords are not their tokens
        account("program", client_id=CLIENT_ID, client_secret=f"plain:{SECRET}"),
        account("pat", password=f"plain:{PASSWORD}"),
    ]
    with RelayProcess(config=config, accounts=accounts) as relay:
        (folder / "nginx.conf").write_text(f"""\
{"user root;" if os.geteuid() == 0 else ""}
daemon off; pid nginx.pid; error_log stderr crit;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_timeout 0;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  upstream relay {{ server {relay.ready["http"][0]}; server unix:{folder}/relay.sock; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://relay;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
    }}
  }}
}}
""")
        process = subprocess.Popen([*command, "-c", str(folder / "nginx.conf")], cwd=folder)
        made = Proxied(relay, port)
        try:
            until("the proxy answers", lambda: is_up(made, process))
            yield made
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(15)


def is_up(proxied: Proxied, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, f"nginx ended with {process.returncode}"
    try:
        with proxied.client(VICTIM) as client:
            return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("way", sampled(["log_in", "sign_in"]))
def test_who_guesses_behind_a_proxy_delays_only_itself(proxied: Proxied, way: str) -> None:
    """What stands left of the proxy's own entry is the client's, and changes nothing."""
    attempt, right = getattr(proxied, way), PASSWORD if way == "log_in" else SECRET
    ok, wrong = (303, 403) if way == "log_in" else (200, 401)
    attacker = "127.0.0.67" if way == "log_in" else "127.0.0.68"
    forged = {"X-Forwarded-For": VICTIM}

    def is_over(failed: int) -> bool:
        status = attempt(attacker, f"wrong{failed}", **forged)
        assert status == wrong or (status == 429 and failed >= FREE_FAILURES)
        return status == wrong

    for failed in range(FREE_FAILURES + 4):  # then the delay is 16 s
        until("the delay is over", lambda failed=failed: is_over(failed))
    others = ({}, forged, {"X-Forwarded-For": "unknown"}, {"X-Forwarded-For": '"'})
    assert [attempt(attacker, right, **fields) for fields in others] == [429] * len(others)
    assert attempt(VICTIM, right) == ok
    assert attempt(VICTIM, right, **{"X-Forwarded-For": attacker}) == ok


def test_stalled_login_bodies_of_one_address_leave_another_at_200(proxied: Proxied) -> None:
    body = urlencode({"user": PAT, "password": "x" * 100})
    head = (
        f"POST /login HTTP/1.1\r\nHost: 127.0.0.1:{proxied.port}\r\n"
        f"X-Forwarded-For: {VICTIM}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body[:-1]}"
    ).encode()
    with ExitStack() as opened:
        for _ in range(STALLED):
            source = (ATTACKER, 0)
            connection = socket.create_connection(("127.0.0.1", proxied.port), 30, source)
            opened.enter_context(connection)
            connection.sendall(head)
        assert refused_one(connection) == 503  # the last one: the address has its share
        for _ in range(20):
            with proxied.client(VICTIM) as client:
                assert client.get("/login").status_code == 200
        assert proxied.log_in(VICTIM, PASSWORD) == 303


def refused_one(connection: socket.socket) -> int:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status
