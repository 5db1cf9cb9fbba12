"""Mailpit's API of a real development relay: each route, bad input, and who may use it."""

import base64
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from relay import __version__
from relay.development import search_index
from relay.store.mailbox.index.database import FILE_NAME
from tests.support.dev_process import DevProcess
from tests.support.graph_client import Answer
from tests.support.relay_process import until
from tests.support.tables import each_row

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUg==")
MIXED = (
    b"""\
From: =?utf-8?q?J=C3=BCrgen?= Shop <shop@shop.example>
To: "Smith, Ann" <ann@Customer.example>
Cc: carl@customer.example
Reply-To: help@shop.example
Subject: Your =?utf-8?q?Bestellung_=E2=82=AC?=
Date: Mon, 2 Jan 2006 15:04:05 -0700
Message-ID: <order-17@shop.example>
X-Folded: one
 two
list-unsubscribe: <mailto:out@shop.example>, <https://shop.example/out>
Disposition-Notification-To: shop@shop.example
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=b

--b
Content-Type: multipart/alternative; boundary=a

--a
Content-Type: text/plain

plain wording
--a
Content-Type: text/html

<p>Rich <b>wording</b></p><script>alert(1)</script><img src="cid:logo@x"><img src="cid:gone@x">
--a--
--b
Content-Type: image/png; name=logo.png
Content-ID: <logo@x>
Content-Disposition: inline; filename=logo.png
Content-Transfer-Encoding: base64

%s
--b
Content-Type: text/html
Content-Disposition: attachment; filename="../bill.html"

<script>alert(2)</script>
--b
Content-Type: application/x-nameless
Content-Disposition: attachment

nobody lists this
--b--
""".replace(b"\n", b"\r\n")
    % base64.b64encode(PNG)
)


@pytest.fixture
def relay(plain_dev: DevProcess) -> DevProcess:
    assert plain_dev.request("DELETE", "/api/v1/messages").status == 200
    return plain_dev


def get(relay: DevProcess, path: str, **query: object) -> Any:
    answer = relay.request("GET", path + (f"?{urlencode(query)}" if query else ""))
    assert answer.status == 200, answer.body
    return answer.json()


def send(relay: DevProcess, subject: str = "Hello", **fields: object) -> str:
    given = {"From": {"Email": "app@shop.example"}, "To": [{"Email": "ann@customer.example"}]}
    body = json.dumps(given | {"Subject": subject, "Text": "the text"} | fields).encode()
    answer = relay.request("POST", "/api/v1/send", body)
    assert answer.status == 200, answer.body
    return str(answer.json()["ID"])


def found(relay: DevProcess, query: str, **more: object) -> list[str]:
    answer = get(relay, "/api/v1/search", query=query, **more)
    assert answer["messages_count"] == len(answer["messages"]) == answer["count"]
    return [one["Subject"] for one in answer["messages"]]


def unread(relay: DevProcess) -> int:
    answer = get(relay, "/api/v1/messages")
    assert (
        answer["unread"]
        == answer["messages_unread"]
        == sum(not m["Read"] for m in answer["messages"])
    )
    return int(answer["unread"])


