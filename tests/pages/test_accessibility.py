"""Each page: by keyboard, in both colour schemes, narrow, without scripts, and below another path.

A new page needs a line in PAGES.
"""

from collections.abc import Iterator

import pytest

from tests.support.browser import AXE, Browser
from tests.support.sample_mail import Samples, relay_with_samples

TAB = "\ue004"
NARROW = 360  # pixels
# By name: a path, or the subject of the message whose page it is.
PAGES = {
    "list": "/",
    "question": "/messages?action=delete",
    "refused": "/refused",
    "queue": "/queue",
    "queue, none": "/queue?sender=nobody@nowhere.test",
    "cancel": "/queue/cancel?all=true",
    "reroute": "/queue/reroute?all=true",
    "internet": "/internet",
    "clock": "/clock",
    "health": "/health",
    "compose": "/compose",
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


def errors_of(browser: Browser) -> list[str]:
    """What the console shows, but for the status of the page of an error."""
    return [one for one in browser.console_errors() if "status of 404" not in one]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_for_all_and_asks_no_other_host(browser: Browser, samples: Samples, name: str):
    browser.open(samples.url(PAGES[name]))
    assert browser.axe() == []
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
    assert browser.axe() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert errors_of(browser) == []
    assert browser.requests_elsewhere(samples.relay.http_url) == []


def test_an_older_mail_leaves_the_header_where_it_is(browser: Browser, samples: Samples):
    browser.set_width(1440, 400)
    browser.open(samples.url("Welcome to the shop"))
    browser.wait_for(".pane [data-row][aria-current]")
    [row] = browser.evaluate(BOXES % [".pane [data-row][aria-current]"]).values()
    assert (browser.evaluate("scrollY"), row[0]["bottom"] <= 400) == (0, True)


def test_all_times_are_local_and_have_their_day_where_no_list_does(
    browser: Browser, samples: Samples
):
    browser.set_time_zone("America/St_Johns")  # half an hour from all others
    for place in PAGES.values():
        browser.open(samples.url(place))
        browser.wait_without("main", "UTC")
    day = "new Intl.DateTimeFormat(undefined, {day: 'numeric', month: 'short'}).format(new Date())"
    for place, times in (("/clock", "dd time"), ("/health", ".chart-times time")):
        browser.open(samples.url(place))
        shown = f"[...document.querySelectorAll('{times}')].map((one) => one.textContent)"
        assert browser.evaluate(f"{shown}.length") > 0
        assert browser.evaluate(f"{shown}.every((one) => one.startsWith({day}))")


@pytest.mark.parametrize("width", [390, 760, 1200])
def test_addresses_break_at_their_signs_and_not_inside_words(
    browser: Browser, samples: Samples, width: int
):
    browser.set_width(width)
    for place in ("/", "/queue", "Reminder", "Undeliverable: Invoice 1041"):
        browser.open(samples.url(place))
        browser.evaluate(
            "for (const one of document.querySelectorAll('main details:not(.menu)')) one.open = true"
        )
        broken = """(() => {
            const range = document.createRange(), found = [], walker = document.createTreeWalker(
                document.querySelector("main"), NodeFilter.SHOW_TEXT);
            for (let node; (node = walker.nextNode());) {
                const holder = node.parentElement;
                if (!holder.checkVisibility() || holder.closest("pre, .mono, .row-text")) continue;
                for (const word of node.data.matchAll(/[\\w.]*@[\\w.]+/g)) {
                    range.setStart(node, word.index);
                    range.setEnd(node, word.index + word[0].length);
                    if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1)
                        found.push(word[0]);
                }
            }
            return [document.querySelectorAll(".address").length > 0, found];
        })()"""
        assert browser.evaluate(broken) == [True, []], place
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_newcomer_reads_what_states_mean(browser: Browser, samples: Samples):
    browser.set_width(1024)
    browser.open(samples.url("/"))
    browser.click("#open-filters")
    browser.wait_for(".states", "kept on this machine, not sent to its recipient")
    browser.open(samples.url("/queue?state=all"))
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1024


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
        page = f"{relay.http_url}/messages/{message.journey['id']}"
        browser.open(page)
        browser.wait_for("#left-out", "not shown here")
        assert browser.axe() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        browser.open(f"{page}?show=checks")
        browser.wait_for("#checks-score", "is the mean support")
        browser.evaluate(
            "document.querySelectorAll('#content details').forEach(d => d.open = true)"
        )
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.axe() == []
    assert errors_of(browser) == []


BOXES = """Object.fromEntries(%s.map((css) => [css, [...document.querySelectorAll(css)]
    .map((one) => one.getBoundingClientRect().toJSON())]))"""
BEHIND_SUBJECT = """[...document.querySelectorAll("[data-row]")].filter((one) => one.lastChild.data === "%s")
    .flatMap((one) => [...one.closest("th").querySelectorAll(".row-note, .row-text")].map((one) => one.textContent))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_list_and_mail_fit_each_window(browser: Browser, samples: Samples, scheme: str):
    browser.emulate_scheme(scheme)
    for width in (1440, 1024, 720, 390, 320):
        browser.set_width(width)
        for name in ("list", "captured", "deferred"):
            browser.open(samples.url(PAGES[name]))
            if name != "list" and width > 1000:
                browser.wait_for(".pane [aria-current]")
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.axe() == []


def test_a_line_of_the_list_has_what_matters(browser: Browser, samples: Samples):
    sender = f"{'long.' * 12}app@billing.outside.example"
    samples.send(sender, ["nobody@strict.example"], "Abroad", "Please pay.")
    waits = "captured: the sender's mailbox is outside, the report waits here"
    for width in (1440, 390):
        browser.set_width(width)
        browser.open(samples.url("/"))
        assert browser.evaluate(BEHIND_SUBJECT % "Undeliverable: Abroad") == [waits]
        assert browser.evaluate(BEHIND_SUBJECT % "Abroad") == ["failed: 550 5.1.1 no such user"]
        cut = f"[...document.querySelector('[title=\"{sender}\"]').children]"
        sizes = f"{cut}.map((one) => one.scrollWidth > one.clientWidth)"
        assert width == 390 or browser.evaluate(sizes) == [True, False]
    browser.open(samples.url("Undeliverable: Abroad") + "#journey")
    browser.wait_for("#journey", waits.capitalize())


def test_wide_windows_are_used_evenly(browser: Browser, samples: Samples):
    browser.set_width(1440)
    for place in ("/clock", "/compose"):
        browser.open(samples.url(place))
        [main] = browser.evaluate(BOXES % ["main"])["main"]
        assert main["left"] == 1440 - main["right"] > 200
    browser.open(samples.url("/help"))
    assert browser.evaluate(BOXES % ["main h2"])["main h2"][1]["left"] > 720


def test_axe_is_installed():
    if not AXE.exists():
        pytest.skip("no page is examined with axe-core: make test-suites installs it where npm is")


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
