"""The content of a message on its page, and by itself: views, downloads, who may see it."""

import email.policy
import re
import socket
from contextlib import suppress
from email.message import EmailMessage
from html import unescape
from itertools import islice
from pathlib import Path

import httpx
import pytest
from selenium.common.exceptions import ElementNotInteractableException
from selenium.webdriver.common.by import By

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.hostile_html import HOSTILE
from tests.support.tables import each_row

GIF = bytes.fromhex(
    "47494638396101000100800000ffffff00000021f90401000000002c00000000010001000002024401003b"
)
TO = "ann@customer.example"
POLICY = "content-security-policy"
STRANGER = "127.0.0.9"  # of this machine, but no address of the relay
UNREAD = r"^\(\d+\) "  # of the list next to the message, in the title


def a_message(html: str = "", text: str = "Your code is 123456.\n") -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "app@example.test", TO, "Grüße <b>x</b>"
    made.set_content(text)
    if html:
        made.add_alternative(html, subtype="html")
        made.get_payload()[1].add_related(GIF, "image", "gif", cid="<pic>", filename="p.gif")
    made.add_attachment(b"<script>x</script>", "text", "html", filename='../ü "x.html')
    return made.as_bytes(policy=email.policy.SMTP)


HTML = (
    '<style>p{color:red}</style><p>Hello <img src="cid:pic"><img src="http://t.evil.test/1.png">'
    '<a href="https://evil.test/login">https://bank.test/</a>'
)


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo")


def sent(dev: DevProcess, content: bytes) -> str:
    """Send a message to a captured recipient; return its queue id."""
    return dev.send_captured(TO, content)


def page(dev: DevProcess, path: str, **more: str) -> httpx.Response:
    return httpx.get(f"{dev.url}/messages/{path}", trust_env=False, headers=more, timeout=30)


