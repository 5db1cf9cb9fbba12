"""The sign-in of users in a browser: what another site can and cannot do, and a person's way through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
import pytest

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.in_thread import Quiet, in_thread

AUTHORIZE = "/contoso/oauth2/v2.0/authorize"
TOKEN = "a-token-of-a-good-length"
NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


class Program:
    """A program that waits for a code on loopback; its start page leads to the relay."""

    def __init__(self) -> None:
        self.got: Queue[dict[str, str]] = Queue()
        self.start = ""
        program = self

        class Handler(Quiet, BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/back"):
                    program.got.put(dict(parse_qsl(urlsplit(self.path).query)))
                self._answer()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                program.got.put(dict(parse_qsl(body.decode())))
                self._answer()

            def _answer(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(f"<h1>Back</h1>{program.start}".encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def code(self) -> dict[str, str]:
        return self.got.get(timeout=60)


@contextmanager
def program_on_loopback() -> Iterator[Program]:
    made = Program()
    with in_thread(made.server):
        yield made


@pytest.fixture
def program() -> Iterator[Program]:
    with program_on_loopback() as made:
        yield made


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture(scope="module")
def guarded(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--token", TOKEN)


def url(dev: DevProcess, port: int = 1, host: str = "127.0.0.1", **changed: str) -> str:
    given = {
        "client_id": "app",
        "response_type": "code",
        "state": "s",
        "scope": "openid",
        "redirect_uri": f"http://localhost:{port}/back",
        **changed,
    }
    return f"http://{host}:{dev.url.rpartition(':')[2]}{AUTHORIZE}?{urlencode(given)}"


def get(address: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(address, headers=named, trust_env=False)


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_may_lead_there_and_do_nothing_else(
    dev: DevProcess, site: str
) -> None:
    answer = get(url(dev), **NAVIGATION, **{"sec-fetch-site": site})
    assert answer.status_code == 200
    assert "Approve" in answer.text
    assert answer.headers["x-frame-options"] == "DENY"
    for dest in ("iframe", "image", "empty"):
        mode = "navigate" if dest == "iframe" else "no-cors"
        fields = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
        assert get(url(dev), **fields).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:3000", "null"])
def test_the_form_of_another_site_approves_nothing(dev: DevProcess, origin: str) -> None:
    fields = {"origin": origin, "sec-fetch-site": "cross-site"}
    form = {"approve": "yes"}
    answer = httpx.post(url(dev), data=form, headers=fields, trust_env=False)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_person_who_opens_the_url_is_led_back(
    dev: DevProcess, program: Program, browser: Browser
) -> None:
    for mode in ("query", "form_post"):
        browser.open(url(dev, program.port, "localhost", response_mode=mode))
        browser.wait_for("h1", "Back")
        back = program.code()
        assert back["state"] == "s"
        assert back["code"]
    assert browser.console_errors() == []


@pytest.mark.parametrize("mode", ["query", "form_post"])
def test_a_person_approves_what_another_site_began(
    dev: DevProcess, program: Program, browser: Browser, mode: str
) -> None:
    there = url(dev, program.port, "localhost", response_mode=mode)
    program.start = f"<a href='{there.replace('&', '&amp;')}'>Sign in</a>"
    browser.open(f"http://127.0.0.1:{program.port}/")
    browser.click("a", "Sign in")
    browser.wait_for("button", "Approve")
    assert program.got.empty()
    assert "app" in browser.wait_for("p", "wants to sign in as").text
    browser.click("button", "Approve")
    browser.wait_for("h1", "Back")
    assert program.code()["code"]


def test_with_a_token_a_person_gives_it(
    guarded: DevProcess, program: Program, browser: Browser
) -> None:
    browser.open(url(guarded, program.port, "localhost", login_hint="carol"))
    for token, then in (("wrong", "This is not the token"), (TOKEN, "Back")):
        browser.wait_for("input[name=token]").send_keys(token)
        browser.click("button", "Approve")
        browser.wait_for("body", then)
    assert program.code()["code"]
    assert program.got.empty()
