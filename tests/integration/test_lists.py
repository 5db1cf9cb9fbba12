"""Lists over HTTP: each filter, order and search against the plainest code there is, and pages while mail comes in."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from relay.front_door.graph.odata.resources import message_condition, message_order
from relay.front_door.graph.odata.search import search_condition
from relay.store.mailbox.query import AllOf, Condition
from tests.support.conditions import Facts, facts_of_json, matches, order_key
from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until

DELIVERED, DRAFTS, FOREIGN = 24, 24, 12
SENDERS = ("Ärger Müller <mueller@a.test>", "bob@b.test", "Carol O'Neil <carol@c.test>")
WORDS = ("invoice", "Rechnung", "grüße", "100%", "under_score", "it's", "new wine", "ПРИВЕТ")
FIRST_DAY = datetime(2024, 2, 25, 12, 30, 15, tzinfo=UTC)  # a leap day is among them


HALF_PAST_S = datetime(2023, 6, 1, 10, 0, 0, 500_000, tzinfo=UTC).timestamp()

FILTERS = [
    "isRead eq false",
    "not isRead and isDraft",
    "hasAttachments",
    "hasAttachments ne true and isDraft eq false",
    "from/emailAddress/address eq 'BOB@b.test'",
    "from/emailAddress/name eq 'ärger müller'",
    "startswith(from/emailAddress/address,'mueller')",
    "endswith(from/emailAddress/address,'@c.test') or from/emailAddress/name eq 'Old'",
    "sender/emailAddress/address eq 'old@b.test'",
    "subject eq 'OLD 3'",
    "subject ne 'old 3'",
    "subject lt 'e' and subject ge 'd'",
    "startswith(subject,'DRAFT IT''S')",
    "contains(subject,'100%')",
    "contains(subject,'r_s')",
    "contains(subject,'привет')",
    "contains(subject,'ÜSSE') or contains(subject,'GRÜ')",
    "contains(subject,'')",
    "endswith(subject,' 7')",
    "subject eq null",
    "importance eq 'high'",
    "importance lt 'high'",
    "importance ge 'normal' and isDraft",
    "flag/flagStatus eq 'flagged'",
    "flag/flagStatus ne 'flagged' and isDraft",
    "inferenceClassification eq 'other'",
    "not (inferenceClassification ne 'focused')",
    "parentFolderId eq 'archive'",
    "parentFolderId ne 'Archive' and not startswith(subject,'draft')",
    "receivedDateTime ge 2024-02-29",
    "receivedDateTime lt 2024-02-29T12:30:15Z",
    "receivedDateTime le 2024-02-29T12:30:15Z and receivedDateTime gt 2024-02-26T12:30:15Z",
    "receivedDateTime eq 2024-03-01T13:30:15+01:00",
    "receivedDateTime ne 2024-03-01T12:30:15Z and receivedDateTime lt 2024-04-01",
    "sentDateTime eq 2024-02-26T10:00:05Z",
    "sentDateTime lt 2024-02-26T10:00:05Z or isRead eq true",
    "toRecipients/any(r:r/emailAddress/address eq 'zoe@a.test')",
    "toRecipients/any(r:r/emailAddress/name eq 'ZOË' and contains(r/emailAddress/address,'@'))",
    "toRecipients/any(r:r/emailAddress/name eq 'Dave' and r/emailAddress/address eq 'zoe@a.test')",
    "toRecipients/all(r:endswith(r/emailAddress/address,'@a.test'))",
    "not toRecipients/any(r:startswith(r/emailAddress/address,'dave'))",
    "ccRecipients/any()",
    "ccRecipients/any(c:c/emailAddress/name eq 'copy')",
    "bccRecipients/any(b:b/emailAddress/address ne 'x')",
    "replyTo/any()",
    "categories/any(c:c eq 'red')",
    "categories/any(c:startswith(c,'red')) and categories/any(c:c eq 'Blue')",
    "categories/all(c:contains(c,'e'))",
    "not (isRead or isDraft) or (hasAttachments and importance eq 'high')",
    "true",
    "not true",
]


@dataclass(frozen=True)
class Mailbox:
    """Dave's: delivered mail, drafts, and files that a mail client left, each a day apart."""

    relay: RelayProcess
    shown: dict[str, dict[str, Any]]
    facts: dict[str, Facts]

    def get(self, url: str) -> dict[str, Any]:
        path = urlsplit(url)
        path_and_query = path.path.removeprefix("/v1.0") + "?" + path.query
        answer = self.relay.graph("GET", path_and_query, token="dave")
        assert answer.status == 200, f"{url}: {answer.status} {answer.body!r}"
        return dict(answer.json())

    def pages(
        self,
        options: dict[str, str],
        between: Callable[[], object] = lambda: None,
        *,
        path: str = "/me/messages",
    ) -> list[dict[str, Any]]:
        """All messages of a list, page by page."""
        url = f"{path}?" + urlencode(options, quote_via=quote)
        found: list[dict[str, Any]] = []
        while url:
            page = self.get(url)
            found += page["value"]
            url = page.get("@odata.nextLink", "")
            between()
        return found

    def answer(self, condition: Condition | None) -> set[str]:
        return {one for one, facts in self.facts.items() if matches(condition, facts)}


