"""The journey of a message and the queue, driven in Chromium."""

import pytest

from relay.testing import Relay
from tests.support.browser import Browser

ALICE, BOB, JOE = "alice@example.test", "bob@example.test", "joe@slow.test"
# In each frame that is painted.
LOOK_FOR_UTC = """window.sawUtc = false; (function look() {
    window.sawUtc ||= document.querySelector("#answer").textContent.includes("UTC");
    requestAnimationFrame(look);
})()"""


@pytest.fixture(scope="module")
def relay():
    with Relay() as relay:
        relay.internet.domain("slow.test").rcpt("joe").reply("451 4.3.0 later", times=99)
        yield relay


def test_a_journey_is_opened_and_its_mail_held_released_retried_and_cancelled(
    browser: Browser, relay: Relay
):
    relay.send(ALICE, [JOE, BOB], "Wait for it", "text")
    relay.settle()
    browser.open(relay.http_url)
    browser.click("a", "Wait for it")
    browser.wait_for("h1", "Wait for it")
    steps = browser.driver.find_elements("css selector", "ol.journey > li h3")
    assert [one.text.split(maxsplit=1)[0] for one in steps] == list("1234567")
    shown = browser.wait_for("time[data-countdown]", "in ").text
    browser.wait_without("time[data-countdown]", shown)
    browser.wait_for("time[data-countdown]", "in ")

    for operation, note in (("Hold", "Held 1"), ("Release", "Released 1"), ("Retry now", "Tried")):
        browser.click("#open-more")
        browser.click("#more a", f"{operation}…")
        browser.wait_for("#dry-run", "Dry run: this would")
        browser.wait_for("#reason").send_keys("seen in the browser")
        browser.click("form[method=post] button", operation)
        browser.wait_for("[role=status]", note)
        browser.wait_for("h1", "Wait for it")
    browser.click("#open-more")
    browser.click("#more a", "Cancel…")
    browser.click(".actions a", "Change nothing")
    browser.click("#open-more")
    browser.click("#more a", "Cancel…")
    browser.click("button.danger")
    browser.wait_for(".state-cancelled")
    assert "hold by" in browser.wait_for("ol.journey").text
    assert browser.console_errors() == []
    assert browser.requests_elsewhere(relay.http_url) == []


def test_marked_entries_of_the_queue_are_held_by_keyboard_without_javascript(
    browser: Browser, relay: Relay
):
    relay.send(ALICE, JOE, "By keyboard", "text")
    relay.settle()
    browser.without_javascript()
    browser.open(f"{relay.http_url}/queue?state=deferred")
    box = browser.wait_for("input[name=id]")
    box.send_keys(" ")
    hold = browser.wait_for("button[formaction]", "Hold…")
    hold.send_keys("\n")
    browser.wait_for("#dry-run", "Dry run: this would hold 1 of 1 entry.")
    browser.wait_for("form[method=post] button.primary").send_keys("\n")
    browser.wait_for("[role=status]", "Held 1 of 1 entry.")
    browser.wait_for(".tabs a", "Held 1")


def test_a_journey_and_the_queue_change_without_a_reload(browser: Browser, relay: Relay):
    relay.send(ALICE, [JOE, BOB], "Watched", "text")
    relay.settle()
    browser.open(f"{relay.http_url}/messages/last")
    browser.wait_for("#answer", "mx1.slow.test replied 451 4.3.0 later. Next attempt ")
    browser.wait_for("#answer", "gives up")
    browser.click("#open-more")
    browser.evaluate("document.getElementById('do-hold').focus()")
    browser.wait_for("[data-connected]")
    browser.evaluate(LOOK_FOR_UTC)
    relay.clock.advance(seconds=70)
    browser.wait_for("#answer", "451 4.3.0 later (3 times since ")
    assert browser.evaluate("window.sawUtc") is False  # what arrives is local at once
    assert browser.evaluate("document.querySelectorAll('#answer').length") == 1
    assert browser.evaluate("document.activeElement.id") == "do-hold"
    assert browser.wait_for("h1").text == "Watched"

    relay.send(ALICE, ["ann+451x1@customer.example"], "Patience", "text")
    relay.settle()
    browser.open(f"{relay.http_url}/messages/last")
    browser.wait_for(".say.wait", "Deferred")
    browser.wait_for("#message [data-connected]")
    place = "document.querySelector('.viewbar').getBoundingClientRect().top"
    top = browser.evaluate(place)
    relay.clock.advance(seconds=70)
    browser.wait_for("#answer", "accepted it")
    assert browser.evaluate(place) == top

    browser.open(f"{relay.http_url}/queue?sender=watched@*")
    browser.wait_for(".empty")
    browser.wait_for("[data-connected]")
    relay.send("watched@example.test", [JOE], "Arrives", "text")
    browser.wait_for("td", "watched@example.test")
    box = browser.wait_for("input[name=id]")
    box.click()
    relay.send("watched@example.test", [JOE], "Second", "text")
    browser.wait_for("tbody:first-of-type tr:nth-child(2) input[name=id]")
    assert browser.evaluate("document.querySelectorAll('input[name=id]:checked').length") == 1
    assert browser.console_errors() == []
