"""The proxies of docs/operation-tls.md, with the configuration that is printed there, in front of `relay dev`.

What is not installed skips its tests. Each proxy serves the relay below /relay.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.interop.conftest import program
from tests.support.dev_process import DevProcess
from tests.support.ports import free_port
from tests.support.relay_process import ROOT, until

LINK = re.compile(r'(?:href|src|action)="([^"]*)"')
EXAMPLE = re.compile(r'<form method="post" action="([^"]*help/example[^"]*)"')
LIVE = re.compile(r'sse-connect="([^"]+)"')
CSRF = re.compile(r'name="csrf" value="([^"]+)"')


def printed(language: str) -> str:
    """The block in that language."""
    [block] = re.findall(
        rf"^```{language}\n(.*?)^```$",
        (ROOT / "docs/operation-tls.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return str(block)


def nginx(folder: Path, port: int, block: str) -> list[str]:
    text = f"""\
daemon off; pid nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port}; {block} }}
}}
"""
    (folder / "nginx.conf").write_text(text)
    return [program("nginx"), "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, port: int, block: str) -> list[str]:
    text = "{\n admin off\n}\n" + block.replace("mail.example.org", f"http://127.0.0.1:{port}")
    (folder / "Caddyfile").write_text(text)
    return [
        program("caddy"),
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        str(folder / "Caddyfile"),
    ]


def apache(folder: Path, port: int, block: str) -> list[str]:
    command = program("apache2")
    modules = Path(command).resolve().parents[1] / "lib/apache2/modules"
    names = ("mpm_event", "authz_core", "alias", "proxy", "proxy_http")
    load = "\n".join(f"LoadModule {one}_module {modules}/mod_{one}.so" for one in names)
    text = f"""\
{load}
ServerRoot {folder}
ServerName localhost
PidFile {folder}/apache.pid
ErrorLog /dev/stderr
Listen 127.0.0.1:{port}
{block}
"""
    (folder / "apache.conf").write_text(text)
    return [command, "-D", "FOREGROUND", "-f", str(folder / "apache.conf")]


@pytest.fixture(scope="module")
def relay(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture(scope="module", params=[nginx, caddy, apache], ids=lambda one: one.__name__)
def url(
    request: pytest.FixtureRequest, relay: DevProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URL of the pages behind a proxy."""
    start: Callable[[Path, int, str], list[str]] = request.param
    folder, port = tmp_path_factory.mktemp(start.__name__), free_port()
    block = printed(start.__name__).replace("127.0.0.1:8025", relay.ready["http"][0])
    command = start(folder, port, block)
    process = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "HOME": str(folder)}, stdout=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}/relay/"
    try:
        until("the proxy answers", lambda: is_up(url, process), timeout_s=15)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


def is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, f"the proxy ended with {process.returncode}"
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_pages_and_forms_work_below_the_path(url: str, relay: DevProcess) -> None:
    origin = url.removesuffix("/relay/")
    with httpx.Client(trust_env=False, headers={"Origin": origin}) as client:
        assert client.get(f"{origin}/relay", follow_redirects=True).url == url
        page = client.get(urljoin(url, "help"))
        links = [urljoin(str(page.url), one) for one in LINK.findall(page.text)]
        here = [one for one in links if not one.startswith("data:")]
        assert len(here) > 5
        assert [one for one in here if not one.startswith(url)] == []
        assert {client.get(one).status_code for one in here if "/static/" in one} == {200}
        action = urljoin(str(page.url), EXAMPLE.search(page.text)[1])
        sent = client.post(action, data={"csrf": CSRF.search(page.text)[1]})
        assert (sent.status_code, urljoin(action, sent.headers["location"])) == (303, url)
        until("it is listed", lambda: "Welcome to Relay" in client.get(url).text)


def test_live_parts_are_not_held_back(url: str, relay: DevProcess) -> None:
    with httpx.Client(trust_env=False, timeout=15) as client:
        live = urljoin(url, unescape(LIVE.search(client.get(url).text)[1]))
        with client.stream("GET", live) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            next(lines)  # the stream has begun
            relay.submit("app@example.test", ["bob@example.test"], b"Subject: fresh\r\n\r\nx\r\n")
            deadline = time.monotonic() + 20
            while "fresh" not in next(lines):  # a comment comes now and then
                assert time.monotonic() < deadline, "the proxy holds events back"


def test_the_stream_for_programs_is_not_held_back(url: str, relay: DevProcess) -> None:
    headers = {"Authorization": f"Bearer {relay.ready['token']}"}
    events = urljoin(url, "relay/v1/events")
    with httpx.stream("GET", events, headers=headers, timeout=15, trust_env=False) as response:
        assert response.status_code == 200
        relay.submit("app@example.test", ["bob@example.test"])
        lines, deadline = response.iter_lines(), time.monotonic() + 20
        while not next(lines).startswith("data:"):
            assert time.monotonic() < deadline, "the proxy holds events back"