def delivered(number: int) -> EmailMessage:
    mail = EmailMessage(policy=SMTP)
    mail["From"] = SENDERS[number % 3]
    mail["To"] = "Dave <dave@example.test>" + (", Zoë <zoe@a.test>" if number % 4 == 0 else "")
    if number % 5 == 0:
        mail["Cc"] = "Copy <copy@a.test>"
    if number % 6 == 0:
        mail["Importance"] = "high"
    mail["Subject"] = f"{WORDS[number % 8]} number {number}"
    mail.set_content(f"Delivered text {number}, about {WORDS[(number + 3) % 8]}.\n")
    if number % 3 == 0:
        data = b"x" * number
        mail.add_attachment(
            data, maintype="text", subtype="plain", filename=f"catalog-{number}.txt"
        )
    return mail


def draft(number: int) -> dict[str, Any]:
    people = [f"person{number % 4}@a.test", "Zoe@A.test"][: 1 + number % 2]
    text = f"draft text {number} {WORDS[number % 8]}"
    more: dict[str, Any] = {
        "importance": ("low", "normal", "high")[number % 3],
        "categories": [["Red"], ["Blue", "Red team"], []][number % 3],
        "isRead": number % 2 == 0,
        "flag": {"flagStatus": "flagged" if number % 7 == 0 else "notFlagged"},
        "inferenceClassification": "other" if number % 5 == 0 else "focused",
    }
    bcc = ["hidden@b.test"] if number % 8 == 0 else []
    subject = f"Draft {WORDS[number % 8].upper()} {number}"
    return message(to=people, bcc=bcc, subject=subject, text=text, **more)


@pytest.fixture(scope="module")
def mailbox(serve_module) -> Mailbox:
    relay = serve_module()
    for number in range(DELIVERED):
        relay.submit("someone@a.test", ["dave@example.test"], delivered(number))
    for number in range(DRAFTS):
        answer = relay.graph("POST", "/me/messages", draft(number), token="dave")
        assert answer.status == 201, answer.body
    archive = relay.folder / "mail/example.test/dave/.Archive/cur"
    for number in range(FOREIGN):
        path = archive / f"17000000{number:02}.M1P2.laptop:2,{'S' * (number % 2)}"
        path.write_bytes(
            b"From: Old <old@b.test>\nTo: dave@example.test\nSubject: old %d\n"
            b"Date: Mon, 26 Feb 2024 10:00:%02d +0000\n\nKept text.\n" % (number, number)
        )
        day_s = FIRST_DAY.timestamp() + number * 86_400
        os.utime(path, (day_s, day_s))
    path = archive / "1700000099.M1P2.laptop:2,S"
    path.write_bytes(b"From: Old <old@b.test>\nSubject: at half past\n\nKept text.\n")
    os.utime(path, (HALF_PAST_S, HALF_PAST_S))
    total = DELIVERED + DRAFTS + FOREIGN + 1

    def everything() -> list[dict[str, Any]]:
        answer = relay.graph("GET", "/me/messages?$top=1000", token="dave")
        found = list(answer.json()["value"])
        return found if len(found) >= total else []

    shown = until("all are listed", everything)
    assert len(shown) == total
    facts = {one["id"]: facts_of_json(one, attachments=attachments(one)) for one in shown}
    return Mailbox(relay, {one["id"]: one for one in shown}, facts)


def attachments(shown: dict[str, Any]) -> list[str]:
    """The names that this file gave them, which Graph shows on another page."""
    number = shown["subject"].rpartition(" ")[2]
    return [f"catalog-{number}.txt"] if shown["hasAttachments"] else []


@pytest.mark.parametrize("text", FILTERS)
def test_filters(mailbox: Mailbox, text: str) -> None:
    expected = mailbox.answer(message_condition(text))
    found = [one["id"] for one in mailbox.pages({"$filter": text, "$top": "17", "$select": "id"})]
    assert (len(found), set(found)) == (len(expected), expected)


