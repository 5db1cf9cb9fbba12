"""Hostile HTML in Chromium: inert in the preview, and inert by each of its three protections alone.

The three are the sanitiser, the Content-Security-Policy of the document, and the sandbox of the
frame. What Chromium looked up, requested and logged is read from its own network log and console.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress

import pytest
from selenium.common.exceptions import WebDriverException

from relay.front_door.pages.content_pages import HTML_HEADERS, REMOTE_IMAGES_HEADERS
from relay.front_door.pages.sanitize import safe_document
from tests.support.browser import Browser
from tests.support.hostile_html import HOSTILE
from tests.support.in_thread import Answer, http_origin

NAMES = tuple(HOSTILE)
each_selection = pytest.mark.parametrize(
    "names", [NAMES[::3], pytest.param(NAMES, marks=pytest.mark.long)], ids=["a third", "all"]
)
POLICY = "content-security-policy"
WITHOUT_POLICY = {name: value for name, value in HTML_HEADERS.items() if name != POLICY}


def sanitised(html: str) -> str:
    return safe_document(html, lambda _: None).html


def serving(
    names: Sequence[str],
    *,
    sanitise: bool,
    policy: bool,
    sandbox: bool,
    with_policy: Mapping[str, str] = HTML_HEADERS,
) -> AbstractContextManager[str]:
    """Serve a page with one frame for each hostile document; yield its origin."""
    frame = "<iframe sandbox" if sandbox else "<iframe"
    frames = "".join(f'{frame} src="/{number}" width=300></iframe>' for number in range(len(names)))
    page = f'<!doctype html><title>Page</title><link rel=icon href="data:,">{frames}'

    def answer(path: str, _: object) -> Answer:
        name = path.lstrip("/")
        if not name.isdigit():
            return 404 if name else 200, {"content-type": "text/html"}, page.encode()
        html = HOSTILE[names[int(name)]]
        headers = with_policy if policy else WITHOUT_POLICY
        return 200, headers, (sanitised(html) if sanitise else html).encode()

    return http_origin(answer)


def provoke(browser: Browser) -> int:
    """Click on what each frame has to click; return how many clicks the browser has made."""
    driver, clicks = browser.driver, 0
    for frame in driver.find_elements("css selector", "iframe"):
        driver.switch_to.frame(frame)
        for one in driver.find_elements("css selector", "a, button, input, label, summary"):
            with suppress(WebDriverException):  # hidden, or the frame has gone elsewhere
                one.click()
                clicks += 1
        driver.switch_to.default_content()
    return clicks


def asked_of_others(browser: Browser, url: str) -> list[str]:
    """Return what was asked of other hosts, without other servers of these tests."""
    return [one for one in browser.requests_elsewhere(url) if "//127.0.0.1:" not in one]


@each_selection
def test_hostile_html_is_inert_with_all_protections(browser: Browser, names: Sequence[str]):
    with serving(names, sanitise=True, policy=True, sandbox=True) as url:
        browser.open(url)
        assert provoke(browser) > 10
        assert browser.driver.title == "Page"
        assert browser.driver.current_url == f"{url}/"
        assert len(browser.driver.window_handles) == 1
        assert asked_of_others(browser, url) == []
        refusals = [one for one in browser.console_errors() if "allow-popups" not in one]
        assert refusals == []


@each_selection
@pytest.mark.parametrize("alone", ["sanitise", "sandbox"])
def test_each_protection_alone_is_enough_against_scripts(
    browser: Browser, alone: str, names: Sequence[str]
):
    with serving(
        names, policy=False, sanitise=alone == "sanitise", sandbox=alone == "sandbox"
    ) as url:
        browser.open(url)
        if alone == "sanitise":
            assert asked_of_others(browser, url) == []
        provoke(browser)
        assert browser.evaluate("document.title") == "Page"
        assert not [one for one in asked_of_others(browser, url) if "ran.evil.test" in one]


@each_selection
def test_the_policy_with_remote_images_alone_is_enough_against_scripts(
    browser: Browser, names: Sequence[str]
):
    """The other one refuses images as well."""
    with serving(
        names, sanitise=False, policy=True, sandbox=False, with_policy=REMOTE_IMAGES_HEADERS
    ) as url:
        browser.open(url)
        provoke(browser)
        assert browser.evaluate("document.title") == "Page"
        asked = asked_of_others(browser, url)
        assert not [one for one in asked if "ran.evil.test" in one]
        loads = "script|import|font|sheet|frame|embed|object|video|audio|track"
        assert not [one for one in asked if re.match(rf"http://({loads})\.evil\.test/", one)]


def test_without_any_protection_the_scripts_run(browser: Browser):
    with serving(NAMES, sanitise=False, policy=False, sandbox=False) as url:
        browser.open(url)
        assert "http://ran.evil.test/" in asked_of_others(browser, url)
        assert browser.evaluate("document.title") == "RAN"