def test_a_message_is_listed_read_and_shown_as_mailpit_does(relay: DevProcess) -> None:
    to = ["ann@customer.example", "carl@customer.example", "hidden@other.example"]
    queue_id = relay.submit("bounces@shop.example", to, MIXED)
    listed = get(relay, "/api/v1/messages")
    assert (listed["total"], listed["unread"], listed["count"], listed["start"]) == (1, 1, 1, 0)
    assert (listed["messages_count"], listed["messages_unread"], listed["tags"]) == (1, 1, [])
    [row] = listed["messages"]
    people = {
        "From": {"Name": "Jürgen Shop", "Address": "shop@shop.example"},
        "To": [{"Name": "Smith, Ann", "Address": "ann@customer.example"}],
        "Cc": [{"Name": "", "Address": "carl@customer.example"}],
        "Bcc": [{"Name": "", "Address": "hidden@other.example"}],
        "ReplyTo": [{"Name": "", "Address": "help@shop.example"}],
    }
    assert {name: row[name] for name in people} == people
    assert (row["ID"], row["MessageID"], row["Read"]) == (queue_id, "order-17@shop.example", False)
    assert (row["Subject"], row["Attachments"]) == ("Your Bestellung €", 1)
    assert (row["Snippet"], row["Username"], row["Tags"]) == ("Rich wording", "", [])
    assert row["Created"].startswith("20")
    message = get(relay, f"/api/v1/message/{queue_id}")
    assert {name: message[name] for name in people} == people
    assert (message["ReturnPath"], message["Read"]) == ("bounces@shop.example", True)
    assert message["Date"] == "2006-01-02T22:04:05.000000Z"
    assert message["Text"] == "plain wording"
    assert "<script>alert(1)</script>" in message["HTML"]
    assert message["ListUnsubscribe"]["Links"] == [
        "mailto:out@shop.example",
        "https://shop.example/out",
    ]
    [logo], [bill] = message["Inline"], message["Attachments"]
    assert (logo["FileName"], logo["ContentType"], logo["ContentID"]) == (
        "logo.png",
        "image/png",
        "logo@x",
    )
    assert (logo["Size"], logo["Checksums"]["SHA256"]) == (
        len(PNG),
        hashlib.sha256(PNG).hexdigest(),
    )
    assert (bill["ContentType"], bill["Checksums"].keys()) == (
        "text/html",
        {"MD5", "SHA1", "SHA256"},
    )
    assert unread(relay) == 0
    raw = relay.request("GET", f"/api/v1/message/{queue_id}/raw")
    assert raw.body.endswith(MIXED[-200:])
    assert len(raw.body) == message["Size"] == row["Size"]
    assert raw.headers["content-type"] == "text/plain; charset=utf-8"
    headers = get(relay, f"/api/v1/message/{queue_id}/headers")
    assert headers["Message-Id"] == ["<order-17@shop.example>"]
    assert headers["X-Folded"] == ["one two"]
    assert headers["Subject"] == ["Your =?utf-8?q?Bestellung_=E2=82=AC?="]
    assert headers["List-Unsubscribe"]
    assert list(headers) == sorted(headers)


def test_an_html_check_has_mailpits_form(relay: DevProcess) -> None:
    key = send(relay, HTML='<p style="display: flex">x</p><p>y</p>')
    check = get(relay, f"/api/v1/message/{key}/html-check")
    assert check["Total"].keys() == {"Tests", "Nodes", "Supported", "Partial", "Unsupported"}
    assert (check["Total"]["Nodes"], check["Platforms"]) == (2, {})
    flex = next(one for one in check["Warnings"] if one["Slug"] == "css-display-flex")
    assert (flex["Category"], flex["Score"].pop("Found"), flex["NotesByNumber"]) == ("css", 1, {})
    assert round(sum(flex["Score"].values())) == 100
    support = {one["Name"]: (one["Support"], one["Version"]) for one in flex["Results"]}
    assert (support["Outlook Windows"], support["Apple Mail iOS"]) == (("no", ""), ("yes", ""))
    plain = relay.request("GET", f"/api/v1/message/{send(relay)}/html-check")
    assert (plain.status, plain.body) == (400, b"message does not contain HTML")


