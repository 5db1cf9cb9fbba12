"""The login in Chromium: cookies, the Origin of forms, and what a link of another site leads to."""

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.support.browser import Browser


@pytest.fixture(scope="module")
def origin(serve_module) -> str:
    relay = serve_module(config={"http": {"listen": ["127.0.0.1:0"], "pages": True}})
    return f"http://{relay.ready['http'][0]}"


def test_a_visitor_logs_in_by_keyboard_and_out_again(browser: Browser, origin: str):
    browser.open(f"{origin}/help")
    for scheme in ("light", "dark"):
        browser.emulate_scheme(scheme)
        assert browser.axe() == []
    browser.click("#user")
    browser.press("alice", Keys.TAB, "wrong", Keys.ENTER)
    browser.wait_for("[role=alert]", "The address or the password is wrong.")
    browser.click("#user")
    browser.press("alice", Keys.TAB, "alice", Keys.ENTER)
    browser.wait_for("h1", "Help")
    assert browser.driver.current_url == f"{origin}/help"
    assert browser.evaluate("document.cookie") == ""
    browser.wait_for(".who", "alice@example.test")
    browser.driver.find_element(By.CSS_SELECTOR, ".top-end form button").click()
    browser.wait_for("h1", "Log in")
    browser.open(origin)
    browser.wait_for("h1", "Log in")
    assert browser.requests_elsewhere(origin) == []


def test_a_link_of_another_site_needs_one_more_click(browser: Browser, origin: str):
    """The browser sends no SameSite=Strict cookie with it, even if the visitor is logged in."""
    browser.open(f"{origin}/login?next=help")
    browser.wait_without("a", "open the page")
    browser.wait_for("#password").send_keys("bob", Keys.ENTER)  # a token names its account
    browser.wait_for(".who", "bob@example.test")
    link = f'<a href="{origin}/help">help</a>'
    browser.driver.get(f"data:text/html,{link}")
    browser.click("a")
    browser.click("main a", "open the page")
    browser.wait_for("h1", "Help")
    browser.wait_for(".who", "bob@example.test")
