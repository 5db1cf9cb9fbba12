"""Each page: by keyboard, in both colour schemes, narrow, without scripts, and below another path.

A new page needs a line in PAGES.
"""

import itertools
from collections.abc import Iterator

import pytest

from tests.support.browser import AXE, Browser
from tests.support.long_tests import sampled
from tests.support.relay_config import OPERATOR
from tests.support.reverse_proxy import reverse_proxy
from tests.support.sample_mail import Samples, relay_with_samples

TAB, ENTER = "\ue004", "\ue007"
NARROW = 360  # pixels
# By name: a path, or the subject of the message whose page it is.
PAGES = {
    "list": "/",
    "question": "/messages?action=delete",
    "refused": "/refused",
    "queue": "/queue",
    "queue, none": "/queue?sender=nobody@nowhere.test",
    "internet": "/internet",
    "clock": "/clock",
    "health": "/health",
    "help": "/help",
    "programs": "/help/programs",
    "missing page": "/queue/nothing",
    "delivered": "Lunch?",
    "captured": "Your order is on its way",
    "bounced": "Invoice 1041",
    "report": "Undeliverable: Invoice 1041",
    "deferred": "Reminder",
}
# What can have the focus, of what is visible; of a group of radio buttons, one has it.
CONTROLS = """[...document.querySelectorAll(
    "a[href], button:not(:disabled), input:not([type=hidden], :disabled), select, textarea, summary"
)].filter((one) => one.checkVisibility({visibilityProperty: true}))
  .filter((one) => one.type !== "radio" || one.checked)"""
RECORD_FOCUS = """{
    window.reached = new Set(); window.unmarked = [];
    document.addEventListener("focusin", ({target}) => {
        reached.add(target);
        const style = getComputedStyle(target), box = target.getBoundingClientRect();
        if (style.outlineStyle === "none" || box.right <= 0 || box.bottom <= 0)
            unmarked.push(target.outerHTML);
    });
    document.activeElement.blur();
}"""


@pytest.fixture(scope="module")
def samples() -> Iterator[Samples]:
    with relay_with_samples() as made:
        yield made


def axe(browser: Browser) -> list[str]:
    """What axe-core finds, if it is installed."""
    return browser.axe() if AXE.exists() else []


