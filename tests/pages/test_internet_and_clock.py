"""In a browser: what a simulated host replies is changed, the clock is advanced, health is read."""

import pytest
from selenium.webdriver.support.select import Select

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

SENDER, REMOTE = "alice@example.test", "carla@partner.test"


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def add_reply(browser: Browser, dev: DevProcess, reply: str, times: str = "") -> None:
    browser.open(f"{dev.url}/internet")
    for field, value in (("domain", "partner.test"), ("reply", reply), ("times", times)):
        browser.wait_for(f"#add-{field}").send_keys(value)
    Select(browser.wait_for("#add-verb")).select_by_value("RCPT")
    browser.click("button.primary", "Add the reply")
    browser.wait_for("td code", reply)


def test_a_reply_that_is_changed_in_the_page_makes_mail_bounce(browser: Browser, dev: DevProcess):
    add_reply(browser, dev, "550 5.7.1 not welcome here")
    dev.send(SENDER, REMOTE, "Will it arrive?")
    until("the report is there", lambda: dev.inbox("alice"))
    browser.wait_for("#hosts", "550 5.7.1 not welcome here")  # by itself
    browser.open(dev.url)
    browser.click("a", "Will it arrive?")
    browser.wait_for("main", "550 5.7.1 not welcome here")
    browser.open(f"{dev.url}/internet")
    browser.click("td button", "Remove")
    browser.wait_without("td button", "Remove")
    assert browser.console_errors() == []
    assert browser.requests_elsewhere(dev.url) == []


def test_an_advance_to_the_next_retry_delivers_a_deferred_message(
    browser: Browser, dev: DevProcess
):
    add_reply(browser, dev, "451 4.2.1 later", times="5")
    dev.send(SENDER, REMOTE, "Later")
    browser.wait_for("#hosts", "451 4.2.1 later")
    for _ in range(10):  # the first waits are short, so that some may end by themselves
        browser.open(f"{dev.url}/queue")
        if REMOTE not in browser.wait_for("main").text:
            break
        browser.click(".clock summary")
        browser.click(".clock button", "To the next retry")
        browser.wait_without("button", "Advancing")
    browser.open(f"{dev.url}/clock")
    browser.wait_for("#clock-state", "1 attempt, 0 reports.")
    browser.open(f"{dev.url}/queue")
    assert REMOTE not in browser.wait_for("main").text
    browser.click(".clock summary", "ahead")
    browser.wait_for(".clock-panel", "1 attempt, 0 reports.")
    browser.wait_for("#clock-own-top").send_keys("soon\n")
    browser.wait_for('[role="alert"]', "expected a duration such as")
    assert browser.driver.current_url == f"{dev.url}/clock"
    assert browser.wait_for("#clock-own-page").get_attribute("value") == "soon"


def test_values_that_are_open_stay_open_when_health_is_brought_up_to_date(
    browser: Browser, dev: DevProcess
):
    until("there are samples", lambda: 'id="values-queue-entries"' in dev.get("/health").text)
    browser.open(f"{dev.url}/health")
    browser.click("#open-queue-entries")
    browser.wait_for("#values-queue-entries td")
    browser.evaluate("document.querySelector('#figures dl').remove()")
    browser.evaluate("htmx.ajax('GET', 'health?part=figures', '#figures')")
    browser.wait_for("#figures dl", "ready")
    browser.wait_for("#values-queue-entries td")
    assert browser.console_errors() == []
