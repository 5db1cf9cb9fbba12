"""The relay below a path of a proxy that removes the path, and of one that does not."""

import re
from collections.abc import Iterator
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from tests.support.relay_process import RelayProcess
from tests.support.reverse_proxy import ReverseProxy, reverse_proxy

LINK = re.compile(r'(?:href|src|action)="([^"]*)"')


@pytest.fixture(scope="module", params=[True, False], ids=["strips", "keeps"])
def proxy(request: pytest.FixtureRequest) -> Iterator[ReverseProxy]:
    """Only a proxy that keeps the path needs public_url for the pages."""
    with reverse_proxy("/mail/relay", strips=request.param) as proxy:
        http = {"listen": ["127.0.0.1:0"], "pages": True}
        if not request.param:
            http["public_url"] = proxy.url
        with RelayProcess(config={"http": http}) as relay:
            proxy.target = str(relay.ready["http"][0])
            yield proxy


@pytest.fixture
def browser(proxy: ReverseProxy) -> Iterator[httpx.Client]:
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(proxy.url))
    with httpx.Client(trust_env=False, follow_redirects=True, headers={"origin": origin}) as client:
        yield client


def log_in(browser: httpx.Client, proxy: ReverseProxy, path: str) -> httpx.Response:
    page = browser.get(f"{proxy.url}/{path}")
    assert urlsplit(str(page.url)).path == "/mail/relay/login"
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text))
    action = re.search(r'<form method="post" action="([^"]*)" class="login"', page.text)
    target = urljoin(str(page.url), action[1])
    return browser.post(target, data=fields | {"user": "alice", "password": "alice"})


def test_a_visitor_logs_in_below_the_path(browser, proxy):
    page = log_in(browser, proxy, "")
    assert (page.status_code, str(page.url)) == (200, f"{proxy.url}/")
    assert "<title>Messages" in page.text


def test_all_links_stay_below_the_path(browser, proxy):
    page = log_in(browser, proxy, "")
    links = {urljoin(str(page.url), link) for link in LINK.findall(page.text)}
    here = {link for link in links if not link.startswith("data:")}
    assert len(here) > 4
    assert [link for link in here if not link.startswith(f"{proxy.url}/")] == []
    for link in here:
        if "/static/" in link:
            assert browser.get(link).status_code == 200


def test_the_api_is_below_the_path(proxy):
    headers = {"authorization": "Bearer alice"}
    answer = httpx.get(f"{proxy.url}/v1.0/me", headers=headers, trust_env=False)
    assert answer.json()["userPrincipalName"] == "alice@example.test"
    messages = f"{proxy.url}/v1.0/me/messages"
    for subject in ("a", "b"):
        draft = httpx.post(messages, json={"subject": subject}, headers=headers, trust_env=False)
        assert draft.status_code == 201
    first = httpx.get(f"{messages}?$top=1", headers=headers, trust_env=False).json()
    if not proxy.strips:
        assert first["@odata.nextLink"].startswith(f"{proxy.url}/v1.0/")
        second = httpx.get(first["@odata.nextLink"], headers=headers, trust_env=False).json()
        assert second["value"][0]["id"] != first["value"][0]["id"]


def test_without_the_path_the_relay_answers_as_before(proxy):
    """A health check asks the relay itself."""
    answer = httpx.get(f"http://{proxy.target}/healthz", trust_env=False)
    assert answer.status_code == 200
    for path in ("/mail/relayx/healthz", "/mail", "/mail%2Frelay/healthz"):
        assert httpx.get(f"http://{proxy.target}{path}", trust_env=False).status_code == 404