def assert_harmless(answer: Answer, media_type: str) -> None:
    """No script of it runs on the origin of the pages, whatever the browser makes of it."""
    assert answer.headers["content-type"].partition(";")[0] == media_type
    policy = answer.headers["content-security-policy"]
    assert policy.endswith("; sandbox")
    assert "default-src 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_mails_contain_is_a_stranger_to_the_pages(relay: DevProcess) -> None:
    queue_id = relay.submit("shop@shop.example", ["ann@customer.example"], MIXED)
    html = relay.request("GET", "/view/latest.html")
    assert_harmless(html, "text/html")
    assert b'src="data:image/png;base64,' in html.body
    assert b"cid:" not in html.body
    for number, media_type, content, shown in (
        (1, "image/png", PNG, "inline"),
        (2, "text/html", b"<script>", "attachment"),
    ):
        part = relay.request("GET", f"/api/v1/message/{queue_id}/part/{number}")
        assert_harmless(part, media_type)
        assert part.body.startswith(content)
        assert part.headers["content-disposition"].startswith(f"{shown}; filename=")
    assert "/" not in part.headers["content-disposition"]
    for path in (f"/view/{queue_id}.txt", "/api/v1/message/latest/raw"):
        assert_harmless(relay.request("GET", path), "text/plain")
    assert relay.request("GET", f"/view/{queue_id}.txt").body == b"plain wording"
    download = relay.request("GET", "/api/v1/message/latest/raw?dl=1")
    assert download.headers["content-disposition"].startswith("attachment;")
    page = relay.request("GET", "/view/latest")
    assert (page.status, page.headers["location"]) == (302, f"../messages/{queue_id}")
    assert unread(relay) == 1  # none of these is a look at the message


def test_each_accepted_message_is_listed_once_and_no_report_is(relay: DevProcess) -> None:
    relay.submit(
        "alice@example.test", ["ann+550@x.example", "bob@y.example"], b"Subject: two\r\n\r\nx\r\n"
    )
    until("the report is there", lambda: relay.graph("GET", "/me/messages").json()["value"])
    answer = get(relay, "/api/v1/messages")
    assert [one["Subject"] for one in answer["messages"]] == ["two"]
    assert answer["total"] == 1


def test_a_mark_is_that_of_the_pages_and_sends_no_receipt(relay: DevProcess) -> None:
    content = (
        b"From: alice@example.test\r\nDisposition-Notification-To: alice@example.test\r\n\r\nx\r\n"
    )
    queue_id = relay.submit("alice@example.test", ["bob@example.test"], content)
    get(relay, "/api/v1/message/latest")
    assert b'class="unread"' not in relay.request("GET", "/").body
    [copy] = relay.graph("GET", "/me/messages", token="bob").json()["value"]
    assert copy["isRead"] is True
    assert put(relay, Read=False, IDs=[queue_id]).body == b"ok"
    [copy] = relay.graph("GET", "/me/messages", token="bob").json()["value"]
    assert copy["isRead"] is False
    assert put(relay, Read=True).body == b"ok"
    assert unread(relay) == 0
    relay.graph("PATCH", f"/me/messages/{copy['id']}", {"isRead": False}, token="bob")
    assert unread(relay) == 1
    assert b'class="unread"' in relay.request("GET", "/").body
    alice = relay.graph("GET", "/me/messages").json()["value"]  # a report of another test may come
    assert not [one for one in alice if one["subject"].startswith("Read:")]


def put(relay: DevProcess, **body: object) -> Answer:
    return relay.request("PUT", "/api/v1/messages", json.dumps(body).encode())


def test_read_status_by_search_and_by_ids(relay: DevProcess) -> None:
    ids = [send(relay, f"number {each}") for each in range(3)]
    assert put(relay, Read=True, IDs=ids[:1], Search="number").status == 400
    assert put(relay, ids=ids[:1], READ=True).status == 200  # keys have any case
    assert found(relay, "is:unread") == ["number 2", "number 1"]
    assert put(relay, Read=True, Search='subject:"number 1"').status == 200
    assert found(relay, "is:read") == ["number 1", "number 0"]
    assert put(relay, Read=False, IDs=[]).status == 200
    assert found(relay, "is:read") == []
    assert relay.request("PUT", "/api/v1/messages", b"ids=1&Read=True").status == 400


