"""The list of messages in a browser: it is live, and keeps focus and marks."""

import smtplib
from collections.abc import Iterator

import pytest

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

MARKED = "[...document.querySelectorAll('[name=id]:checked')].map((box) => box.ariaLabel)"


@pytest.fixture(scope="module")
def running() -> Iterator[DevProcess]:
    with DevProcess("--no-demo") as relay:
        yield relay


@pytest.fixture
def relay(running: DevProcess) -> DevProcess:
    """The same for all tests, and empty."""
    answer = running.graph("DELETE", "/relay/v1/messages", token=running.ready["token"])
    assert answer.status == 200
    return running


def send(relay: DevProcess, *subjects: str, recipient: str = "bob@example.test") -> None:
    host, _, port = relay.ready["smtp"][0].rpartition(":")
    with smtplib.SMTP(host, int(port)) as client:
        for subject in subjects:
            client.sendmail("alice@example.test", [recipient], f"Subject: {subject}\r\n\r\nx")


def focused(browser: Browser) -> str:
    return str(browser.evaluate("document.activeElement.textContent"))


def test_the_list_follows_what_happens(browser: Browser, relay: DevProcess) -> None:
    browser.open(relay.ready["pages"])
    browser.wait_for("#no-messages")
    browser.wait_for("[data-live][data-connected]")
    send(relay, "first")
    browser.wait_for("tr .state-delivered")
    browser.wait_without(".first")
    browser.press("j")
    assert focused(browser) == "Unread: first"
    browser.press("x")
    send(relay, "second", "third")
    browser.wait_for("tr.fresh", "third")
    assert focused(browser) == "Unread: first"
    assert browser.evaluate(MARKED) == ["Mark first"]
    said = "document.getElementById('announcements').textContent"
    until("it is announced", lambda: "new message" in browser.evaluate(said))
    browser.press("k")
    assert focused(browser) == "Unread: second"
    browser.press("/", "first", "\n")
    browser.wait_for("a", "first")
    browser.wait_without("a", "second")
    assert browser.console_errors() == []
    assert browser.requests_elsewhere(relay.ready["pages"]) == []


def test_enter_on_the_mark_of_a_row_opens_the_row(browser: Browser, relay: DevProcess) -> None:
    send(relay, "first", "second")
    browser.open(relay.ready["pages"])
    browser.wait_for("a", "first")
    mark = (
        "[...document.querySelectorAll('tr input')].find((one) => one.ariaLabel === 'Mark first')"
    )
    browser.evaluate(f"{mark}.focus()")
    browser.press("\n")
    browser.wait_for("h1", "first")


def test_a_long_subject_takes_two_lines_and_a_narrow_row_its_width(
    browser: Browser, relay: DevProcess
) -> None:
    send(relay, "w" * 200, "short")
    width = "document.querySelector('[data-row]').closest('th').offsetWidth / innerWidth"
    heights = "[...document.querySelectorAll('[data-row]')].map((link) => link.offsetHeight)"
    for pixels in (1200, 380):
        browser.set_width(pixels)
        browser.open(relay.ready["pages"])
        browser.wait_for("a", "short")
        browser.wait_for("a", "www")
        short, long = sorted(browser.evaluate(heights))
        assert short < long < 2.5 * short
        assert browser.evaluate("document.documentElement.scrollWidth") == pixels
    assert browser.evaluate(width) > 0.9


def test_messages_are_read_marked_and_deleted(browser: Browser, relay: DevProcess) -> None:
    send(relay, "opened", "kept", "doomed")
    browser.open(relay.ready["pages"])
    browser.wait_for("[data-live][data-connected]")
    browser.wait_for(".unread", "opened")
    browser.press("jjj\n")
    browser.wait_for("h1", "opened")
    browser.driver.back()
    browser.wait_for(".unread", "kept")
    browser.wait_without(".unread", "opened")
    browser.press("jx")
    browser.click("button", "Read")
    browser.wait_for("[role=status]", "1 message marked as read.")
    browser.wait_without(".unread", "doomed")
    browser.press("jx")
    browser.click("button", "Delete…")
    browser.wait_for("h1", "Delete 1 message?")
    browser.click("button", "Delete 1 message")
    browser.wait_for("[role=status]", "1 message deleted.")
    browser.wait_without("a", "doomed")
    browser.wait_for("a", "kept")
    browser.click("[data-mark-all]")
    assert len(browser.evaluate(MARKED)) == 2
    assert browser.console_errors() == []


def test_a_hidden_page_gives_its_connection_back(browser: Browser, relay: DevProcess) -> None:
    browser.open(relay.ready["pages"])
    browser.wait_for("[data-live][data-connected]")
    page = browser.driver.current_window_handle
    browser.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.away})")
    browser.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    send(relay, "while away")
    assert browser.driver.current_window_handle == page
    browser.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    browser.wait_for("a", "while away")
    send(relay, "later")
    browser.wait_for("a", "later")
