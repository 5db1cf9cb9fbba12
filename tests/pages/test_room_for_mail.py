"""How much of a window is left for the mail, and for what a row of the list says."""

import email.policy
import smtplib
from collections.abc import Iterator
from email.message import EmailMessage

import pytest

from relay.testing import Relay
from tests.support.browser import Browser

ANN, SHOP = "ann@customer.example", "Shop <noreply@shop.example>"
NEWSLETTER = '<h1>Autumn</h1><img src="https://images.example/loaf.png">' + "<p>Rye</p>" * 50
SAFE, LOST = [ANN], "nobody@strict.example"
KINDS = {  # by subject: sender, recipients, text, HTML, attachments, tags
    "Deploy succeeded: #4711": ("ci@example.test", SAFE, "One\nTwo\nThree", "", 0, ""),
    "Autumn at the Bakery": ("The Bakery <news@bakery.example>", SAFE, "x", NEWSLETTER, 0, ""),
    "Holiday": ("alice@example.test", SAFE, "Photos", "", 12, ""),
    "Weekly report": (SHOP, [f"p{n}@customer.example" for n in range(41)], "x", "", 0, ""),
    "A long subject " * 13 + "ends": (SHOP, SAFE, "x", "", 0, ""),
    "تأكيد الطلب رقم 12345": ("متجر <shop@matjar.example>", SAFE, "شكراً", "<p dir=rtl>شكراً", 0, ""),
    "ご注文の確認と配送予定日": ("日本語 <a@b.example>", SAFE, "ご注文", "", 0, ""),
    "You're invited": ("Party <party@example.test>", SAFE, "x", "", 0, "party, saturday"),
    "Your login code is 481516": (SHOP, SAFE, "Your code is 481516.", "", 0, ""),
    "Lost": ("alice@example.test", [LOST], "x", "", 0, ""),
    "Meeting": ("alice@example.test", ["joe@slow.example", LOST], "x", "", 0, ""),
}
# For each recipient that failed or waits:
MORE = ("Lost", "Undeliverable: Lost", "Meeting", "Meeting")
PLAIN = 290
TOP = """Math.round([...document.querySelectorAll(".preview iframe, .mail-text, #journey")]
    .find((one) => one.checkVisibility()).getBoundingClientRect().top)"""


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    with Relay() as relay:
        relay.internet.domain("slow.example").rcpt("joe").reply("451 4.3.0 busy", times=99)
        relay.internet.domain("strict.example").rcpt("nobody").reply("550 5.1.1 no such user")
        with smtplib.SMTP(*relay.smtp) as client:
            for n in range(PLAIN):
                to = f"user{n}@customer.example"
                content = f"From: {SHOP}\nTo: {to}\nSubject: Invoice {n:04}\n\nx"
                client.sendmail("a@example.test", [to], content)
            for subject, (author, to, text, html, attached, tags) in KINDS.items():
                made = EmailMessage()
                made["From"], made["To"], made["Subject"] = author, ", ".join(to), subject
                made["X-Tags"] = tags
                made.set_content(text)
                if html:
                    made.add_alternative(html, subtype="html")
                for n in range(attached):
                    name = f"holiday photo {n}.jpg"
                    made.add_attachment(b"x" * 999, "image", "jpeg", filename=name)
                client.sendmail("alice@example.test", to, made.as_bytes(policy=email.policy.SMTP))
        relay.settle()
        yield relay


@pytest.mark.parametrize(
    ("width", "height", "top", "each"),
    [(1440, 900, 260, 60), (1024, 768, 280, 80), (390, 844, 345, 110)],
)
def test_what_the_open_tab_shows_begins_near_the_top(
    browser: Browser, relay: Relay, width: int, height: int, top: int, each: int
):
    browser.set_width(width, height)
    browser.open(relay.http_url)
    rows = "[...document.querySelectorAll('[data-row]')]"
    links = dict(browser.evaluate(f"{rows}.map((one) => [one.lastChild.data, one.href])"))
    begins, limits = {}, {}
    for subject in (*KINDS, "Undeliverable: Lost"):
        browser.open(links[" ".join(subject.split())])
        browser.wait_for("#message h1")
        begins[subject] = browser.evaluate(TOP)
        code = 40 if "481516" in subject else 0
        limits[subject] = top + code + each * MORE.count(subject)
        assert browser.evaluate("document.documentElement.scrollWidth") == width
        if subject == "Holiday":
            names = browser.wait_for(".attached", "holiday photo 0.jpg")
            assert names.rect["y"] + names.rect["height"] <= height
            browser.wait_for("#all-attachments", "all 12")
    assert {one: at for one, at in begins.items() if at > limits[one]} == {}


def shares(browser: Browser, rows: str, *parts: str) -> list[float]:
    """In which share of the rows each part is whole."""
    whole = f"""[...document.querySelectorAll("{rows}")].map((row) => %s.map((css) =>
        [row.querySelector(css), ...row.querySelectorAll(css + " :not(.visually-hidden)")]
            .every((one) => one.scrollWidth <= one.clientWidth || !one.clientWidth)))"""
    found = browser.evaluate(whole % list(parts))
    return [sum(row[n] for row in found) / len(found) for n in range(len(parts))]


def test_a_row_says_its_names_and_subject_whole(browser: Browser, relay: Relay):
    browser.set_width(1440, 900)
    browser.open(relay.http_url)
    assert min(shares(browser, "tr[data-key]", ".subject", ".row-to .line")) >= 0.95
    bottoms = "[...document.querySelectorAll('tr[data-key]')].map((one) => one.getBoundingClientRect().bottom)"
    assert sum(bottom <= 900 for bottom in browser.evaluate(bottoms)) >= 20
    browser.wait_for("[data-unread-count]", "+")
    browser.wait_without("tr .state-captured")
    browser.wait_without("#marked-delete")
    browser.click("tr[data-key] input")
    browser.wait_for("#marked-delete")
    browser.open(f"{relay.http_url}/messages/last")
    browser.wait_for(".pane [aria-current]")
    assert min(shares(browser, ".pane tr[data-key]", ".row-from", ".subject")) >= 0.9


def test_the_open_tab_is_seen_on_a_phone(browser: Browser, relay: Relay):
    browser.set_width(390, 844)
    browser.open(f"{relay.http_url}/messages/last?show=checks")
    tab = browser.wait_for(".viewbar [aria-current]", "Checks").rect
    assert 0 <= tab["x"] <= 390 - tab["width"]