def test_pages_of_the_list(relay: DevProcess) -> None:
    for each in range(5):
        send(relay, f"number {each}")
    for limit, start, shown in (
        ("2", "1", [3, 2]),
        ("0", "0", [4, 3, 2, 1, 0]),
        (10**9, "3", [1, 0]),
        ("-1", "-5", [4, 3, 2, 1, 0]),
        ("x", "", [4, 3, 2, 1, 0]),
        ("3", 10**9, []),
        ("9" * 5000, "", [4, 3, 2, 1, 0]),
    ):
        answer = get(relay, "/api/v1/messages", limit=limit, start=start)
        assert [one["Subject"] for one in answer["messages"]] == [
            f"number {each}" for each in shown
        ]
        assert (answer["count"], answer["total"]) == (len(shown), 5)


def test_search(relay: DevProcess) -> None:
    send(
        relay,
        "Welcome aboard",
        HTML="<p>Your <b>code</b> is 4711</p>",
        Bcc=["secret@hidden.example"],
    )
    send(
        relay,
        "Invoice",
        Text="please pay 100% of a_b",
        To=[{"Email": "ann@other.example", "Name": "Ann Lee"}],
        Attachments=[{"Content": base64.b64encode(bytes(30_000)).decode(), "Filename": "bill.pdf"}],
    )
    both = ["Invoice", "Welcome aboard"]
    for query, subjects in (
        ("subject:elcom", both[1:]),
        ("subject:welcome aboard", both[1:]),
        ("subject:welcome pay", []),
        ("ELCOME", both[1:]),
        ("to:ann@", both),
        ("to:lee", both[:1]),
        ('to:"ann lee"', both[:1]),
        ("-subject:invoice", both[1:]),
        ("!invoice", both[1:]),
        ("bcc:SECRET", both[1:]),
        ("cc:secret", []),
        ("addressed:hidden.example", both[1:]),
        ("code is", both[1:]),
        ("the text", []),
        ("bill.pdf", both[:1]),
        ("has:attachment", both[:1]),
        ("-has:attachments", both[1:]),
        ("has:inline", []),
        ("larger:10k", both[:1]),
        ("smaller:0.01M", both[1:]),
        ("tag:x", []),
        ("-tag:x", both),
        ("is:tagged", []),
        ("after:2020-01-01", both),
        ("before:2020/01/01", []),
        ("!before:2020-01-01", both),
        ("message-id:relay", both),
        ("pay 100%", both[:1]),
        ("a_b", both[:1]),
        ("a%b", []),
        ("wel*", []),
        ("4", both[1:]),
        ("http://x:1", []),
        ("from:shop to:", both),
        ("'; DROP TABLE", []),
        ('"', both),
        ("is:read is:unread", []),
        ('"is: unread"', both),
    ):
        assert found(relay, query) == subjects, query
    assert found(relay, "after:2020-01-01", tz="America/Chicago") == both
    assert found(relay, "after:2020-01-01", tz="../../etc/passwd") == both
    assert (
        get(relay, "/api/v1/message/latest", query="subject:welcome")["Subject"] == "Welcome aboard"
    )
    assert relay.request("DELETE", "/api/v1/search?query=subject:welcome").body == b"ok"
    assert found(relay, "to:ann") == both[:1]


def test_a_search_reads_every_form_of_a_time(relay: DevProcess) -> None:
    send(relay)
    for form in (
        "%Y-%m-%dT%H:%M:%S.123Z",  # JavaScript's toISOString()
        "%Y-%m-%dt%H:%M:%S.1234567z",
        "%Y-%m-%d %H:%M:%S-00:00",
        "%Y-%m-%dT%H:%M:60+23:59",  # a leap second
        "%Y/%m/%d",
    ):
        now = datetime.now(UTC)
        early, late = ((now + timedelta(days=days)).strftime(form) for days in (-2, 3))
        assert found(relay, f'after:"{early}" before:"{late}"') == ["Hello"], form
        assert found(relay, f'after:"{late}"') == found(relay, f'"BEFORE:{early}"') == [], form


