"""The tab and the page of what was refused, in a browser as narrow as a phone."""

import smtplib
from collections.abc import Iterator

import pytest

from relay.testing import Relay
from tests.support.browser import Browser

NARROW = 390
LONG = "a" * 60


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with Relay() as running:
        yield running


def refuse(relay: Relay, *recipients: str) -> None:
    with smtplib.SMTP(*relay.smtp) as session:
        session.ehlo()
        session.mail(f"{LONG}@example.test")
        for one in recipients:
            assert session.rcpt(one)[0] == 501


def test_the_tab_appears_by_itself_and_the_page_fits_a_phone(
    browser: Browser, relay: Relay
) -> None:
    browser.set_width(NARROW)
    browser.open(relay.http_url + "/")
    assert browser.evaluate("document.querySelector('nav.tabs a[href$=refused]')") is None
    refuse(relay, *(f"{LONG}..{number}@{LONG}.example" for number in range(12)))
    browser.wait_for("nav.tabs a[href$=refused]", "Refused 1")
    browser.open(relay.http_url + "/refused")
    width = "document.documentElement.scrollWidth"
    assert browser.evaluate(width) <= NARROW
    assert browser.evaluate("document.querySelectorAll('table.refused tbody tr').length") == 1
    refuse(relay, "b..c@example.test")
    browser.wait_for("table.refused tbody tr:nth-child(2)")
    assert browser.evaluate(width) <= NARROW
