"""The list of messages in a browser: it is live, and keeps focus and marks."""

import smtplib
from datetime import datetime
from zoneinfo import ZoneInfo

from tests.support.browser import Browser
from tests.support.dev_process import DevProcess
from tests.support.relay_process import until

MARKED = "[...document.querySelectorAll('[name=id]:checked')].map((box) => box.ariaLabel)"


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


def test_the_mail_of_one_of_many_people_is_found(browser: Browser, relay: DevProcess) -> None:
    for number in range(60):
        send(relay, f"for {number}", recipient=f"person{number}@customer.example")
    send(relay, "for bob")
    browser.open(relay.ready["pages"])
    browser.click("#open-filters")
    browser.click("#mailbox")
    options = "[...document.querySelectorAll('#mailboxes option')].map((one) => one.value)"
    until("they are suggested", lambda: len(browser.evaluate(options)) == 62)
    people = [f"person{number}@customer.example" for number in range(59, -1, -1)]
    here, others = browser.evaluate(options)[:2], browser.evaluate(options)[2:]
    assert (sorted(here), others) == (["alice@example.test", "bob@example.test"], people)
    browser.press("Person7@", "\n")
    browser.wait_without("a", "for bob")
    browser.wait_for("a", "for 7")
    assert browser.evaluate("document.getElementById('mailbox').value") == people[-8]
    assert len(browser.driver.find_elements("css selector", "[data-row]")) == 1


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
    browser.wait_for("[role=status]", "The message is deleted in 10 seconds.")
    browser.wait_without("a", "doomed")
    browser.click("button", "Undo")
    browser.wait_for("[role=status]", "1 message kept.")
    browser.wait_for("a", "doomed")
    browser.click("[data-mark-all]")
    assert len(browser.evaluate(MARKED)) == 3
    assert browser.console_errors() == []


PATH = "location.pathname"
TITLE = "document.title"


# The first page that is asked for comes after the second one.
OVERTAKEN = """(() => {
  const [real, open] = [fetch, document.querySelectorAll('.pane [data-row]')];
  let second;
  window.fetch = async (url) => {
    const turn = second ? null : new Promise((go) => { second = go; });
    await turn;
    const text = await (await real(url)).text();
    return { text: async () => { turn ? window.isLate = true : setTimeout(second); return text; } };
  };
  open[0].click();
  open[2].click();
})()"""


def test_of_two_messages_that_are_opened_the_last_is_shown(
    browser: Browser, relay: DevProcess
) -> None:
    send(relay, "first", "second", "third")
    browser.set_width(1280)
    browser.open(relay.ready["pages"])
    browser.wait_for(".unread", "first")
    browser.press("jj\n")
    browser.wait_for(".pane [aria-current]", "second")
    browser.evaluate(OVERTAKEN)
    until("the first page has come", lambda: browser.evaluate("!!window.isLate"))
    browser.wait_for("h1", "first")
    assert browser.evaluate("document.querySelector('h1').textContent") == "first"


def test_from_the_list_to_messages_beside_it_and_back_by_keyboard_alone(
    browser: Browser, relay: DevProcess
) -> None:
    send(relay, "first", "second", "third")
    browser.set_width(1280)
    browser.open(relay.ready["pages"])
    browser.wait_for(".unread", "first")
    assert browser.evaluate(TITLE) == "(3) Messages · Relay"
    icon = browser.evaluate("document.querySelector('link[rel=icon]').href")
    browser.press("jj\n")
    browser.wait_for("h1", "second")
    browser.wait_for(".pane [aria-current]", "second")
    browser.wait_for(".pane [data-connected]")
    shown = browser.evaluate(PATH)
    browser.press("j")  # the next one, without a new page
    browser.evaluate("window.same = true")
    browser.wait_for("h1", "first")
    browser.wait_for(".pane [aria-current]", "first")
    assert browser.evaluate(f"window.same && {PATH} !== '{shown}'")
    assert focused(browser) == "first"
    until("it is read", lambda: browser.evaluate(TITLE) == "(1) first · Relay")
    until("its journey is live", lambda: browser.evaluate("!!document.querySelector('#journey')"))
    send(relay, "fourth")
    browser.wait_for(".pane a", "fourth")
    until("it counts", lambda: browser.evaluate(TITLE) == "(2) first · Relay")
    assert browser.evaluate("document.querySelector('link[rel=icon]').href") == icon
    assert browser.axe() == []
    browser.driver.back()
    browser.wait_for("h1", "second")
    assert browser.evaluate(PATH) == shown
    browser.press("u")
    browser.wait_for("[role=status]", "1 message marked as unread.")
    browser.press("jj")
    assert focused(browser) == "Unread: third"
    browser.press("\n")
    browser.wait_for("h1", "third")
    browser.press("\ue00c")  # Escape
    browser.wait_for("h1", "Messages")
    until("its row has the focus", lambda: focused(browser) == "third")
    browser.press("\n")
    browser.wait_for("h1", "third")
    browser.press("#")
    browser.wait_for("[role=status]", "The message is deleted in 10 seconds.")
    browser.wait_without("a", "third")
    assert browser.console_errors() == []
    assert browser.requests_elsewhere(relay.ready["pages"]) == []