def test_a_value_that_cannot_be_read_is_named_and_changes_nothing(relay: DevProcess) -> None:
    send(relay)
    for term in ("after:", "!BEFORE:2026-13-01", '"larger: x"', "smaller:-1", "-is:x", "has:"):
        query = urlencode({"query": f"hello {term}"})
        name = term.strip('!-"').partition(":")[0].lower()
        for method, path, body in (
            ("GET", "/api/v1/search?" + query, None),
            ("GET", "/view/latest?" + query, None),
            ("DELETE", "/api/v1/search?" + query, None),
            ("PUT", "/api/v1/messages", {"Read": True, "Search": f"hello {term}"}),
        ):
            answer = relay.request(method, path, json.dumps(body).encode() if body else None)
            assert answer.status == 400, (path, term)
            assert answer.body.startswith(f"query: {name}: found ".encode()), answer.body
    assert unread(relay) == 1


def delete(relay: DevProcess, body: bytes = b"", media_type: str = "application/json") -> Answer:
    return relay.request("DELETE", "/api/v1/messages", body, {"Content-Type": media_type})


def test_only_what_is_named_is_removed_and_a_broken_body_removes_nothing(relay: DevProcess) -> None:
    ids = [send(relay, f"number {each}") for each in range(6)]
    form = "application/x-www-form-urlencoded"
    for body, media_type in (
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"null", "application/json"),
        (b'"x"', ""),
        (b'{"IDs": "x"}', "application/json"),
        (b'{"IDs": [1]}', "application/json"),
        (b"{'IDs': []}", form),
        (b"other=1", form),
        (b"ids", form),
        (b"\xff\xfe", "text/plain"),
        (b"[" * 100_000, "application/json"),
    ):
        assert delete(relay, body, media_type).status == 400, body[:20]
    assert delete(relay, b"x" * 5_000_001).status == 413
    assert get(relay, "/api/v1/messages")["total"] == 6
    assert delete(relay, json.dumps({"IDs": [ids[0]]}).encode()).body == b"ok"
    assert (
        delete(relay, json.dumps({"iDs": [ids[1], "unknown", "x" * 10_000]}).encode(), form).status
        == 200
    )
    named = f"ids={ids[2]}&ids={ids[3]}" + "&ids=unknown" * 200_000
    assert delete(relay, named.encode(), form).status == 200
    assert delete(relay, json.dumps({"IDs": ["last", "app@shop.example"]}).encode()).status == 200
    assert [one["ID"] for one in get(relay, "/api/v1/messages")["messages"]] == [ids[5], ids[4]]
    assert relay.request("GET", f"/api/v1/message/{ids[0]}").status == 404
    assert delete(relay).body == b"ok"
    assert get(relay, "/api/v1/messages")["total"] == 0


def test_a_message_that_is_sent(relay: DevProcess) -> None:
    file = {"CONTENT": "data:text/plain;base64,aGk=", "fileName": "hi.txt", "ContentID": "x@y"}
    send(
        relay,
        "Grüße",
        From={"Email": "app@shop.example", "Name": "Jürgen, App"},
        Cc=[],
        ReplyTo=[{"email": "r@shop.example"}],
        Bcc=["bcc@customer.example"],
        Tags=["x"],
        HTML="<b>x</b>",
        Headers={"X-Test": "1"},
        Attachments=[file],
        Unknown=1,
    )
    message = get(relay, "/api/v1/message/latest")
    assert message["From"] == {"Name": "Jürgen, App", "Address": "app@shop.example"}
    assert [message["Subject"], message["Text"].strip(), message["HTML"].strip()] == [
        "Grüße",
        "the text",
        "<b>x</b>",
    ]
    assert [one["Address"] for one in message["Bcc"] + message["ReplyTo"]] == [
        "bcc@customer.example",
        "r@shop.example",
    ]
    assert [(one["FileName"], one["Size"]) for one in message["Inline"]] == [("hi.txt", 2)]
    assert get(relay, "/api/v1/message/latest/headers")["X-Test"] == ["1"]


