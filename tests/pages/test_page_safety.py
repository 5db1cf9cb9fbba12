"""What is true of every page: its header fields, and that no text of a stranger becomes markup.

A message with hostile texts is in the list, in the queue and in its journey, and each page gets
hostile values of all parameters that any page has.
"""

from contextlib import AbstractContextManager
from html.parser import HTMLParser

import httpx
import pytest

from relay.front_door.pages.site import CONTENT_SECURITY_POLICY
from tests.support.dev_process import DevProcess
from tests.support.page_routes import routes

HOSTILE = "\"'><script>alert(1)</script><img src=//evil.test onerror=alert(1)>{{7191*9241}}</title><base href=//evil.test/>"
PARAMETERS = (
    "q",
    "mailbox",
    "state",
    "before",
    "newer",
    "sender",
    "recipient",
    "domain",
    "next_hop",
    "older_than",
    "id",
    "after",
    "message",
    "to",
    "until",
    "reason",
    "all",
    "did",
    "matched",
    "done",
    "unchanged",
    "in_flight",
    "show",
    "part",
    "next",
    "key",
    "back",
    "own",
    "by",
    "download",
    "name",
    "x",
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
}


class Markup(HTMLParser):
    """Collects what a page would run or load, and where its forms and links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if len(given) != len(attrs):
            self.faults.append(f"{tag} has an attribute twice")
        if tag in ("base", "object", "embed", "style", "template", "img"):
            self.faults.append(tag)
        if tag == "script" and not str(given.get("src")).lstrip("./").startswith("static/"):
            self.faults.append(f"script {given}")
        if tag == "meta" and "http-equiv" in given:
            self.faults.append(f"meta {given}")
        for name, value in given.items():
            if name.startswith(("on", "hx-on")) or name == "style":
                self.faults.append(f"{tag} {name}")
            if name in ("href", "src", "action", "formaction", "hx-get", "hx-post", "sse-connect"):
                target = (value or "").strip().lower()
                head = target.partition("/")[0].partition("?")[0]
                if target.startswith(("/", "\\")) or (":" in head and target != "data:,"):
                    self.faults.append(f"{tag} {name}={value}")


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


@pytest.fixture(scope="module")
def message(dev: DevProcess) -> str:
    """The id of a captured message whose sender, recipient and subject are hostile."""
    sender, recipient = '"<b>\'x"@example.test', '"<i onclick=a>\'"@customer.example'
    content = f"Subject: {HOSTILE}\r\n\r\nx".encode()
    key = dev.submit(f"<{sender}>", [f"<{recipient}>"], content)
    dev.until_state(key, "captured")
    return key


def path_of(route: str, message: str) -> str:
    return "/" + route.replace("{key}", message).replace("{operation}", "hold").replace("...", "1")


@pytest.mark.parametrize("route", sorted(routes()))
def test_no_text_becomes_markup(dev: DevProcess, message: str, route: str):
    path = path_of(route, message)
    hostile = [("id", message), *((name, HOSTILE) for name in PARAMETERS)]
    queries = [[], hostile, *([pair] for pair in hostile)]
    with httpx.Client(trust_env=False, verify=False) as browser:
        pages = [browser.get(dev.url + path, params=pairs) for pairs in queries]
    for page in pages:
        assert page.status_code < 500, page.text
        if not page.headers.get("content-type", "").startswith("text/html"):
            continue
        if "sandbox" in page.headers["content-security-policy"]:
            continue  # the content of a message, which has tests of its own
        assert Markup(page.text).faults == [], page.url
        assert {name: page.headers[name] for name in HEADERS} == HEADERS
        assert "x-frame-options" not in page.headers
        assert page.headers.get_list("set-cookie") == []
        assert "66452031" not in page.text, "it is a template"


@pytest.mark.parametrize(
    "path",
    [
        f"/messages/{HOSTILE.replace('/', '%2F')}",
        "/messages/..%2f..%2fetc%2fpasswd",
        "/messages/%00",
        "/static/..%2fapp.py",
        "/static/../app.py",
        "/static/pages.css/x",
        "/queue/%3Cscript%3E",
        "/queue/hold/x",
        "//queue",
        "/queue//",
        "/QUEUE",
        "/%71ueue",
        "/login/x",
        "/logout/x",
        "/health/%0d%0ax:y",
    ],
)
def test_unusual_paths(dev: DevProcess, path: str):
    page = httpx.get(dev.url + path, trust_env=False, verify=False)
    assert page.status_code in (200, 400, 404, 405), page.text
    if page.headers["content-type"].startswith("text/html"):
        assert Markup(page.text).faults == []
    assert "def create_app" not in page.text


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_need_the_token_too(dev: DevProcess, message: str, method: str):
    for route in routes():
        url = dev.url + path_of(route, message)
        answer = httpx.request(method, url, trust_env=False, verify=False)
        assert answer.status_code in ((303,) if route == "login" else (403,)), route


def live(
    dev: DevProcess, path: str, query: dict[str, str]
) -> AbstractContextManager[httpx.Response]:
    return httpx.stream(
        "GET", dev.url + path, params=query, trust_env=False, verify=False, timeout=20
    )


def first_event(stream: httpx.Response) -> list[str]:
    lines: list[str] = []
    for line in stream.iter_lines():
        if not line and lines and lines[-1].startswith("data:"):
            break
        lines.append(line)
    return lines


def test_a_live_view_has_no_markup_of_strangers(dev: DevProcess, message: str):
    """No text ends an event or begins another one."""
    query = {"live": HOSTILE, "q": ""}
    with live(dev, "/", query) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        lines = first_event(stream)
    assert {line.partition(":")[0] for line in lines} <= {"retry", "event", "id", "data", ""}
    text = "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data:"))
    assert message in text
    assert "&lt;script&gt;" in text
    assert Markup(text).faults == []


def test_readers_of_another_path_have_links_of_their_own(dev: DevProcess, message: str):
    with live(dev, "//", {"live": "x"}) as other, live(dev, "/", {"live": "x"}) as stream:
        assert f'href="../messages/{message}"' in "".join(first_event(other))
        assert f'href="messages/{message}"' in "".join(first_event(stream))
