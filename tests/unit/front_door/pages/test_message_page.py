"""The pages of a message and of the queue, and the operations on them, over HTTP."""

import re
import smtplib
from base64 import b64encode
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from relay.testing import Relay
from tests.support.tables import each_row
from tests.unit.front_door.pages.conftest import plain_addresses

ALICE, BOB, JOE = "alice@example.test", "bob@example.test", "joe@slow.test"


@pytest.fixture(scope="module")
def shared(kit_module):
    return kit_module()


@pytest.fixture
def relay(shared):
    shared.reset()
    shared.internet.domain("slow.test").rcpt("joe").reply("451 4.3.0 later", times=99)
    return shared


@pytest.fixture
def deferred(relay):
    """A message that waits, by its queue id."""
    message = relay.send(ALICE, [JOE, BOB], "Wait <b>for</b> it", "text")
    relay.settle()
    return message.journey["id"]


class Page(HTMLParser):
    """The texts, links and forms of a page."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__()
        self.status, self.url = answer.status_code, answer.url
        self.links: dict[str, str] = {}
        self.headings: list[str] = []
        self.forms: list[dict[str, Any]] = []
        self._open: list[tuple[str, str]] = []
        self._texts: list[str] = []
        self._link = self._heading = ""
        self._is_main = False
        self.feed(plain_addresses(answer.text))
        self.text = re.sub(r"\s+", " ", " ".join(self._texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._is_main = self._is_main or tag == "main"
        if tag == "a":
            self._open.append((given.get("href", ""), ""))
        elif not self._is_main:
            return  # the forms of the header
        elif tag == "form" and "method" in given:
            self.forms.append(
                {"method": given["method"], "action": given.get("action", ""), "fields": []}
            )
        elif tag == "input" and self.forms:
            if given.get("type") != "checkbox":
                self.forms[-1]["fields"].append((given["name"], given.get("value", "")))
        elif tag in ("h1", "h3"):
            self._heading = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            href, text = self._open.pop()
            self.links[re.sub(r"\s+", " ", text).strip()] = href
        elif tag in ("h1", "h3"):
            self._heading = ""

    def handle_data(self, data: str) -> None:
        self._texts.append(data)
        if self._open:
            href, text = self._open[-1]
            self._open[-1] = href, text + data
        if self._heading and data.strip():
            self.headings.append(data.strip())

    def follow(self, text: str) -> str:
        """Return the address of a link."""
        return str(self.url.join(self.links[text]))


def get(relay: Relay, path: str) -> Page:
    url = path if path.startswith("http") else f"{relay.http_url}/{path}"
    return Page(httpx.get(url))


def post(page: Page, *, action: str = "", **fields: str) -> Page:
    """Send the form of a page to whose action it is, with changed fields; return what follows."""
    (form,) = [
        one for one in page.forms if one["method"] == "post" and one["action"].endswith(action)
    ]
    data = dict(form["fields"]) | fields
    url = page.url.join(form["action"] or str(page.url))
    return Page(httpx.post(url, data=data, follow_redirects=True, timeout=60))


def send_by_graph(relay: Relay, **more: Any) -> httpx.Response:
    """Send a message of alice to bob, of these properties, or with other fields of sendMail."""
    message = {"toRecipients": [{"emailAddress": {"address": BOB}}]} | more.pop("message", {})
    headers = {"authorization": f"Bearer {relay.token(ALICE)}"}
    body = {"message": message} | more
    answer = httpx.post(f"{relay.http_url}/v1.0/me/sendMail", json=body, headers=headers)
    relay.settle()
    return answer


def journey_of(relay: Relay, name: str) -> Any:
    headers = {"authorization": f"Bearer {relay.operator_token}"}
    return httpx.get(f"{relay.http_url}/relay/v1/messages/{name}", headers=headers).json()


def state_of(relay: Relay, name: str, address: str = JOE) -> str:
    recipients = journey_of(relay, name)["recipients"]
    return next(one["state"] for one in recipients if one["address"] == address)


def test_a_message_for_many_lists_some_recipients_at_once_and_leads_to_its_content(relay):
    recipients = [f"u{number}@slow.test" for number in range(25)]
    name = relay.send(ALICE, recipients, "For many", "text").journey["id"]
    page = get(relay, f"messages/{name}")
    assert "To u0@slow.test, u1@slow.test, u2@slow.test, u3@slow.test" in page.text
    assert page.links["all 25 recipients"] == "#recipients-heading"
    assert page.links["Journey"].endswith("?show=journey#journey")
    assert "5 more recipients" in page.text
    source = plain_addresses(httpx.get(str(page.url)).text)
    _, shown, more = re.split('id="recipients-(?:heading|more)"', source)
    rows = [part.count('<th scope="row">u') for part in (shown, more)]
    assert rows == [20, 5]


def test_any_name_of_a_message_is_its_address(relay, deferred):
    journey = journey_of(relay, deferred)
    message_id = journey["message_id"].replace("<", "%3C").replace("@", "%40")
    names = (journey["graph_id"], journey["submission_id"], message_id, "last", ALICE)
    for name in names:
        page = get(relay, f"messages/{name}")
        assert (page.status, page.headings[0]) == (200, "Wait <b>for</b> it"), name


def test_a_hold_may_have_an_end_and_a_release_ends_it(relay, deferred):
    confirmation = get(relay, get(relay, f"messages/{deferred}").follow("Hold…"))
    post(confirmation, until="2h")
    page = get(relay, f"messages/{deferred}")
    assert re.search(r"It is released (\S+ )?\d\d:\d\d UTC , in (2 h|1 h 59 min) ", page.text)
    assert "Retry now…" not in page.links
    post(get(relay, page.follow("Release…")))
    relay.settle()
    assert state_of(relay, deferred) == "deferred"


def test_a_reroute_asks_for_the_next_hop_first(relay, deferred):
    page = get(relay, get(relay, f"messages/{deferred}").follow("Reroute…"))
    assert [form["method"] for form in page.forms] == ["get"]
    assert "Reroute the selected entry?" in page.text
    confirmation = Page(httpx.get(page.url.copy_add_param("to", "smtp://127.0.0.1:9")))
    assert "would reroute 1 of 1 entry" in confirmation.text
    post(confirmation)
    relay.settle()
    assert "127.0.0.1:9: connection refused" in get(relay, f"messages/{deferred}").text
    bad = Page(httpx.get(page.url.copy_add_param("to", "nonsense://x")))
    assert bad.status == 400
    assert "to: found 'nonsense://x', expected default, mx," in bad.text
    assert [form["method"] for form in bad.forms] == ["get"]


def test_captured_mail_cannot_leave_and_the_page_says_why(relay):
    message = relay.send(ALICE, "joe@elsewhere.example", "Kept", "text")
    relay.settle()
    page = get(relay, f"messages/{message.journey['id']}")
    assert "Release…" not in page.links
    assert "Release is not possible: it is captured" in page.text
    assert "--release-to" in page.text


def test_the_queue_lists_what_waits(relay, deferred):
    relay.internet.domain("slow.test").rcpt("gone").reply("550 5.1.1 no such user")
    relay.send(ALICE, [JOE, "gone@slow.test"], "Half", "text")
    relay.send(ALICE, "joe@elsewhere.example", "Kept", "text")
    relay.settle()
    page = get(relay, "queue")
    assert "Waiting 2" in page.links
    assert page.links["1 captured message"].endswith("queue?state=captured")
    assert "1 captured message is not sent." in page.text
    assert "joe@elsewhere.example" not in page.text
    assert "joe@elsewhere.example" in get(relay, "queue?state=all").text
    assert page.links["Deferred 2"].endswith("queue?state=deferred")
    assert JOE in page.text
    assert "451 4.3.0 later" in page.text
    assert "gone@slow.test" not in page.text, "a failed recipient does not wait"
    assert "Half 1 failed ; deferred:" in get(relay, "?state=failed").text
    only = get(relay, "queue?state=captured&sender=&recipient=")
    assert JOE not in only.text
    assert "joe@elsewhere.example" in only.text
    nothing = get(relay, "queue?domain=nowhere.test")
    assert "Nothing in the queue meets these conditions." in nothing.text


@each_row(
    "query, fault",
    [
        ("state=odd", "state: found"),
        ("older_than=soon", "older than: found"),
        ("sender=" + "x" * 2000, "sender: found 2000 letters"),
        ("after=x", "after: expected the name of an entry"),
    ],
)
def test_a_bad_condition_is_named_on_the_page(relay, query, fault):
    page = get(relay, f"queue?{query}")
    assert page.status == 400
    assert fault in page.text


def test_all_that_match_are_changed_by_their_conditions(relay, deferred):
    later = relay.send(ALICE, JOE, "Second", "text").journey["id"]
    relay.settle()
    page = get(relay, "queue?domain=slow.test&older_than=0s")
    confirmation = get(relay, page.follow("Hold all…"))
    assert (
        "all entries with domain slow.test, older than 0s, state waiting?"
        in confirmation.headings[0]
    )
    assert "would hold 2 of 2 entries" in confirmation.text
    third = relay.send(ALICE, JOE, "Third", "text").journey["id"]
    relay.settle()
    done = post(confirmation)
    assert "done=3" in str(done.url), "the conditions are applied again"
    assert {state_of(relay, one) for one in (deferred, later, third)} == {"held"}


def test_a_cancel_on_a_page_reports_to_the_sender_if_that_is_chosen(relay, deferred):
    confirmation = get(relay, f"queue/cancel?id={deferred}-1&bounce=1&text=wrong+list")
    assert "would cancel 1 of 1 entry, 1 report to senders" in confirmation.text
    post(confirmation, bounce="1", text="wrong list")
    assert state_of(relay, deferred) == "cancelled"
    report = relay.mailbox(ALICE).wait_for(subject="Undeliverable:*")
    assert report.bounce.reply == "wrong list"


def test_the_queue_has_pages(relay):
    for number in range(60):
        relay.send(ALICE, f"u{number}@elsewhere.example", "Many", "text")
    relay.settle()
    first = get(relay, "queue?state=captured")
    second = get(relay, first.follow("Next page"))
    seen = [set(re.findall(r"u\d+@elsewhere", one.text)) for one in (first, second)]
    assert [len(names) for names in seen] == [50, 10]
    assert seen[0] | seen[1] == {f"u{number}@elsewhere" for number in range(60)}
    assert "Next page" not in second.links
    assert "First page" in second.links


def test_a_bounce_and_its_message_lead_to_each_other(relay):
    relay.internet.domain("slow.test").rcpt("gone").reply("550 5.1.1 no such user")
    name = relay.send(ALICE, "gone@slow.test", "Lost", "text").journey["id"]
    relay.settle()
    page = get(relay, f"messages/{name}")
    about = get(relay, page.follow("Show the report"))
    assert about.links["Show the message"] == f"../messages/{name}"
    assert (
        "gone@slow.test was not delivered: mx1.slow.test said 550 5.1.1 no such user" in about.text
    )
    assert "Reporting-MTA" in about.text
    assert "Final-Recipient" in about.text


def test_without_an_envid_the_message_id_leads_to_the_message(relay):
    content = b"Subject: Late\r\nMessage-ID: <late@customer.example>\r\n\r\ntext\r\n"
    with smtplib.SMTP(*relay.smtp) as client:
        client.sendmail(ALICE, ["bob+later550@example.org"], content)
    relay.settle()
    relay.clock.advance(seconds=30)
    relay.settle()
    (report,) = relay.mailbox(ALICE).messages()
    page = get(relay, f"messages/{report.journey['id']}")
    about = get(relay, page.follow("Show the message"))
    claim = "mx1.example.org [127.0.0.1] claims that it was not delivered"
    assert claim in about.text
    assert "claims failure" in about.text
    assert f"report {report.journey['id']}" in about.links


def test_the_properties_are_shown_as_they_were_sent(relay):
    message = {
        "subject": "<b>",
        "body": {"contentType": "html", "content": "<script>x</script>"},
        "bccRecipients": [{"emailAddress": {"address": "hidden@example.test"}}],
    }
    send_by_graph(relay, message=message)
    page = get(relay, "messages/last")
    answer = httpx.get(page.follow("the properties (Graph JSON)"))
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "sandbox" in answer.headers["content-security-policy"]
    shown = answer.json()
    assert {name: shown[name] for name in ("subject", "body")} == {
        "subject": "<b>",
        "body": {"contentType": "html", "content": "<script>x</script>"},
    }
    assert "hidden@example.test" not in answer.text, "Bcc is its owner's"

    mime = f"X-Tag: shown\nTo: {BOB}\nBcc: hidden@example.test\nSubject: MIME\n\nx"
    httpx.post(
        f"{relay.http_url}/v1.0/me/sendMail",
        content=b64encode(mime.encode()),
        headers={"authorization": f"Bearer {relay.token(ALICE)}", "content-type": "text/plain"},
    )
    relay.settle()
    answer = httpx.get(f"{relay.http_url}/messages/last/properties")
    assert answer.json()["internetMessageHeaders"] == [{"name": "X-Tag", "value": "shown"}]
    assert "hidden@example.test" not in answer.text


def test_a_web_link_leads_to_the_page_of_the_message(relay):
    def shown(user: str, path: str) -> list[dict[str, Any]]:
        headers = {"authorization": f"Bearer {relay.token(user)}"}
        return httpx.get(f"{relay.http_url}/v1.0/me/{path}", headers=headers).json()["value"]

    send_by_graph(relay, message={"subject": "linked"})
    headers = {"authorization": f"Bearer {relay.token(ALICE)}"}
    drafts = f"{relay.http_url}/v1.0/me/messages"
    httpx.post(drafts, json={"subject": "linked, a draft"}, headers=headers)
    [received] = shown(BOB, "messages?$search=linked&$select=webLink")
    [sent] = shown(ALICE, "mailFolders/sentitems/messages?$filter=subject eq 'linked'")
    [draft] = shown(ALICE, "mailFolders/drafts/messages?$filter=subject eq 'linked, a draft'")
    assert "webLink" not in draft
    for one in (received, sent):
        page = get(relay, one["webLink"])
        assert (page.status, "linked" in page.text) == (200, True)
    expand = "mailFolders/sentitems/messages?$filter=subject eq 'linked'&$expand=attachments"
    assert shown(ALICE, expand)[0]["webLink"] == sent["webLink"]


def test_without_a_copy_there_are_no_properties(relay):
    send_by_graph(relay, saveToSentItems=False)
    gone = get(relay, "messages/last/properties")
    assert (gone.status, "The sender has no copy" in gone.text) == (404, True)


@pytest.fixture
def scheduled(relay):
    """A message that is to be sent in a day, by its submission id."""
    at = relay.clock.now + timedelta(days=1)
    send_at = {"id": "SystemTime 0x3FEF", "value": f"{at:%Y-%m-%dT%H:%M:%SZ}"}
    message = {"subject": "Later", "singleValueExtendedProperties": [send_at]}
    answer = send_by_graph(relay, message=message)
    return journey_of(relay, answer.headers["x-relay-message-id"])["submission_id"]


def test_what_waits_for_its_time_is_listed_and_counted(relay, scheduled):
    page = get(relay, "?q=state:scheduled")
    assert page.links["Later"].partition("?")[0] == f"messages/{scheduled}"
    assert page.links["Scheduled 1"].endswith("state=scheduled")
    assert get(relay, "?state=converting").links.get("Later") is None
    queue = get(relay, "queue")
    assert queue.links["1 scheduled"].endswith("state=scheduled")
    assert queue.links["0 converting"].endswith("state=converting")
    page = get(relay, f"messages/{scheduled}")
    assert "Scheduled: it is sent at the time that the sender chose, " in page.text


def test_a_scheduled_message_is_sent_now(relay, scheduled):
    first = get(relay, f"messages/{scheduled}")
    done = post(first, action="send-now")
    assert "It is sent now." in done.text
    relay.settle()
    page = get(relay, f"messages/{scheduled}")
    assert f"Delivered to {BOB} at " in page.text
    assert "who development" in page.text
    assert not [one for one in page.forms if one["action"].endswith(("send-now", "cancel-send"))]
    assert post(first, action="send-now").status == 409


def test_a_scheduled_message_is_cancelled_and_stays_a_draft(relay, scheduled):
    page = get(relay, f"messages/{scheduled}")
    done = post(page, action="cancel-send")
    assert "The send is cancelled. The draft stays in Drafts." in done.text
    assert "Cancelled: by development." in done.text
    relay.clock.advance(days=2)
    assert relay.mailbox(BOB).messages() == []
    drafts = httpx.get(
        f"{relay.http_url}/v1.0/me/mailFolders/drafts/messages",
        headers={"authorization": f"Bearer {relay.token(ALICE)}"},
    )
    assert [one["subject"] for one in drafts.json()["value"]] == ["Later"]
    assert not [one for one in done.forms if one["action"].endswith(("send-now", "cancel-send"))]


def test_the_clock_is_advanced_to_a_scheduled_send(relay, scheduled):
    page = get(relay, f"messages/{scheduled}")
    post(page, action="advance")
    relay.settle()
    assert f"Delivered to {BOB} at " in get(relay, f"messages/{scheduled}").text


def people_of(relay: Relay, name: str) -> dict[str, str]:
    """Return what the page of a message says of the people of its header."""
    page = httpx.get(f"{relay.http_url}/messages/{name}").text
    head = page[page.index('<dl class="facts head">') : page.index("<dt>Date</dt>")]
    found = re.findall(r"<dt>([^<]+)</dt><dd[^>]*>(.*?)</dd>", head)
    return {term: re.sub(r"<[^>]+>", "", text) for term, text in found}


def test_recipients_that_the_header_does_not_name_are_bcc(relay):
    hidden = [f"hidden{number}@example.test" for number in range(4)]
    content = (
        f"From: Alice <{ALICE}>\r\nTo: Bob <BOB@example.test>, list@lists.test\r\n"
        f"Cc: {JOE}\r\nDate: Wed, 25 Nov 2026 10:00:00 +0000\r\nSubject: s\r\n\r\nx\r\n"
    )
    with smtplib.SMTP(*relay.smtp) as client:
        client.sendmail(ALICE, [BOB, JOE, *hidden], content)
    relay.settle()
    assert people_of(relay, "last") == {
        "From": "Alice &lt;alice@example.test&gt;",
        "To": "Bob &lt;BOB@example.test&gt;, list@lists.test all 6 recipients",
        "Not in the envelope": "list@lists.test (in To or Cc, but not sent to)",
        "Cc": JOE,
        "Bcc (envelope only)": f"{', '.join(hidden[:3])} and 1 more",
    }
    with smtplib.SMTP(*relay.smtp) as client:
        client.sendmail(ALICE, [BOB], content.replace("list@lists.test", "b@example.test"))
    relay.settle()
    people = people_of(relay, "last")
    assert "Bcc (envelope only)" not in people
    assert people["Not in the envelope"].startswith(f"b@example.test, {JOE} (")