@each_row(
    "fields, says",
    [
        ({"From": {"Email": "nobody"}}, "'nobody' is not an address"),
        ({"From": None}, "'' is not an address"),
        ({"To": [{"Email": "a@b\r\nRCPT"}]}, "is not an address"),
        ({"To": []}, "no recipient"),
        ({"To": "ann@x.example"}, "Expected `array`"),
        ({"Subject": "a\r\nBcc: x@y"}, "cannot be written"),
        ({"Headers": {"Subject": "x"}}, "'Subject'"),
        ({"Headers": {"X-A": "1\r\nX-B: 2"}}, "cannot be written"),
        ({"Headers": {"X A": "1"}}, "'X A'"),
        ({"Headers": {"Message-Id": "<a b@c>"}}, "Message-Id: expected one id"),
        (
            {"Headers": {"Message-Id": "<a@b>", "message-id": "<c@d>"}},
            "Message-Id: expected one id",
        ),
        ({"Attachments": [{"Content": "?"}]}, "no base64"),
    ],
)
def test_what_cannot_be_sent(relay: DevProcess, fields: dict[str, object], says: str) -> None:
    given = {
        "From": {"Email": "app@shop.example"},
        "To": [{"Email": "ann@customer.example"}],
    } | fields
    answer = relay.request("POST", "/api/v1/send", json.dumps(given).encode())
    assert answer.status == 400
    assert says in answer.json()["Error"]
    assert relay.request("POST", "/api/v1/send", b"{").json()["Error"].startswith("The body")


@each_row("given", ["<a@[b", "<>", "b@c", f"<{'d' * 200}@[127.0.0.1]>"])
def test_a_message_id_is_sent_as_it_is_given(relay: DevProcess, given: str) -> None:
    """What Python's email package makes of it differs from version to version."""
    send(relay, Headers={"Message-Id": given})
    assert get(relay, "/api/v1/message/latest/headers")["Message-Id"] == [given]


def test_unknown_messages_and_what_relay_has_not(relay: DevProcess) -> None:
    ends = ("", "/headers", "/raw", "/part/1")
    for key in (
        "latest",
        "unknown",
        "last",
        quote("<x@y>"),
        "ann%40x.example",
        "x" * 10_000,
        "%00",
        "%2e%2e",
    ):
        for path in (
            f"/view/{key}.html",
            f"/view/{key}.txt",
            *(f"/api/v1/message/{key}{one}" for one in ends),
        ):
            answer = relay.request("GET", path)
            assert (answer.status, answer.headers["content-type"]) == (
                404,
                "text/plain; charset=utf-8",
            ), path
            assert answer.body.count(b"\n") == 0
    assert relay.request("GET", "/view/latest").headers["location"] == "../"
    queue_id = send(relay)
    assert relay.request("GET", "/view/latest.html").status == 404
    for part in ("0", "1", "-1", "x", "9" * 5000, "%2e%2e"):
        assert relay.request("GET", f"/api/v1/message/{queue_id}/part/{part}").status == 404
    for method, path, says in (
        ("GET", f"/api/v1/message/{queue_id}/sa-check", b"no spam"),
        ("GET", "/api/v1/message/latest/link-check", b"/checks"),
        ("GET", f"/api/v1/message/{queue_id}/part/1/thumb", b"thumbnails"),
        ("GET", "/api/v1/chaos", b"scenario"),
        ("GET", "/api/v1/x", b"There is no"),
        ("GET", "/api/v2/messages", b"GET /api/v1/messages"),  # MailHog
        ("GET", "/api/messages", b"GET /api/v1/messages"),  # smtp4dev
        ("GET", "/email", b"GET /api/v1/messages"),  # MailDev
    ):
        answer = relay.request(method, path)
        assert answer.status == 404
        assert says in answer.body
    assert get(relay, "/api/v1/tags") == []
    info = get(relay, "/api/v1/info")
    assert (info["Messages"], info["Unread"], info["Tags"]) == (1, 1, {})
    assert (info["Version"], info["RelayVersion"]) == ("v1.30", __version__)
    [mail] = get(relay, "/api/v1/messages")["messages"]
    to = {
        "/view/latest": "../messages/",
        f"/view/{mail['ID']}": "../messages/",
        "/search?q=a+b": "./?q=a+b",
    }
    for path, location in to.items():
        answer = relay.request("GET", path)
        assert (answer.status, answer.headers["location"][: len(location)]) == (302, location)
    assert relay.request("GET", "/view/unknown").status == 404
    assert None not in (*info.values(), *info["RuntimeStats"].values())


