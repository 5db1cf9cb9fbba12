"""Who may see and do what: every route of the pages, for each kind of visitor and each kind of request.

A route without a row fails the test. A POST without the token of the login is 403 for everybody who
is logged in, and leads to the login for everybody else.
"""

import hmac
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from relay.front_door.pages import app
from tests.support.page_routes import routes
from tests.support.relay_config import OPERATOR, account
from tests.support.relay_process import RelayProcess
from tests.support.tables import each_row

CONFIG = {
    "http": {"listen": ["127.0.0.1:0"], "pages": True},
    "route": [{"domain": "*", "next_hop": "capture"}],
}
VISITORS = ("nobody", "alice", "bob", "auditor", OPERATOR)  # the message is alice's
ATTACHMENT = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "a.txt",
    "contentBytes": "eA==",
}


@dataclass(frozen=True)
class Row:
    """The statuses of a route for each of VISITORS. `fields` are those of a POST."""

    path: str
    get: str
    post: str = "303 405 405 405 405"
    fields: Mapping[str, str] = field(default_factory=dict)


ALL_MAY_READ = "303 200 200 200 200"
OVERVIEW = "303 403 403 200 200"
CONTENT = "303 200 404 403 200"
CHANGES = ("add", "remove", "shipped", "scenario")  # of the simulated internet
DEVELOPMENT_ONLY = "303 404 404 404 404"
ROWS = {
    "": Row("/", ALL_MAY_READ),
    "login": Row("/login", "200 303 303 303 303", post="403 403 403 403 403"),
    "logout": Row("/logout", "303 405 405 405 405", post="303 303 303 303 303"),
    "static": Row("/static/pages.css", "200 200 200 200 200", post="405 405 405 405 405"),
    "messages": Row(
        "/messages",
        "303 303 303 303 303",
        post="303 303 303 303 303",
        fields={"action": "read", "id": "{id}"},
    ),
    "messages/{key}": Row("/messages/{id}", "303 200 404 200 200"),
    **{
        f"messages/{{key}}/{view}": Row(f"/messages/{{id}}/{view}", CONTENT)
        for view in ("html", "text", "headers", "properties", "source")
    },
    "messages/{key}/attachments/...": Row("/messages/{id}/attachments/1", CONTENT),
    "messages/{key}/advance": Row(
        "/messages/{id}/advance", "303 405 405 405 405", post="303 403 403 403 400"
    ),
    "messages/{key}/release": Row(
        "/messages/{id}/release", DEVELOPMENT_ONLY, post="303 404 404 404 404"
    ),
    **{  # of a message that is not scheduled
        f"messages/{{key}}/{change}": Row(
            f"/messages/{{id}}/{change}", "303 405 405 405 405", post="303 403 403 403 409"
        )
        for change in ("send-now", "cancel-send")
    },
    "messages/{key}/tags": Row("/messages/{id}/tags", DEVELOPMENT_ONLY, post="303 404 404 404 404"),
    "refused": Row("/refused", ALL_MAY_READ),
    "queue": Row("/queue", OVERVIEW),
    "health": Row("/health", OVERVIEW),
    **{
        route: Row(f"/{route}", DEVELOPMENT_ONLY, post="303 404 404 404 404")
        for route in ("clock", "compose", "internet", *(f"internet/{change}" for change in CHANGES))
    },
    "help": Row("/help", ALL_MAY_READ),
    "help/programs": Row("/help/programs", DEVELOPMENT_ONLY, post="303 404 404 404 404"),
    "help/example": Row("/help/example?key=k", DEVELOPMENT_ONLY, post="303 404 404 404 404"),
    "queue/{operation}": Row(
        "/queue/hold?id={id}",
        "303 403 403 403 200",
        post="303 403 403 403 303",
        fields={"id": "{id}"},
    ),
}
# What only a development relay has, with a token: nobody, a user, the operator.
DEVELOPMENT = {
    "internet": Row("/internet", "303 403 200", post="303 405 405"),
    **{
        f"internet/{change}": Row(f"/internet/{change}", "303 405 405", post=f"303 403 {refused}")
        for change, refused in zip(CHANGES, (400, 409, 400, 409), strict=True)
    },
    "clock": Row("/clock", "303 200 200", post="303 403 400", fields={"by": "own", "own": "x"}),
    "compose": Row("/compose", "303 403 200", post="303 403 400"),
    "help/programs": Row("/help/programs", "303 200 200", post="303 405 405"),
    "help/example": Row("/help/example?key=k", "303 405 405", post="303 403 303"),
    "messages/{key}/advance": Row("/messages/{id}/advance", "303 405 405", post="303 403 400"),
    "messages/{key}/tags": Row("/messages/{id}/tags", "303 405 405", post="303 303 303"),
}


