"""The pages of `relay serve`: off by default, behind a login, and what is answered without one."""

import re
import signal
from collections.abc import Iterator

import httpx
import pytest

from relay.front_door.pages.login import local_reference
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

PAGES = {"http": {"listen": ["127.0.0.1:0"], "pages": True}}
LISTED = "<title>Messages"


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    return serve_module(config=PAGES)


@pytest.fixture
def browser(relay: RelayProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url_of(relay), trust_env=False) as client:
        yield client


def url_of(relay: RelayProcess) -> str:
    return f"http://{relay.ready['http'][0]}"


def field(page: httpx.Response, name: str) -> str:
    found = re.search(rf'<input type="hidden" name="{name}" value="([^"]*)">', page.text)
    assert found, page.text
    return found[1]


def log_in(browser: httpx.Client, user: str, password: str, **more: str) -> httpx.Response:
    form = browser.get("/login", params=more)
    fields = {"csrf": field(form, "csrf"), "next": field(form, "next")}
    return browser.post("/login", data=fields | {"user": user, "password": password})


def test_pages_are_off_by_default(serve):
    relay = serve()
    with httpx.Client(base_url=url_of(relay), trust_env=False) as client:
        for path in ("/", "/login", "/queue", "/static/pages.css"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ResourceNotFound")


def test_a_log_out_ends_the_login(browser):
    log_in(browser, "alice@example.test", "alice")
    page = browser.get("/")
    assert LISTED in page.text
    assert browser.get("/login").headers["location"] == "./", "there is nothing to log in to"
    cookies = dict(browser.cookies)
    browser.post("/logout", data={"csrf": field(page, "csrf")})
    assert not browser.cookies
    assert httpx.get(f"{browser.base_url}", cookies=cookies).status_code == 303, "it goes on"


def test_a_login_leads_to_the_page_that_was_asked_for(browser):
    answer = browser.get("/messages/a%2Fb/html?x=%22y&x=2")
    assert answer.headers["location"].startswith("../../login?next=")
    form = browser.get(answer.headers["location"].removeprefix("../.."))
    given = {"csrf": field(form, "csrf"), "next": field(form, "next").replace("&amp;", "&")}
    answer = browser.post("/login", data=given | {"user": "alice", "password": "alice"})
    assert answer.headers["location"] == "messages/a%2Fb/html?x=%22y&x=2"


@each_row(
    "text",
    [
        "//evil.test",
        "/\\evil.test",
        "https://evil.test",
        "javascript:alert(1)",
        "a:b",
        "../x",
        "%2e%2e/x",
        ".",
        "x\r\nset-cookie: a=b",
        "\x00",
        "x y",
        "é",
        "x#y",
        "?x=<y>",
        "x" * 2001,
    ],
)
def test_references_lead_only_to_pages(text):
    assert local_reference(text) == ""
    for kept in ("queue", "messages/x:y", "messages/%3Cid%40x%3E/", "?to=a@b", "queue?after=/"):
        assert local_reference(kept) == kept


@pytest.mark.parametrize("text", ["//evil.test", "x\r\nset-cookie: a=b", "javascript:alert(1)"])
def test_a_login_leads_nowhere_else(browser, text):
    answer = log_in(browser, "alice@example.test", "alice", next=text)
    assert answer.headers["location"] == "./"
    assert list(answer.headers).count("location") == 1


def test_wrong_logins_and_unknown_accounts_look_the_same(browser):
    pages = set()
    for user in ("bob@example.test", "nobody@example.test"):
        answer = log_in(browser, user, "wrong")
        assert answer.status_code == 403
        assert "The address or the password is wrong." in answer.text
        pages.add(answer.text.replace(field(answer, "csrf"), "").partition('data-now="')[0])
        assert user not in answer.text
    assert len(pages) == 1


def test_guesses_are_delayed(browser):
    for _ in range(3):
        assert log_in(browser, "dave@example.test", "wrong").status_code == 403
    answer = log_in(browser, "dave@example.test", "dave@")
    assert answer.status_code == 429
    assert "Too many failed logins. Try again in 1 second." in answer.text
    assert answer.headers["retry-after"] == "1"


def test_a_login_needs_the_token_of_its_form(browser):
    """A page of another site could log a visitor in to an account of its own otherwise."""
    fields = {"user": "alice@example.test", "password": "alice"}
    assert browser.post("/login", data=fields).status_code == 403
    token = field(browser.get("/login"), "csrf")
    assert browser.post("/login", data=fields | {"csrf": token + "x"}).status_code == 403
    browser.cookies.clear()
    answer = browser.post("/login", data=fields | {"csrf": token})
    assert answer.status_code == 403
    assert "Please try again." in answer.text
    answer = browser.post("/login", data=fields | {"csrf": field(answer, "csrf")})
    assert answer.status_code == 303, "the answer has a new form"


def test_strangers_send_small_forms(browser):
    """The memory for bodies is that of all visitors."""
    token = field(browser.get("/login"), "csrf")
    form = f"csrf={token}&user=alice&password=alice&x=".encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    large = form + b"x" * 16_384
    assert browser.post("/login", content=large, headers=headers).status_code == 413
    in_chunks = browser.post("/login", content=iter([form]), headers=headers)
    assert in_chunks.status_code == 411
    assert browser.post("/", content=large, headers=headers).headers["location"] == "login"
    assert browser.post("/login", content=form, headers=headers).status_code == 303


def test_a_changed_password_ends_the_logins_of_its_account(serve):
    relay = serve(config=PAGES)
    with (
        httpx.Client(base_url=url_of(relay), trust_env=False) as alice,
        httpx.Client(base_url=url_of(relay), trust_env=False) as bob,
    ):
        log_in(alice, "alice@example.test", "alice")
        log_in(bob, "bob@example.test", "bob")
        accounts = relay.folder / "accounts.toml"
        accounts.write_text(accounts.read_text().replace('"plain:alice"', '"plain:other"'))
        relay.process.send_signal(signal.SIGHUP)
        until("the reload ends the login", lambda: alice.get("/").status_code == 303)
        assert bob.get("/").status_code == 200
        assert log_in(alice, "alice@example.test", "alice").status_code == 403
        assert log_in(alice, "alice@example.test", "other").status_code == 303


def test_the_log_names_who_logged_in_and_no_secret(serve):
    relay = serve(config=PAGES)
    with httpx.Client(base_url=url_of(relay), trust_env=False) as browser:
        log_in(browser, "alice@example.test", "a-guessed-password")
        log_in(browser, "carol", "carol")
        cookies = list(browser.cookies.values())
        for logged in (
            r'"login rejected".*"alice@example.test"|alice@example.test.*login rejected',
            r'"logged in".*"carol@example.test"|carol@example.test.*logged in',
        ):
            until("it is in the log", lambda logged=logged: re.search(logged, relay.log))
        log = relay.log
        assert [one for one in ("a-guessed-password", *cookies) if one in log] == []


def test_a_live_view_ends_with_the_login(relay, browser):
    log_in(browser, "carol@example.test", "carol")
    token = field(browser.get("/"), "csrf")
    with browser.stream("GET", "/", params={"live": "x"}) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith("data:") for line in lines)
        assert browser.post("/logout", data={"csrf": token}).status_code == 303
        relay.send_mail(token="carol", to=["bob@example.test"], subject="after the end")
        assert "after the end" not in "".join(lines)


