"""The browser of these tests sees what it is there to see: requests, errors, what axe-core finds."""

from contextlib import AbstractContextManager

import pytest

from tests.support.browser import AXE, Browser
from tests.support.in_thread import http_origin

HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title>'
GOOD = f"""{HEAD}<link rel="icon" href="data:,"></head><body><main><h1>Page</h1>
<p id="scheme"></p><a href="x">a link</a> <input aria-label="name"></main></body></html>"""
BAD = f"""{HEAD}
<link rel="dns-prefetch" href="//prefetched.example">
<link rel="preconnect" href="https://connected.example">
</head><body><img src="http://image.example/a.png"><img src="http://192.0.2.1/b.png" alt="">
<iframe src="https://frame.example/" title="f" sandbox></iframe>
<script>missing()</script></body></html>"""


def serving(page: str, policy: str = "") -> AbstractContextManager[str]:
    """Serve one page at every path; yield its origin."""
    fields = {"content-type": "text/html"} | ({"content-security-policy": policy} if policy else {})
    cookie = {"set-cookie": "kept=1"}
    return http_origin(
        lambda path, _: (200, fields | (cookie if path == "/sets-a-cookie" else {}), page.encode())
    )


def test_requests_prefetched_names_and_connections_are_seen(browser: Browser):
    with serving(BAD) as origin:
        browser.open(origin)
        browser.evaluate("new WebSocket('ws://socket.example/x').readyState")
        asked = " ".join(browser.requests_elsewhere(origin))
    for expected in (
        "prefetched.example",
        "https://connected.example",
        "http://image.example/a.png",
        "http://192.0.2.1/b.png",
        "https://frame.example/",
        "socket.example",
    ):
        assert expected in asked


def test_errors_of_scripts_and_refusals_by_the_policy_are_seen(browser: Browser):
    with serving(BAD) as origin:
        browser.open(origin)
        assert any("missing is not defined" in error for error in browser.console_errors())
    browser.reset()
    with serving(BAD, policy="default-src 'none'") as origin:
        browser.open(origin)
        assert any("Content Security Policy" in error for error in browser.console_errors())
        assert not any("image.example" in url for url in browser.requests_elsewhere(origin))


def test_what_axe_finds_is_reported_under_any_policy(browser: Browser):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make test-suites installs it where npm is")
    with serving(GOOD, policy="default-src 'none'") as origin:
        browser.open(origin)
        assert browser.axe() == []
    with serving(BAD, policy="default-src 'none'") as origin:
        browser.open(origin)
        assert any(finding.startswith("image-alt: ") for finding in browser.axe())


def test_a_test_begins_with_an_empty_browser(browser: Browser):
    with serving(BAD) as origin:
        browser.open(f"{origin}/sets-a-cookie")
        browser.without_javascript()
        browser.emulate_scheme("dark")
        browser.set_width(400)
        assert browser.driver.get_cookies() != []
        browser.driver.switch_to.new_window("tab")
        browser.reset()
    with serving(GOOD) as origin:
        browser.open(origin)
        assert browser.driver.get_cookies() == []
        assert browser.requests_elsewhere(origin) == []
        assert browser.console_errors() == []
        assert len(browser.driver.window_handles) == 1
        assert browser.evaluate("innerWidth") == 1200
        assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is False