def test_most_filters_match_some_messages(mailbox: Mailbox) -> None:
    """Most find something, and not everything."""
    counts = [len(mailbox.answer(message_condition(text))) for text in FILTERS]
    assert sum(0 < count < len(mailbox.shown) for count in counts) > len(FILTERS) - 8


@pytest.mark.parametrize("named", ["id", "internetMessageId", "conversationId"])
def test_a_listed_id_finds_its_message(mailbox: Mailbox, named: str) -> None:
    for value in {one[named] for one in list(mailbox.shown.values())[::5]}:
        found = {one["id"] for one in mailbox.pages({"$filter": f"{named} eq '{value}'"})}
        assert found == {one["id"] for one in mailbox.shown.values() if one[named] == value}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("eq 2023-06-01T10:00:00Z", True),  # as it is shown
        ("ne 2023-06-01T10:00:00Z", False),
        ("gt 2023-06-01T10:00:00Z", True),  # who has seen another of this second misses nothing
        ("le 2023-06-01T10:00:00Z", False),
        ("ge 2023-06-01T10:00:00.400Z", True),
        ("ge 2023-06-01T10:00:00.600Z", False),
        ("lt 2023-06-01T10:00:00.500001Z", True),
        ("lt 2023-06-01T10:00:00.500000Z", False),
    ],
)
def test_fractions_of_a_second_are_compared(mailbox: Mailbox, asked: str, found: bool) -> None:
    text = f"receivedDateTime {asked} and subject eq 'at half past'"
    assert len(mailbox.pages({"$filter": text})) == found


@pytest.mark.parametrize(
    "text",
    [
        "receivedDateTime",
        "receivedDateTime desc",
        "sentDateTime desc",
        "subject",
        "subject desc",
        "from/emailAddress/address,receivedDateTime desc",
        "from/emailAddress/name desc",
        "sender/emailAddress/name,subject desc",
        "isRead,subject",
        "isDraft desc,hasAttachments desc,importance,subject",
        "importance desc",
        "parentFolderId,internetMessageId desc",
        "conversationId",
        "id desc",
        "createdDateTime",
        "lastModifiedDateTime desc",
    ],
)
def test_orders(mailbox: Mailbox, text: str) -> None:
    found = mailbox.pages({"$orderby": text, "$top": "23", "$select": "id"})
    assert sorted(one["id"] for one in found) == sorted(mailbox.shown)
    order = message_order(text)
    keys = [order_key(order, mailbox.facts[one["id"]]) for one in found]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "value",
    [
        '"invoice"',
        '"INVOICE number"',
        '"\\"new wine\\""',
        '"\\"wine new\\""',
        '"grusse"',
        '"gru*"',
        '"привет OR subject:rechnung"',
        '"NOT draft"',
        '"text NOT (invoice OR delivered)"',
        '"from:mueller"',
        '"from:mueller@a.test"',
        '"from:\\"arger muller\\""',
        '"to:zoe"',
        '"cc:copy"',
        '"bcc:hidden@b.test"',
        '"recipients:copy OR recipients:hidden"',
        '"participants:old"',
        '"subject:old 3"',
        '"body:kept"',
        '"body:number"',
        '"attachment:catalog"',
        '"attachment:catalog-9.txt"',
        '"hasAttachments:true invoice"',
        '"importance:high isread:false"',
        '"received:2024-02-29"',
        '"received:2/26/2024..2/28/2024 old"',
        '"received>2024-03-01 subject:old"',
        '"sent<=2024-02-26"',
        "under_score",
        '"100"',
    ],
)
def test_searches(mailbox: Mailbox, value: str) -> None:
    expected = mailbox.answer(search_condition(value, now_us=0))
    found = mailbox.pages({"$search": value, "$top": "17", "$select": "id"})
    assert sorted(one["id"] for one in found) == sorted(expected)
    order = message_order("receivedDateTime desc")
    keys = [order_key(order, mailbox.facts[one["id"]]) for one in found]
    assert keys == sorted(keys)


def test_search_filter_and_order_together(mailbox: Mailbox) -> None:
    options = {"$search": '"text"', "$filter": "isRead eq false", "$orderby": "subject desc"}
    both = AllOf((search_condition('"text"', now_us=0), message_condition("isRead eq false")))
    found = mailbox.pages(options | {"$top": "5"})
    assert {one["id"] for one in found} == mailbox.answer(both)
    subjects = [one["subject"].casefold() for one in found]
    assert subjects == sorted(subjects, reverse=True)
    assert len(subjects) > 10


