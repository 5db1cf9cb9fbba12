"""The html of reports in Chromium: narrow, in both colour schemes, the important things first."""

import email
import email.policy
from pathlib import Path

import pytest
from msgspec import structs

from relay.base.message.receipt import ReceiptKind
from relay.delivery.reports.texts import LANGUAGES
from relay.formats.dsn import ReportKind
from tests.support.browser import Browser
from tests.support.sample_reports import FULL, report, report_of

NARROW = 320  # pixels
LONG = "x" * 60
MEASURED = """(() => {
    const bottom = (one) => one.getBoundingClientRect().bottom;
    const [first] = document.querySelectorAll("main div");
    const [address, why] = first.querySelectorAll("p");
    return [document.documentElement.scrollWidth, bottom(address), bottom(why || address),
            document.querySelector("h2").getBoundingClientRect().top, bottom(first)];
})()"""


def html_of(written: bytes) -> str:
    message = email.message_from_bytes(written, policy=email.policy.default)
    part = message.get_body(("html",))
    assert part is not None
    return part.get_content()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("kind", [*ReportKind, *ReceiptKind, "one"])
def test_a_report_is_read_at_a_glance(browser: Browser, tmp_path: Path, kind, language: str):
    if kind == "one":  # of words that do not fit
        path = structs.replace(FULL.path, address=f"{LONG}@{LONG}.test")
        reply = structs.replace(FULL.evidence, reply=f"552 5.2.2 {LONG * 5}")
        one = structs.replace(FULL, path=path, evidence=reply)
        written = report(recipients=[one], language=language)
    else:
        written = report_of(kind, language)
    page = tmp_path / "report.html"
    page.write_text(html_of(written))
    browser.set_width(NARROW)
    browser.open(page.as_uri())
    width, address, why, details, end = browser.evaluate(MEASURED)
    assert width <= NARROW
    assert address < why or kind in ("delivered", "relayed", "expanded")
    assert why <= 400
    assert end <= details
    for scheme in ("light", "dark"):
        browser.emulate_scheme(scheme)
        assert browser.axe() == []
    assert browser.console_errors() == []