@each_row(
    "fields",
    [
        {"Origin": "http://localhost:3000"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
)
def test_pages_of_another_port_are_refused(relay: DevProcess, fields: dict[str, str]) -> None:
    """As all pages of other sites are (test_dev_access.py)."""
    for method in ("GET", "DELETE", "PUT"):
        assert relay.request(method, "/api/v1/messages", b"{}", fields).status == 403


def test_with_a_token_it_is_the_password(dev) -> None:
    token = "0123456789abcdef-token"
    made = dev("--no-demo", "--listen-all", "--token", token, start=False)

    def status(path: str, **fields: str) -> int:
        return made.request("GET", path, None, fields).status

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    made.start()
    assert status("/livez") == status("/readyz") == 200
    refused = made.request("GET", "/api/v1/messages")
    assert (refused.status, refused.headers["www-authenticate"][:11]) == (401, "Basic realm")
    for path in ("/view/latest", "/view/latest.html", "/api/v1/info", "/api/v1/nothing"):
        assert status(path) == 401, path
    for wrong in (
        basic(f"{token}:x"),
        basic(token),
        basic("x:y"),
        "Basic ?",
        "Basic",
        "Bearer alice",
    ):
        assert status("/api/v1/info", Authorization=wrong) == 401, wrong
    assert status("/api/v1/info", Authorization=basic(f"anyone:{token}")) == 200
    assert status("/api/v1/info", Authorization=f"Bearer {token}") == 200
    foreign = {"Authorization": basic(f"x:{token}"), "Origin": "https://evil.example"}
    assert made.request("DELETE", "/api/v1/messages", None, foreign).status == 403


def test_tags_are_those_of_now_while_others_read_them(relay: DevProcess) -> None:
    queue_id = send(relay)
    path = "/users/ann@customer.example/messages"
    until("it is captured", lambda: relay.graph("GET", path).json().get("value"))
    [copy] = relay.graph("GET", path).json()["value"]

    def has_tags(tags: list[str]) -> bool:
        """An answer that has waited as long as it may can have those before."""
        began_s = time.monotonic()
        answer = get(relay, f"/api/v1/message/{queue_id}")
        return answer["Tags"] == tags or time.monotonic() - began_s > search_index._PAUSE_S

    with ThreadPoolExecutor(4) as readers:
        for number in range(25):
            tags = [f"tag {number}"]
            change = {"categories": tags}
            assert relay.graph("PATCH", f"{path}/{copy['id']}", change).status == 200
            assert all(readers.map(has_tags, [tags] * 4))


def test_a_list_opens_no_mailbox_but_those_of_its_page(relay: DevProcess) -> None:
    assert get(relay, "/api/v1/messages")["total"] == 0  # what tests before have set is known
    for each in range(6):
        send(relay, To=[{"Email": f"user{each}@customer.example"}])
    until("all are captured", lambda: len(list((relay.folder / "mail").rglob("new/*"))) == 6)
    answer = get(relay, "/api/v1/messages", limit=1)
    assert (answer["total"], answer["unread"]) == (6, 6)
    assert len(list((relay.folder / "mail").rglob(FILE_NAME))) <= 1


def test_tags_are_the_categories_of_all_copies(relay: DevProcess) -> None:
    def categories(mailbox: str) -> list[str]:
        path = f"/users/{mailbox}/messages?$select=categories"
        return [
            name for one in relay.graph("GET", path).json()["value"] for name in one["categories"]
        ]

    def put(path: str, **body: object) -> Answer:
        return relay.request("PUT", f"/api/v1/tags{path}", json.dumps(body).encode())

    people = ["ann@customer.example", "bob@customer.example"]
    both = [{"Email": one} for one in people]
    first = send(relay, "first", To=both, Tags=["two words", "New,new", "\u00e9t\u00e9"])
    second = send(relay, "second", To=both, Headers={"X-Tags": f"{'x' * 101}, second , ,SECOND"})
    assert get(relay, f"/api/v1/message/{first}")["Tags"] == ["new", "two words", "\u00e9t\u00e9"]
    given = ["SECOND", "new", "two words", "\u00e9t\u00e9"]
    for one in people:
        until("X-Tags are categories", lambda one=one: sorted(categories(one)) == given)
    assert get(relay, "/api/v1/tags") == ["new", "SECOND", "two words", "\u00e9t\u00e9"]
    assert put("", IDs=[first, second], Tags=["a", "b"]).body == b"ok"
    assert [sorted(categories(one)) for one in people] == [["a", "a", "b", "b"]] * 2
    path = f"/users/{people[0]}/messages"
    listed = relay.graph("GET", f"{path}?$filter=subject%20eq%20'first'").json()["value"]
    change = json.dumps({"categories": ["by Graph"]}).encode()
    assert relay.graph("PATCH", f"{path}/{listed[0]['id']}", change).status == 200
    assert get(relay, f"/api/v1/message/{first}")["Tags"] == ["a", "b", "by Graph"]
    for query, subjects in (
        ('tag:"BY graph"', ["first"]),
        ('-tag:x !tag:"by Graph"', ["second"]),
        ("tag:by", []),
        ("is:tagged", ["second", "first"]),
        ("-is:tagged", []),
        ("tag:a tag:b second", ["second"]),
    ):
        assert found(relay, query) == subjects
    assert put("/by%20graph", Name="b").body == b"ok"
    listed = get(relay, "/api/v1/messages")
    assert [listed["tags"], *(one["Tags"] for one in listed["messages"])] == [["a", "b"]] * 3
    assert relay.request("DELETE", "/api/v1/tags/a").body == b"ok"
    assert get(relay, "/api/v1/info")["Tags"] == {"b": 2}
    relay.send_mail(subject="by alice", toRecipients=[{"emailAddress": {"address": people[0]}}])
    until("it is there", lambda: found(relay, "alice") == ["by alice"])
    until("the original is filed", lambda: relay.messages("sentitems"))
    assert put("", IDs=[get(relay, "/api/v1/message/latest")["ID"]], Tags=["set"]).body == b"ok"
    [sent] = relay.messages("sentitems")
    assert sent["categories"] == ["set"]
    both = {"categories": ["set", "sender's"]}
    assert relay.graph("PATCH", f"/me/messages/{sent['id']}", both).status == 200
    assert get(relay, "/api/v1/message/latest")["Tags"] == ["sender's", "set"]
    for answer, says in (
        (put("/gone", Name="x"), b"gone"),
        (put("/b", Name=" "), b"Name"),
        (put("", IDs=[first], Tags=["x" * 101]), b"Tags"),
        (put("", IDs=[first], Tags=[str(one) for one in range(51)]), b"51"),
    ):
        assert answer.status in (400, 404)
        assert says in answer.body