def test_times_are_local_with_utc_in_the_title(browser: Browser, relay: DevProcess) -> None:
    send(relay, "timed")
    zone = browser.driver.execute_cdp_cmd
    zone("Emulation.setTimezoneOverride", {"timezoneId": "Asia/Kolkata"})
    try:
        browser.open(relay.ready["pages"])
        at = browser.wait_for("tr time")
        utc = at.get_attribute("datetime")
        expected = datetime.fromisoformat(utc).astimezone(ZoneInfo("Asia/Kolkata"))
        assert at.text.startswith(f"{expected:%-I:%M}")
        assert at.get_attribute("title") == f"{utc[:10]} {utc[11:19]} UTC"
    finally:
        zone("Emulation.setTimezoneOverride", {"timezoneId": ""})
    browser.without_javascript()
    browser.open(relay.ready["pages"])
    assert browser.wait_for("tr time").text == f"{utc[11:16]} UTC"


def test_the_colours_are_those_of_the_system_until_others_are_chosen(
    browser: Browser, relay: DevProcess
) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    browser.emulate_scheme("light")
    browser.open(relay.ready["pages"])
    light = browser.evaluate(ground)
    browser.click("[data-theme-switch][title='Dark mode']")
    dark = browser.evaluate(ground)
    assert dark != light
    browser.open(f"{relay.ready['pages']}queue")
    assert browser.evaluate(ground) == dark
    assert browser.axe() == []
    browser.click("[data-theme-switch][title='Light mode']")
    assert (browser.evaluate(ground), browser.evaluate("localStorage.length")) == (light, 0)
    browser.emulate_scheme("dark")
    assert browser.evaluate(ground) == dark


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


def test_a_page_says_what_it_waits_for(browser: Browser, relay: DevProcess) -> None:
    send(relay, "first", "second")
    browser.set_width(1280)
    browser.open(f"{relay.ready['pages']}messages/last")
    browser.wait_for(".pane [data-connected]")
    browser.evaluate("window.real = fetch; window.fetch = () => new Promise(() => 0)")
    browser.click(".pane [data-row]", "first")
    browser.wait_for(".opening", "first")
    browser.evaluate("window.fetch = () => Promise.reject()")
    browser.wait_for("#gone", "The relay does not answer.")
    browser.evaluate("window.fetch = real")
    browser.wait_without("#gone")


def test_tags_are_set_on_the_page_of_a_message_and_found_in_the_list(
    browser: Browser, relay: DevProcess
) -> None:
    send(relay, "with a tag", "without one")
    browser.open(relay.ready["pages"])
    browser.click("a", "with a tag")
    browser.click("#open-details")
    browser.click("#new-tags")
    browser.press('two "words", <b>x</b>', "\n")
    browser.wait_for("#tags a", "<b>x</b>")
    assert browser.axe() == []
    browser.click("#tags a", "two ")
    browser.wait_for(".messages .tag", "two ")
    assert browser.evaluate(
        "[...document.querySelectorAll('tr[data-key] .tag')].map((one) => one.textContent)"
    ) == ["<b>x</b>", 'two "words"']
    browser.wait_without("a", "without one")
    assert browser.axe() == []
    assert browser.console_errors() == []