@pytest.mark.parametrize("named", ["sentDateTime", "lastModifiedDateTime", "receivedDateTime"])
def test_pages_of_times_before_1970(mailbox: Mailbox, named: str) -> None:
    inbox = mailbox.relay.folder / "mail/example.test/carol/cur"
    mailbox.relay.messages("inbox", token="carol")  # makes the folders
    for number in range(4):
        path = inbox / f"170000000{number}.M1P2.laptop:2,S"
        path.write_bytes(b"Date: Mon, 1 Jan 1951 00:00:0%d +0000\nSubject: x\n\n" % number)
        os.utime(path, (-1e9 - number, -1e9 - number))
    seen = list[str]()
    url = f"/me/messages?$orderby={named}&$top=1"
    while url:
        answer = mailbox.relay.graph("GET", url, token="carol")
        assert answer.status == 200, answer.body
        seen += [one["id"] for one in answer.json()["value"]]
        url = answer.json().get("@odata.nextLink", "").partition("/v1.0")[2]
    assert len(seen) == len(set(seen)) == 4


@pytest.mark.parametrize("folder", ["", "mailFolders/drafts/", "mailFolders/Archive/"])
def test_counts_and_skips(mailbox: Mailbox, folder: str) -> None:
    folder_id = folder.split("/")[1].lower() if folder else ""
    inside = [
        one for one in mailbox.shown.values() if one["parentFolderId"] == folder_id or not folder
    ]
    unread = sum(not one["isRead"] for one in inside)
    query = urlencode({"$filter": "isRead eq false"}, quote_via=quote)
    counted = mailbox.relay.graph("GET", f"/me/{folder}messages/$count?{query}", token="dave")
    assert (counted.status, counted.body) == (200, str(unread).encode())
    page = mailbox.get(f"/me/{folder}messages?{query}&$count=true&$top=2")
    assert (page["@odata.count"], len(page["value"])) == (unread, 2)
    whole = mailbox.get(f"/me/{folder}messages?{query}&$top=1000")["value"]
    behind = mailbox.get(f"/me/{folder}messages?{query}&$skip=3&$top=2")
    assert behind["value"] == whole[3:5]
    assert mailbox.get(behind["@odata.nextLink"])["value"] == whole[5:7]
    assert mailbox.get(f"/me/{folder}messages?{query}&$skip=1000")["value"] == []


@pytest.mark.parametrize(
    "token", ["x", "1", "-1", "9" * 400, "%00", "null", "[]", "WzFd", "AAAA", "..", "a" * 5000]
)
def test_an_invalid_skiptoken_is_rejected(mailbox: Mailbox, token: str) -> None:
    answer = mailbox.relay.graph("GET", f"/me/messages?$skiptoken={token}", token="dave")
    assert (answer.status, answer.code) == (400, "BadRequest")


# -- the last ones: they change the mailbox


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"$orderby": "receivedDateTime asc"},
        {"$orderby": "subject"},
        {"$filter": "isRead eq false", "$orderby": "from/emailAddress/address desc"},
        {"$search": '"number"'},
    ],
)
def test_pages_show_each_message_once_while_mail_comes_in(
    mailbox: Mailbox, options: dict[str, str]
) -> None:
    before = {one["id"] for one in mailbox.pages({**options, "$top": "1000", "$select": "id"})}
    came = 0

    def comes() -> None:
        nonlocal came
        came += 1
        mailbox.relay.submit("someone@a.test", ["dave@example.test"], delivered(came))
        if came % 4 == 0:
            new = message(subject=f"Draft number in between {came}")
            assert mailbox.relay.graph("POST", "/me/messages", new, token="dave").status == 201

    found = [one["id"] for one in mailbox.pages({**options, "$top": "7"}, comes)]
    assert came > 3
    assert len(found) == len(set(found))
    assert before <= set(found)


def test_pages_show_remaining_messages_once_while_others_are_deleted(mailbox: Mailbox) -> None:
    inbox = "/me/mailFolders/inbox/messages"
    ids = [one["id"] for one in mailbox.pages({"$top": "1000", "$select": "id"}, path=inbox)]
    doomed = ids[3::4]
    gone: list[str] = []

    def goes() -> None:
        for one in doomed[len(gone) : len(gone) + 2]:
            assert mailbox.relay.graph("DELETE", f"/me/messages/{one}", token="dave").status == 204
            gone.append(one)

    found = [one["id"] for one in mailbox.pages({"$top": "6"}, goes, path=inbox)]
    assert len(gone) > 4
    assert len(found) == len(set(found))
    assert set(ids) - set(gone) <= set(found)
