"""Write, forward and reply in the browser: by keys, on a narrow window, without scripts."""

from tests.support.browser import Browser

HTML = (
    "<p>See <b>this</b><script>document.title = 'x'</script></textarea><img src=https://e.test/x>"
)


def test_a_person_writes_corrects_and_answers(browser: Browser, kit, tmp_path) -> None:
    relay, file = kit(), tmp_path / "plan.txt"
    file.write_text("1234")
    browser.set_width(390)
    browser.open(relay.http_url)
    browser.press("c")
    for name, text in (("toRecipients", "bob"), ("subject", "Lunch?"), ("body", "At noon.")):
        browser.wait_for(f".compose #{name}").send_keys(text)
    browser.wait_for("#attachments").send_keys(str(file))
    browser.click(".compose .primary")
    browser.wait_for("#fault-toRecipients", "'bob' is no mail address")
    browser.wait_for("#fault-attachments", "Choose the files again")
    assert browser.axe() == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.evaluate("document.activeElement.id") == "toRecipients"
    assert browser.evaluate("document.getElementById('body').value") == "At noon."
    browser.wait_for("#toRecipients").clear()
    browser.wait_for("#toRecipients").send_keys("bob@example.test")
    browser.wait_for("#attachments").send_keys(str(file))
    browser.click(".compose .primary")
    browser.wait_for("h1", "Lunch?")
    browser.wait_for("#answers", "Reply all")
    received = relay.mailbox("bob@example.test").wait_for(subject="Lunch?")
    assert [one.name for one in received.attachments] == ["plan.txt"]
    browser.press("f")
    browser.wait_for("#kept", "plan.txt")
    assert browser.axe() == []
    browser.without_javascript()
    sent = relay.send("ann@customer.example", "bob@example.test", "Offer", html=HTML)
    browser.open(f"{relay.http_url}/messages/{sent.journey['id']}")
    browser.click("#do-reply")
    browser.wait_for("h1", "Reply")
    browser.click(".compose summary")
    browser.wait_for(".compose pre", "See this")
    assert browser.evaluate("document.querySelectorAll('main script, main img').length") == 0
    browser.wait_for("#body").send_keys("Yes.")
    browser.click(".compose .primary")
    browser.wait_for("h1", "RE: Offer")
    assert "Yes." in relay.mailbox("ann@customer.example").wait_for(subject="RE: Offer").html
    assert browser.requests_elsewhere(relay.http_url) == []