def test_scripts_learn_that_a_login_is_needed(browser):
    for headers in ({"hx-request": "true"}, {"accept": "text/event-stream"}):
        answer = browser.get("/", headers=headers)
        assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")


@each_row(
    "fields",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "script"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"origin": "http://evil.test"},
        {"origin": "null"},
    ],
)
def test_other_sites_may_only_link(browser, fields):
    assert browser.get("/login", headers=fields).status_code == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_what_the_visitor_does_is_allowed(browser, site):
    log_in(browser, "alice@example.test", "alice")
    assert browser.get("/", headers={"sec-fetch-site": site}).status_code == 200
    by_another_name = str(browser.base_url).replace("127.0.0.1", "localhost")  # DNS rebinding
    assert browser.get(by_another_name).headers["location"] == "login"


def test_in_development_pages_of_other_ports_cannot_read_a_page(dev):
    dev = dev("--no-demo")
    foreign = {"origin": "http://localhost:3000"}
    answer = httpx.get(f"{dev.url}/", headers=foreign, trust_env=False)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    preflight = foreign | {"access-control-request-method": "POST"}
    answer = httpx.options(f"{dev.url}/logout", headers=preflight, trust_env=False)
    assert answer.status_code == 403
    page = httpx.get(f"{dev.url}/", trust_env=False)
    assert LISTED in page.text
    assert "Log out" not in page.text
    assert httpx.post(f"{dev.url}/logout", trust_env=False).status_code == 403
    api = httpx.get(f"{dev.url}/relay/v1/messages", headers=foreign, trust_env=False)
    assert api.headers["access-control-allow-origin"] == foreign["origin"]
