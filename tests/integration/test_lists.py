"""Lists over HTTP: times before 1970, and pages while mail comes in and goes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from tests.support.graph_client import message
from tests.support.relay_process import RelayProcess, until

DELIVERED, DRAFTS, FOREIGN = 24, 24, 12


@dataclass(frozen=True)
class Mailbox:
    """Dave's: delivered mail, drafts, and files that a mail client left, each a day apart."""

    relay: RelayProcess

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


def delivered(number: int) -> bytes:
    sender = f"{'abc'[number % 3]}@a.test"
    return f"From: {sender}\r\nSubject: {number} number\r\n\r\nText.\r\n".encode()


@pytest.fixture(scope="module")
def mailbox(serve_module) -> Mailbox:
    relay = serve_module()
    for number in range(DELIVERED):
        relay.submit("someone@a.test", ["dave@example.test"], delivered(number))
    for number in range(DRAFTS):
        new = message(subject=f"Draft number {number}", isRead=number % 2 == 0)
        answer = relay.graph("POST", "/me/messages", new, token="dave")
        assert answer.status == 201, answer.body
    archive = relay.folder / "mail/example.test/dave/.Archive/cur"
    for number in range(FOREIGN):
        path = archive / f"17000000{number:02}.M1P2.laptop:2,{'S' * (number % 2)}"
        path.write_bytes(
            b"From: Old <old@b.test>\nTo: dave@example.test\nSubject: old %d\n"
            b"Date: Mon, 26 Feb 2024 10:00:%02d +0000\n\nKept text.\n" % (number, number)
        )
    total = DELIVERED + DRAFTS + FOREIGN

    def listed() -> int:
        answer = relay.graph("GET", "/me/messages?$top=1000", token="dave")
        return len(answer.json()["value"])

    until("all are listed", lambda: listed() == total)
    return Mailbox(relay)


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