class Visitors:
    """A browser for each visitor, and the id of a message of alice."""

    def __init__(
        self,
        base: str,
        logins: Mapping[str, tuple[str, str]],
        message: str,
        relay: RelayProcess | None = None,
    ) -> None:
        self.message, self.relay = message, relay
        self._base, self._logins = base, logins

    @contextmanager
    def browser(self, name: str) -> Iterator[httpx.Client]:
        """A browser that is logged in: a new one each time, as some requests end the login."""
        with httpx.Client(base_url=self._base, trust_env=False, verify=False) as browser:
            if name in self._logins:
                user, password = self._logins[name]
                token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/login").text)[1]
                fields = {"csrf": token, "user": user, "password": password}
                assert browser.post("/login", data=fields).status_code == 303
            yield browser

    def filled(self, text: str) -> str:
        return text.replace("{id}", self.message)

    def statuses(self, row: Row, name: str) -> tuple[int, int, int]:
        """Those of GET, of POST without and with the token of the visitor."""
        path = self.filled(row.path)
        fields = {key: self.filled(value) for key, value in row.fields.items()}
        with self.browser(name) as browser:
            token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/").text)
            got = browser.get(path)
            without = browser.post(path, data=fields)
            wrong = browser.post(path, data=fields | {"csrf": "x" * 43})
            assert without.status_code == wrong.status_code
            fields["csrf"] = token[1] if token else ""
            return got.status_code, without.status_code, browser.post(path, data=fields).status_code


@pytest.fixture(scope="module")
def visitors(serve_module) -> Visitors:
    people = [account("auditor", role="read"), account("reader", scopes=["Mail.Read"])]
    relay = serve_module(config=CONFIG, accounts=people)
    message = relay.send_mail(
        to=["someone@elsewhere.test"],
        subject="hers",
        body={"contentType": "html", "content": "<img src=http://a.evil.test/1>"},
        attachments=[ATTACHMENT],
    )
    queue_id = str(relay.until_state(message, "captured")["id"])
    logins = {name: (f"{name}@example.test", name) for name in (*VISITORS[1:], "reader")}
    return Visitors(f"http://{relay.ready['http'][0]}", logins, queue_id, relay)


@pytest.fixture(scope="module")
def exposed(dev_module) -> Visitors:
    """A development relay with a token: alice is a user, and the operator has the token."""
    dev = dev_module("--no-demo", "--listen-all", "--token", "tok")
    message = dev.submit(
        "alice@example.test", ["someone@elsewhere.test"], b"Subject: hers\r\n\r\nx"
    )
    dev.until_state(message, "captured")
    logins = {"alice": ("alice", "tok"), OPERATOR: ("", "tok")}
    base = dev.url.replace("0.0.0.0", "127.0.0.1")
    return Visitors(base, logins, message)


def test_every_route_has_a_row():
    assert routes() == set(ROWS), "say who may use it"
    prefixes = {route.partition("/")[0] for route in ROWS}
    assert prefixes <= set(app.PREFIXES)


@each_row("route", ROWS)
def test_who_may(visitors: Visitors, route: str):
    row = ROWS[route]
    found = [visitors.statuses(row, name) for name in VISITORS]
    got, without, posted = (" ".join(map(str, one)) for one in zip(*found, strict=True))
    expected_without = {"login": "403 403 403 403 403", "static": row.post}
    assert (got, posted) == (row.get, row.post)
    assert without == expected_without.get(route, "303 403 403 403 403")


