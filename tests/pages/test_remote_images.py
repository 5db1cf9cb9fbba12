"""Remote images in Chromium: which requests leave, before and after a person asks for them."""

import base64
import email.policy
from collections.abc import Iterator
from email.message import EmailMessage, Message
from urllib.parse import urlsplit

import httpx
import pytest
from selenium.webdriver.common.by import By

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.hostile_html import HOSTILE
from tests.support.in_thread import Answer, http_origin
from tests.support.relay_process import until

GIF = base64.b64decode("R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
TO = "ann@customer.example"
POLICY = "content-security-policy"


class ImageHost:
    """A host that serves an image at every path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.origin = ""
        self.asked: list[tuple[str, Message]] = []

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self.asked}

    def answer(self, path: str, headers: Message) -> Answer:
        self.asked.append((path, headers))
        place = path.removeprefix("/to?")
        moved = {"location": place} if place != path else {}
        fields = {"set-cookie": "seen=1", "content-type": "image/gif"}
        return 302 if moved else 200, fields | moved, GIF


@pytest.fixture(scope="module")
def dev(dev_module) -> DevProcess:
    return dev_module("--no-demo", "--host", "relay.corp.test")


@pytest.fixture
def images() -> Iterator[ImageHost]:
    host = ImageHost()
    with http_origin(host.answer) as host.origin:
        yield host


def sent(dev: DevProcess, html: str, subject: str = "Images") -> str:
    """Send HTML to a captured recipient; return its queue id."""
    made = EmailMessage()
    made["Subject"] = subject
    made.set_content(html, subtype="html", cte="base64")
    return dev.send_captured(TO, made.as_bytes(policy=email.policy.SMTP))


def frame_sources(browser: Browser) -> list[str]:
    """Return what the images in the frame would load."""
    browser.driver.switch_to.frame(browser.driver.find_element(By.CSS_SELECTOR, ".preview iframe"))
    found = browser.driver.find_elements(By.CSS_SELECTOR, "img")
    sources = [f"{one.get_attribute('src')} {one.get_attribute('srcset')}" for one in found]
    browser.driver.switch_to.default_content()
    return sources


def test_images_are_loaded_when_a_person_asks_and_only_in_that_view(
    browser: Browser, dev: DevProcess, images: ImageHost
) -> None:
    at = images.origin
    addresses = ("127.0.0.1", "127.1", "0x7f000001", "[::1]")
    hosts = (*addresses, "localhost", "localhost.", "relay.corp.test")
    port, smtp_port = dev.url.rpartition(":")[2], dev.smtp_address()[1]
    own = [f"http://{host}:{port}/messages/last?{number}" for number, host in enumerate(hosts)]
    own += [f"http://{host}:{smtp_port}/smtp" for host in ("127.1", "localhost")]
    html = (
        f'<p>Hello</p><img src="{at}/src"><img srcset="{at}/set 1x, {at}/set2 2x">'
        f'<p style="background:url({at}/style)">x</p><style>h1{{background:url({at}/sheet)}}</style><h1>y</h1>'
        f'<table background="{at}/attribute"><tr><td>z</td></tr></table><video poster="{at}/poster"></video>'
        f'<input type=image src="{at}/input"><link rel=stylesheet href="{at}/x.css"><img src="//{at[7:]}/relative">'
        f'<img src="{at.replace("//", "//me:secret@")}/user"><picture><source srcset="{at}/source"><img src=x></picture>'
        + "".join(f'<img src="{one}">' for one in own)
    )
    key = sent(dev, html)
    url = f"{dev.url}/messages/{key}"
    for show in ("", "?show=html", "?show=text", "?show=html&images=1", "?show=html&images="):
        browser.open(url + show)
    browser.open(f"{url}/html?images=true")
    assert images.asked == []
    assert browser.requests_elsewhere(dev.url) == []
    browser.open(f"{url}?show=html")
    button = browser.wait_for("#load-images", "Load remote images")
    button.click()
    browser.wait_for("#images-loaded", "5 remote images are loaded by your browser")
    wanted = {"/src", "/set", "/style", "/sheet"}
    until("the images are loaded", lambda: wanted <= images.paths)
    assert images.paths == wanted
    for _, headers in images.asked:
        assert headers["referer"] is None
        assert headers["cookie"] is None
        assert headers["sec-fetch-dest"] == "image"
    assert browser.requests_elsewhere(dev.url) == sorted(at + path for path in wanted)
    assert not [one for one in frame_sources(browser) if "relay" in one or "127.1" in one]
    frame = browser.driver.find_element(By.CSS_SELECTOR, ".preview iframe")
    assert frame.get_attribute("sandbox") == ""
    # the next view has no images, and nothing is remembered
    before = len(images.asked)
    for again in (f"{url}?show=html", url, f"{dev.url}/", f"{url}?show=html"):
        browser.open(again)
    browser.wait_for("#load-images")
    assert len(images.asked) == before


ALLOWED: dict[str, set[str]] = {
    "remote images": {
        "http://img.evil.test/1.png",
        "http://srcset.evil.test/1.png",
        "http://pic.evil.test/a",
    },
    "remote images in odd ways": {"http://plain.evil.test/x", "http://referrer.evil.test/"},
    "style element": {"http://cssbg.evil.test/b.png"},
    "style attribute": {"http://style.evil.test/a.png"},
    "template": {"http://shadow.evil.test/"},
    "environment": {"http://e1.evil.test/"},
    "rules in conditions": {"http://c5.evil.test/"},
    "speculation rules": {"http://shadow.evil.test/"},
    "strings that desynchronise": {
        "http://d3.evil.test/",
        "http://d6.evil.test/",
        "http://d8.evil.test/",
    },
    "svg with html in it": {"http://foreign.evil.test/"},
    "variables": {"http://v5.evil.test/"},
}


@pytest.mark.parametrize("part", [16, pytest.param(1, marks=pytest.mark.long)])
def test_each_hostile_document_loads_only_what_the_rule_allows(
    browser: Browser, dev: DevProcess, part: int
) -> None:
    """One of `part` documents beside those that load something."""
    allowed: set[str] = set()

    def is_requested() -> bool:
        return allowed <= {*browser.requests_elsewhere(dev.url)}

    def check(name: str) -> None:
        asked = browser.requests_elsewhere(dev.url)
        assert {one for one in asked if urlsplit(one).path} == allowed, name
        # names that are looked up, too
        assert {urlsplit(one).netloc for one in asked} == {urlsplit(x).netloc for x in allowed}
        assert "RAN" not in browser.driver.title

    for number, name in enumerate([*ALLOWED, *sorted({*HOSTILE} - {*ALLOWED})[::part]]):
        image = f"http://asked.evil.test/{number}"
        key = sent(dev, f"<img src={image}>{HOSTILE[name]}")
        browser.open(f"{dev.url}/messages/{key}?show=html")
        check(name)
        browser.click("#load-images")
        browser.wait_for("#images-loaded")
        allowed |= {image, *ALLOWED.get(name, ())}
        until("the images are requested", is_requested)
        check(name)


def test_a_redirect_to_the_relay_changes_nothing(
    browser: Browser, dev: DevProcess, images: ImageHost
) -> None:
    """A host may redirect to the relay, which refuses a request of a foreign page."""
    target = sent(dev, "<p>target</p>", "Target")
    key = sent(dev, f'<img src="{images.origin}/to?{dev.url}/messages/{target}">', "Redirects")

    def unread() -> bool:
        headers = {"Authorization": f"Bearer {dev.ready['token']}"}
        listed = httpx.get(f"{dev.url}/v1.0/users/{TO}/messages", headers=headers, trust_env=False)
        return next(
            not one["isRead"] for one in listed.json()["value"] if one["subject"] == "Target"
        )

    assert unread()
    browser.open(f"{dev.url}/messages/{key}?show=html")
    browser.click("#load-images")
    browser.wait_for("#images-loaded")
    until("the host was asked", lambda: bool(images.asked))
    browser.requests_elsewhere(dev.url)  # the network log is complete up to here
    assert unread()


def test_only_the_button_of_the_page_asks_for_images(dev: DevProcess) -> None:
    """No link of another site can make a browser load them."""
    first, second = (sent(dev, "<img src=http://a.evil.test/1>", name) for name in ("One", "Two"))
    with httpx.Client(base_url=dev.url, trust_env=False) as http:
        page = http.get(f"/messages/{first}?show=html").text
        proof = page.partition('name="images" value="')[2].partition('"')[0]
        assert len(proof) == 64
        with_images = http.get(f"/messages/{first}/html?images={proof}")
        assert with_images.headers[POLICY].endswith("; sandbox")
        assert with_images.headers["cache-control"] == "no-store"
        for path in (
            f"/messages/{first}/html?images=é",
            f"/messages/{second}/html?images={proof}",
            f"/messages/last/html?images={proof}",
        ):
            answer = http.get(path)
            assert "a.evil.test" not in answer.text, path
            assert "img-src data:;" in answer.headers[POLICY], path