def text_of(dev: DevProcess, path: str) -> str:
    """Return the text of a page, with single spaces."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page(dev, path).text)).split())


@pytest.fixture(scope="module")
def key(dev: DevProcess) -> str:
    return sent(dev, a_message(HTML))


@each_row(
    "view, shown",
    [
        ("text", "Your code is 123456."),
        ("headers", "Grüße <b>x</b>"),
        ("source", "Content-Type: multipart/mixed;"),
        ("attachments", '../ü "x.html text/html 18 bytes attached'),
        ("attachments", "p.gif image/gif 43 bytes in the HTML cid:pic"),
        (
            "links",
            "https://bank.test/ https://evil.test/login The text names another host: bank.test",
        ),
        (
            "checks",
            "<style> element 75.0 % 1 not in 7, partly in 7 mail programs: <style> element Not: Gmail Mobile",
        ),
        (
            "checks",
            "https://evil.test/login https://bank.test/ html 1 has a text that names another host: bank.test",
        ),
        ("nonsense", "1 remote image blocked"),
        ("", "t.evil.test"),
        ("", "Code: 123456"),
    ],
)
def test_each_view_is_a_link(dev, key, view, shown):
    assert shown in text_of(dev, f"{key}?show={view}")


def test_checks_of_a_hostile_message_and_of_none(dev):
    links = "".join(f"<a href='x:{each}\u202e'>{each}<b>\u202e</a>" for each in range(1200))
    shown = page(dev, f"{sent(dev, a_message(links + '<script>x'))}?show=checks").text
    assert "1,000 are listed" in shown
    assert "\u202e" not in shown
    text = text_of(dev, f"{sent(dev, a_message(text='x'))}?show=checks")
    assert "This message has no HTML" in text
    assert "This message has no links." in text


@each_row(
    "path, kind, body",
    [
        (
            "html",
            "text/html; charset=utf-8",
            b'<a title="https://evil.test/login">https://bank.test/</a>',
        ),
        ("text", "text/plain; charset=utf-8", b"Your code is 123456."),
        ("headers", "text/plain; charset=utf-8", b"Subject: =?utf-8?"),
        ("source", "text/plain; charset=utf-8", b"--==="),
    ],
)
def test_a_content_by_itself_runs_and_loads_nothing(dev, key, path, kind, body):
    answer = page(dev, f"{key}/{path}")
    assert answer.headers["content-type"] == kind
    assert body in answer.content
    policy = answer.headers[POLICY]
    assert policy.startswith("default-src 'none';")
    assert policy.endswith("; sandbox")
    assert "script-src" not in policy
    expected = {
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cross-origin-resource-policy": "same-origin",
        "x-dns-prefetch-control": "off",
    }
    assert {name: answer.headers[name] for name in expected} == expected


def test_a_download_has_a_harmless_name(dev, key):
    answer = page(dev, f"{key}/attachments/2")
    assert (
        answer.headers["content-disposition"]
        == "attachment; filename=\"__ _x.html\"; filename*=UTF-8''_%C3%BC%20_x.html"
    )
    answer = page(dev, f"{key}/source?download=1")
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{key}.eml"')
    assert answer.headers["content-type"] == "message/rfc822"


@each_row(
    "path",
    [
        "attachments",
        "attachments/0",
        "attachments/3",
        "attachments/-1",
        "attachments/1e1",
        "attachments/1/2",
        "attachments/99999999999999999999",
        "attachments/%00",
        "attachments/..%2f..%2fetc",
        "html/x",
        "eml",
    ],
)
def test_what_a_message_does_not_have_is_not_found(dev, key, path):
    answer = page(dev, f"{key}/{path}")
    assert answer.status_code == 404
    assert "Traceback" not in answer.text


def test_a_source_is_shown_up_to_a_limit(dev):
    key = sent(dev, b"Subject: long\r\n\r\n" + (b"x" * 70 + b"\r\n") * 30_000)
    shown = page(dev, f"{key}/source").text
    rest = re.search(r"\[([\d,]+) octets more: download the source\]", shown)
    assert rest
    whole = page(dev, f"{key}/source?download=1").content
    assert len(shown.encode()) - len(rest[0]) - 4 + int(rest[1].replace(",", "")) == len(whole)
    assert "bytes more." in text_of(dev, f"{key}?show=source")
    assert "200,000 are shown" in text_of(dev, key)


def peak_kib(dev: DevProcess) -> int:
    """The most memory that the relay's process has had."""
    status = Path(f"/proc/{dev.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def test_a_large_message_is_shown_without_being_held_in_memory(dev):
    attached = (b"QUJD" * 19 + b"\r\n") * 600_000  # 47 MB
    key = sent(
        dev,
        (
            b"Subject: large\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nsee below\r\n"
            b"--b\r\nContent-Type: x/y; name=large\r\nContent-Transfer-Encoding: base64\r\n\r\n"
            + attached
            + b"--b--\r\n"
        ),
    )
    before = peak_kib(dev)
    assert "see below" in page(dev, key).text
    assert "34,200,000 bytes" in page(dev, f"{key}?show=attachments").text
    content = page(dev, f"{key}/attachments/1").content
    assert (len(content), content[:6], content[-3:]) == (34_200_000, b"ABCABC", b"ABC")
    assert peak_kib(dev) - before < 16 * 1024


def test_hostile_html_stays_inert_on_the_page_of_its_message(dev, browser: Browser):
    key = sent(dev, a_message("\n".join(HOSTILE.values())))
    for choice in ("preview-narrow", "preview-dark"):
        browser.open(f"{dev.url}/messages/{key}")
        title = re.sub(UNREAD, "", browser.driver.title)
        browser.click(f"label:has(#{choice})")
        browser.driver.switch_to.frame(browser.wait_for("iframe"))
        for link in browser.driver.find_elements(By.CSS_SELECTOR, "a[title]")[:5]:
            with suppress(ElementNotInteractableException):  # the mail may have put it elsewhere
                link.click()
        browser.driver.switch_to.default_content()
        assert re.sub(UNREAD, "", browser.driver.title) == title
    for view in ("text", "headers", "source", "attachments", "links"):
        browser.open(f"{dev.url}/messages/{key}?show={view}")
        assert re.sub(UNREAD, "", browser.driver.title) == title
    browser.open(f"{dev.url}/messages/{key}/html")
    assert browser.driver.title != "RAN"
    assert len(browser.driver.window_handles) == 1
    assert browser.requests_elsewhere(dev.url) == []
    drawing = "> attribute "  # what is wrong in a drawing of the mail
    assert [one for one in browser.console_errors() if drawing not in one] == []


def connections(host: socket.socket) -> int:
    """How many there have been since the last time; those that are ready count without a thread."""
    count = 0
    with suppress(BlockingIOError):
        while True:
            host.accept()[0].close()
            count += 1
    return count


@pytest.mark.parametrize("part", [4, pytest.param(1, marks=pytest.mark.long)])
def test_no_address_that_shows_mail_connects_to_a_host_that_the_mail_names(
    dev, browser: Browser, part: int
):
    """No policy forbids a connection without a request, which tells the host who reads when."""
    with socket.create_server((STRANGER, 0)) as host:
        host.setblocking(False)
        named = f"{STRANGER}:{host.getsockname()[1]}"
        for number, (name, html) in enumerate(islice(HOSTILE.items(), 0, None, part)):
            hostile = re.sub(r"[\w.]*evil\.test\b", named, html)
            key = sent(dev, a_message(hostile, text=hostile))
            view = f"{dev.url}/view/{key}.html"
            for url in (f"{dev.url}/messages/{key}", view)[number % 4 > 0 :]:  # one document
                browser.open(url)
            assert browser.driver.current_url == view
            assert browser.driver.title != "RAN"
            assert browser.requests_elsewhere(dev.url) == []  # waits for what was begun
            assert connections(host) == 0, name
        for url in (f"{dev.url}/view/{key}.txt", f"{dev.url}/api/v1/message/{key}/raw"):
            answer = httpx.get(url, trust_env=False)
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.headers["x-content-type-options"] == "nosniff"
        document = (
            f'<link xmlns="http://www.w3.org/1999/xhtml" rel="preconnect" href="http://{named}"/>'
        )
        browser.open(f"data:text/xml,{document}")
        browser.requests_elsewhere(dev.url)
        assert connections(host) == 1, "one that is not forbidden is counted"


@each_row("kind", ["text/html", "text/xsl", "text/xml", "image/svg+xml", "application/xhtml+xml"])
def test_a_browser_opens_no_part_of_a_mail_that_could_connect_to_a_host(dev, kind):
    made = EmailMessage()
    made.add_attachment(b"<x/>", *kind.split("/"), filename="a.x")
    key = sent(dev, made.as_bytes(policy=email.policy.SMTP))
    part = httpx.get(f"{dev.url}/api/v1/message/{key}/part/1", trust_env=False)
    assert part.headers["content-type"] == kind
    assert part.headers["content-disposition"].startswith("attachment;")


RESPONSIVE = """<html dir=rtl><style>
p { color: rgb(0, 128, 0) }
@media (max-width: 620px) { p { font-size: 10px } }
@media (prefers-color-scheme: dark) { p { color: rgb(200, 200, 200) } }
</style><p>Text"""


def in_frame(browser: Browser, *properties: str) -> list[str]:
    """What applies to the paragraph in the frame."""
    browser.driver.switch_to.frame(browser.wait_for(".stage iframe"))
    found = browser.wait_for("p")
    values = [found.value_of_css_property(one) for one in properties]
    browser.driver.switch_to.default_content()
    return values


@each_row("window, fits", [(390, 390), (1024, 724), (1440, 1040)])
def test_the_frame_is_as_wide_as_it_says_in_every_window(dev, browser: Browser, window, fits):
    browser.set_width(window)
    browser.open(f"{dev.url}/messages/{sent(dev, a_message(RESPONSIVE))}")
    assert browser.wait_for("iframe").rect["width"] == fits
    for label, width in (("1,024", 1024), ("768", 768), ("375", 375)):
        browser.click(".preview label", label)
        assert browser.wait_for("iframe").rect["width"] == width
        size = "10px" if width < 620 else "16px"
        assert in_frame(browser, "font-size", "direction") == [size, "rtl"]
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_mail_has_the_colours_that_are_chosen_or_else_those_of_the_page(dev, browser: Browser):
    light, dark = ["rgba(0, 128, 0, 1)"], ["rgba(200, 200, 200, 1)"]
    key = sent(dev, a_message(RESPONSIVE))
    for scheme, shown, other in (("light", light, "dark"), ("dark", dark, "light")):
        browser.emulate_scheme(scheme)
        browser.open(f"{dev.url}/messages/{key}")
        assert in_frame(browser, "color") == shown
        browser.click("[data-theme-switch]")
        assert in_frame(browser, "color") == (dark if shown == light else light)
        browser.click(f"label:has(#preview-{scheme})")
        assert in_frame(browser, "color") == shown
        browser.click("[data-theme-switch]")
        browser.click(f"label:has(#preview-{other})")
        assert in_frame(browser, "color") == (dark if shown == light else light)


PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
PREVIEWS = (  # content, the type and name that the part has, and the type of the preview
    (PNG, "image/png", "a.png", "image/png"),
    (b"\xff\xd8\xff\xe0" + b"x" * 20, "application/octet-stream", "b", "image/jpeg"),
    (GIF, "text/html", "c.html", "image/gif"),
    (b"RIFF\x10\x00\x00\x00WEBPVP8 ", "image/png", "d.png", "image/webp"),
    (b"<script>alert(1)</script>", "image/png", "e.png", ""),
    (SVG, "image/svg+xml", "f.svg", ""),
    (SVG, "image/png", "g.png", ""),
    (b"%PDF-1.7\n<</JS (app.alert(1))>>", "application/pdf", "h.pdf", ""),
    (b"BM" + b"x" * 60, "image/bmp", "i.bmp", ""),
    (b"\x89PN", "image/png", "j.png", ""),
    (b"", "image/gif", "k.gif", ""),
    (b"<script>alert(1)</script>", "text/html", "l.html", ""),
    (b"alert(1)", "application/javascript", "m", ""),
    (b"x", "text/plain", "n.txt", ""),
)
ACTIVE = ("image/svg+xml", "text/html", "application/javascript")


def test_images_among_the_attachments_are_shown_by_their_content(dev: DevProcess, browser: Browser):
    made = EmailMessage()
    made["Subject"] = "Attached"
    made.set_content("See below")
    for content, kind, name, _ in PREVIEWS:
        maintype, _, subtype = kind.partition("/")
        made.add_attachment(content, maintype, subtype, filename=name)
    made.add_attachment(EmailMessage(), filename="o.eml")
    key = sent(dev, made.as_bytes(policy=email.policy.SMTP))
    shown = page(dev, f"{key}?show=attachments").text
    for number, (content, kind, name, preview) in enumerate(PREVIEWS, 1):
        address = f"{key}/attachments/{number}?show=1"
        assert (f'<img src="../messages/{address}"' in shown) == bool(preview), name
        answer = page(dev, address)
        assert answer.content == content
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers[POLICY].startswith("default-src 'none';")
        assert headers[POLICY].endswith("; sandbox")
        assert headers["content-disposition"].startswith("inline;" if preview else "attachment;")
        harmless = "application/octet-stream" if kind in ACTIVE else kind
        assert headers["content-type"] == (preview or harmless), name
        download = page(dev, f"{key}/attachments/{number}")
        assert (download.content, download.headers["content-type"]) == (content, harmless), name
        assert download.headers["content-disposition"].startswith("attachment;")
    item = page(dev, f"{key}/attachments/{len(PREVIEWS) + 1}")
    assert item.headers["content-type"] == "message/rfc822"
    browser.open(f"{dev.url}/messages/{key}?show=attachments")
    browser.wait_for(".previews")
    assert re.sub(UNREAD, "", browser.driver.title).startswith("Attached")
    assert browser.requests_elsewhere(dev.url) == []