def errors_of(browser: Browser) -> list[str]:
    """What the console shows, but for the status of the page of an error."""
    return [one for one in browser.console_errors() if "status of 404" not in one]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_all_and_asks_no_other_host(browser: Browser, samples: Samples, name: str):
    page = samples.url(PAGES[name])
    browser.open(page)
    assert axe(browser) == []
    count = browser.evaluate(f"{CONTROLS}.length")
    assert count > 4
    browser.evaluate(RECORD_FOCUS)
    # A live page may have put an equal element in the place of one that was reached.
    left = f"""{CONTROLS}.filter((one) => !reached.has(one)
        && ![...reached].some((old) => !old.isConnected && old.isEqualNode(one)))
        .map((one) => one.outerHTML)"""
    for _ in range(3):  # a key is lost now and then while the focus leaves the frame of a preview
        browser.press(*[TAB] * (count + 10))
        if not browser.evaluate(left):
            break
    assert browser.evaluate(left) == []
    assert browser.evaluate("unmarked") == []

    browser.emulate_scheme("dark")
    browser.set_width(NARROW)
    browser.open(page)
    assert axe(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert errors_of(browser) == []
    assert browser.requests_elsewhere(samples.relay.http_url) == []


@pytest.mark.parametrize(
    ("width", "scheme"), sampled(itertools.product([390, 1280], ["light", "dark"]), one_of=4)
)
def test_the_answer_and_the_content_of_a_deferred_message_come_first(
    browser: Browser, samples: Samples, width: int, scheme: str
):
    browser.emulate_scheme(scheme)
    browser.set_width(width)
    for subject in ("Reminder", "Minutes of Monday"):
        browser.open(samples.url(subject))
        edge = "document.querySelector('{}').getBoundingClientRect().{} + scrollY"
        assert browser.wait_for("#answer p", "Next attempt")
        assert browser.evaluate(edge.format("#answer p:last-of-type", "bottom")) < 400
        assert browser.evaluate(edge.format("#content", "top")) < 700
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(browser) == []
    for path in ("/", "/messages?action=delete"):
        browser.open(samples.url(path))
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(browser) == []
    assert errors_of(browser) == []


def test_what_hosts_claim_fits_a_narrow_window(browser: Browser, kit):
    people = ["bob+later550@example.org", f"{'x' * 50}+later550@{'y' * 60}.example"]
    relay = kit()
    message = relay.send("alice@example.test", people, "Late", "text")
    relay.settle()
    relay.clock.advance(seconds=30)  # until their hosts report
    relay.settle()
    for width, scheme in ((320, "light"), (320, "dark"), (800, "light")):
        browser.set_width(width)
        browser.emulate_scheme(scheme)
        browser.open(f"{relay.http_url}/messages/{message.journey['id']}")
        claims = "document.body.innerText.split('claims that it was not delivered').length"
        assert browser.evaluate(claims) - 1 == 4  # the answer and step 7, of both
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(browser) == []
    assert errors_of(browser) == []


def test_checks_fit_a_narrow_window(browser: Browser, kit):
    html = (
        "<style>@media (prefers-color-scheme:dark) { p { display:flex } }</style><video></video>"
        f"<p>x<a href='http://localhost/{'x' * 300}'>{'y' * 200}</a><a href='{{{{url}}}}'></a>"
    )
    relay = kit()
    message = relay.send("alice@example.test", "bob@example.test", "Checks", html=html)
    for width, scheme in ((320, "light"), (320, "dark"), (1280, "light")):
        browser.set_width(width)
        browser.emulate_scheme(scheme)
        browser.open(f"{relay.http_url}/messages/{message.journey['id']}?show=checks")
        browser.wait_for("#checks-score", "is the mean support")
        browser.evaluate(
            "document.querySelectorAll('#content details').forEach(d => d.open = true)"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(browser) == []
    assert errors_of(browser) == []


def test_axe_is_installed():
    if not AXE.exists():
        pytest.skip("no page is examined with axe-core: make test-suites installs it where npm is")


def test_pages_work_without_scripts(browser: Browser, samples: Samples):
    browser.without_javascript()
    browser.open(f"{samples.relay.http_url}/")
    browser.click("main a", "Minutes of Monday")
    browser.wait_for("h1", "Minutes of Monday")
    browser.click("#open-more")
    browser.click("a.button, button", "Hold")
    browser.wait_for("#dry-run")
    browser.click("main form button", "Hold")
    browser.wait_for("[role=status]")
    browser.wait_for(".state", "held")
    assert errors_of(browser) == []


def test_without_scripts_no_button_is_shown_that_needs_them(browser: Browser, samples: Samples):
    name = samples.relay.send(
        "app@example.test", ["bob@example.test"], "Sign in", "Your code is 482913."
    ).journey["id"]
    buttons = "[...document.querySelectorAll('button[type=button]')].filter((b) => b.offsetParent)"
    for path in ("/internet", f"/messages/{name}"):
        browser.open(samples.relay.http_url + path)
        assert browser.evaluate(f"{buttons}.length") > 0
    browser.without_javascript()
    for path in ("/internet", f"/messages/{name}"):
        browser.open(samples.relay.http_url + path)
        assert browser.evaluate(f"{buttons}.map((one) => one.textContent)") == []


def test_pages_work_below_a_path_of_a_proxy(browser: Browser, samples: Samples):
    with reverse_proxy("/mail/relay", strips=True) as proxy:
        proxy.target = samples.relay.http_url.removeprefix("http://")
        browser.open(f"{proxy.url}/")
        browser.click(f"main a[href='messages/{samples.ids['Reminder']}']")  # not its report
        browser.wait_for("h1", "Reminder")
        browser.click("#open-more")
        browser.click("a.button, button", "Retry now")
        browser.click("main form button", "Retry now")
        browser.wait_for("[role=status]")
        for name in ("Queue", "Health", "Messages"):
            browser.click("nav a", name)
            browser.wait_for("h1", name)
            assert browser.driver.current_url.startswith(f"{proxy.url}/")
            assert browser.evaluate("document.styleSheets[0].cssRules.length") > 0
        assert errors_of(browser) == []
        assert browser.requests_elsewhere(proxy.url) == []


def test_a_visitor_logs_in_by_keyboard(browser: Browser, serve):
    relay = serve(config={"http": {"listen": ["127.0.0.1:0"], "pages": True}})
    browser.open(f"http://{relay.ready['http'][0]}/queue")
    browser.click("[name=user]")
    assert axe(browser) == []
    browser.press(TAB, OPERATOR, ENTER)
    browser.wait_for("h1", "Queue")
    assert errors_of(browser) == []