@each_row("route", DEVELOPMENT)
def test_who_may_in_development(exposed: Visitors, route: str):
    row = DEVELOPMENT[route]
    found = [exposed.statuses(row, name) for name in ("nobody", "alice", OPERATOR)]
    got, without, posted = (" ".join(map(str, one)) for one in zip(*found, strict=True))
    assert (got, posted) == (row.get, row.post)
    assert without == "303 403 403"


def test_the_line_of_text_is_in_the_list_of_whose_mail_it_is(serve):
    people = [account("auditor", role="read"), account("carl")]
    relay = serve(config=CONFIG, accounts=people)
    for subject, to in (("hers", "x@elsewhere.test"), ("his", "auditor@example.test")):
        sent = relay.send_mail(
            to=[to],
            subject=subject,
            body={"contentType": "text", "content": f"{subject} text, code 482913"},
            attachments=[ATTACHMENT],
        )
        relay.until_state(sent, "captured" if subject == "hers" else "delivered")
    names = ("alice", "auditor", "carl", OPERATOR)
    logins = {name: (f"{name}@example.test", name) for name in names}
    visitors = Visitors(f"http://{relay.ready['http'][0]}", logins, "", relay)
    for name, expected in (
        ("alice", ["his text, code 482913", "hers text, code 482913"]),
        ("auditor", ["his text, code 482913"]),
        (OPERATOR, []),
    ):
        with visitors.browser(name) as browser:
            page = browser.get("/").text
            assert re.findall(r'class="row-text[^>]*>([^<]*)<', page) == expected
            assert page.count('aria-label="with attachments"') == 2
            opened = re.search(r'href="(messages/[^"]*)">(?:<span.*?</span>)?his<', page)[1]
            shown = browser.get(f"/{opened}").text
            has_unread = re.search(r'value="unread"[^>]*>Unread</button>', shown) is not None
            assert has_unread == (name == "auditor")
            assert 'value="delete"' not in page + shown
            assert ("482913" in shown) == (name != "auditor")  # the text
            assert ("<code>482913</code>" in shown) == (name == "alice")
    with visitors.browser("carl") as browser:
        for path, said in (("/", "You have sent"), ("/?q=x", "No message"), ("/refused", "to you")):
            assert re.search(rf"{said}.* Your account has no role to see", browser.get(path).text)


def test_a_login_has_the_scopes_of_its_account(visitors: Visitors):
    with visitors.browser("reader") as browser:
        token = re.search(r'name="csrf" value="([^"]+)"', browser.get("/").text)[1]
        fields = {"csrf": token, "id": visitors.message, "action": "read"}
        answer = browser.post("/messages", data=fields)
        assert answer.status_code == 403
        assert "Mail.ReadWrite" in answer.text


def test_looks_into_the_content_of_others_are_logged(visitors: Visitors):
    def looks() -> list[Any]:
        lines = map(json.loads, visitors.relay.log.splitlines())
        return [one for one in lines if one.get("event") == "content of others read"]

    before = len(looks())
    for name in VISITORS[1:]:
        with visitors.browser(name) as browser:
            browser.get(visitors.filled("/messages/{id}/text"))
            browser.get(visitors.filled("/messages/{id}/attachments/1"))
    found = [(one["who"], one["message"]) for one in looks()[before:]]
    assert found == [("operator@example.test", visitors.message)] * 2


def test_a_service_loads_no_remote_images(visitors: Visitors):
    with visitors.browser("alice") as browser:
        page = browser.get(visitors.filled("/messages/{id}?show=html")).text
        assert "1 remote image blocked" in page
        assert "Load remote images" not in page
        assert "images=" not in page
        # not even with what a development relay would accept
        csrf = re.search(r'name="csrf" value="([^"]*)"', page)
        asked = f"remote images of {visitors.message}"
        proof = hmac.new(csrf[1].encode(), asked.encode(), "sha256").hexdigest()
        for images in (proof, "", "1"):
            answer = browser.get(visitors.filled(f"/messages/{{id}}/html?images={images}"))
            assert answer.status_code == 200
            assert "a.evil.test" not in answer.text
            assert "img-src data:;" in answer.headers["content-security-policy"]
