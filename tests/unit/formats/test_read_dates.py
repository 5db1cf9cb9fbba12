"""Dates and ids of other programs: what Relay shows of each, and what others show."""

from pathlib import Path

import pytest

from relay.formats.read_mime import read_mime
from tests.support.graph_fakes import OnDisk, graph_on_disk

# Date, what Relay shows, and why. "Python" is email.utils.parsedate_to_datetime, "mailparser" that
# of npm, which reads it with JavaScript's Date and takes the present time for an invalid one.
DATES = [
    # RFC 5322 3.3 allows a leap second. Python raises ValueError, mailparser shows the present.
    ("Sat, 31 Dec 2016 23:59:60 +0000", "2017-01-01T00:00:00Z"),
    ("Sun, 1 Jan 2017 00:59:60 +0100", "2017-01-01T00:00:00Z"),
    # Python and mailparser show it too.
    ("Thu, 01 Jan 1970 00:00:00 +0000", "1970-01-01T00:00:00Z"),
    ("Thu, 01 Jan 1970 00:00:00 +0100", "1969-12-31T23:00:00Z"),
    ("Sun, 20 Jul 1969 20:17:40 GMT", "1969-07-20T20:17:40Z"),
    ("20 Jul 69 20:17 GMT", "1969-07-20T20:17:00Z"),
    ("Mon, 1 Jan 1601 00:00:00 +0000", "1601-01-01T00:00:00Z"),
    # RFC 5322 4.3: three digits are those after 1900. Python shows the year 103.
    ("Fri, 28 Feb 103 08:00:00 +0000", "2003-02-28T08:00:00Z"),
    ("Fri, 31 Dec 9999 23:59:59 +0000", "9999-12-31T23:59:59Z"),
    # RFC 5322 3.2.2 and 4.3 allow comments between all tokens, and nested ones.
    ("Wed, 20 Sep 1995 00:19:00 (EDT) -0400", "1995-09-20T04:19:00Z"),
    ("Tue, 30 Nov 1999 23:56:33 -3000", "1999-12-02T05:56:33Z"),
    ("Fri, 27 Nov 2026 10:00:00 +9959", "2026-11-23T06:01:00Z"),
    (r"(a) Wed, (b (c\) 1 (d)) 2) 20 Sep(e) 1995 00:19:00(f)-0400 (g)", "1995-09-20T04:19:00Z"),
    ("Wed(x), 29(y) May(z) 2019(q) 18(a):(b)09(c):22 +0200", "2019-05-29T16:09:22Z"),
    ("Wed , 29 May 2019 6 : 09: 22 pm +0200", "2019-05-29T16:09:22Z"),
    ("Fri(a), 27 Nov 2026 10:00:00(b)+1(c)", "2026-11-27T09:00:00Z"),
    ("Fri, 27 Nov 2026 10:00:00 UTC+1", "2026-11-27T09:00:00Z"),
    ("Fri, 27 Nov 2026 10:00:00 UTC(a)-10", "2026-11-27T20:00:00Z"),
    # Names of zones that RFC 5322 4.3 does not have; others count as -0000.
    ("Fri, 27 Nov 2026 10:00 CET", "2026-11-27T09:00:00Z"),
    ("Fri Nov 27 19:00:00 AEST 2026", "2026-11-27T09:00:00Z"),
    ("Fri, 27 Nov 2026 10:00:00 XYZ", "2026-11-27T10:00:00Z"),
    # What date(1) prints in an English locale.
    ("Wed 29 May 2019 06:09:22 PM EDT", "2019-05-29T22:09:22Z"),
    ("Wed May 29 12:09:22 AM EDT 2019", "2019-05-29T04:09:22Z"),
    ("Wed, 29 May 2019 12:09 p.m. -0400", "2019-05-29T16:09:00Z"),
    ("Tue, 17 Jul 2012 22:23:35.882 +0200", "2012-07-17T20:23:35Z"),
    # ISO 8601 and RFC 3339.
    ("2026-11-26T06:00:00.25Z", "2026-11-26T06:00:00Z"),
    ("2026-11-26 06:00:00 +01:00", "2026-11-26T05:00:00Z"),
    ("2026-11-26T06:00-0500", "2026-11-26T11:00:00Z"),
]


@pytest.fixture
async def mail(tmp_path: Path):
    async with graph_on_disk(tmp_path / "mail") as made:
        yield made


def put(mail: OnDisk, header: str) -> None:
    inbox = mail.root / "example.test/alice/new"
    inbox.mkdir(parents=True, exist_ok=True)
    name = f"1700000000.M{len(list(inbox.iterdir()))}P1.h"
    (inbox / name).write_bytes(header.replace("\n", "\r\n").encode() + b"\r\n\r\n")


@pytest.mark.parametrize(("date", "shown"), DATES)
async def test_a_message_shows_the_date(mail: OnDisk, date: str, shown: str):
    put(mail, f"Date: {date}")
    [one] = (await mail.http.get("/messages")).json()["value"]
    assert one["sentDateTime"] == shown
    assert one["receivedDateTime"] > "2026"  # when the file was written
    params = {"$filter": f"sentDateTime eq {shown}"}
    found = (await mail.http.get("/messages", params=params)).json()["value"]
    assert [each["id"] for each in found] == [one["id"]]


@pytest.mark.parametrize(
    "date",
    ["", "Sat, 31 Dec 2016 23:59:61 +0000", "Sat, 31 Feb 2016 00:00:00 +0000", "1 Jan 1600 0:0"],
)
def test_a_date_that_is_none_is_absent(date: str) -> None:
    assert read_mime(f"Date: {date}\r\n\r\n".encode()).date_us is None


async def test_ids_without_brackets_make_one_thread(mail: OnDisk) -> None:
    """mailparser shows both with brackets, Python's email as they are."""
    put(mail, "Subject: first\nMessage-ID: first@a.test")
    put(mail, "Subject: second\nMessage-ID: <second@a.test>\nIn-Reply-To: first@a.test")
    put(mail, "Subject: third\nMessage-ID: 3@a.test\nReferences: first@a.test second@a.test")
    put(mail, "Subject: other\nMessage-ID: <other@a.test> (added by a.test)")
    listed = (await mail.http.get("/messages")).json()["value"]
    by_subject = {one["subject"]: one for one in listed}
    ids = {name: one["internetMessageId"] for name, one in by_subject.items()}
    assert ids == {
        "first": "<first@a.test>",
        "second": "<second@a.test>",
        "third": "<3@a.test>",
        "other": "<other@a.test>",
    }
    threads = {name: one["conversationId"] for name, one in by_subject.items()}
    assert threads["first"] == threads["second"] == threads["third"] != threads["other"]
    params = {"$filter": "internetMessageId eq '<first@a.test>'"}
    assert len((await mail.http.get("/messages", params=params)).json()["value"]) == 1
    reply = await mail.http.post(f"/messages/{by_subject['first']['id']}/createReply")
    draft = reply.json()
    assert draft["conversationId"] == threads["first"]
    source = (await mail.http.get(f"/messages/{draft['id']}/$value")).text
    assert "\r\nIn-Reply-To: <first@a.test>\r\n" in source
