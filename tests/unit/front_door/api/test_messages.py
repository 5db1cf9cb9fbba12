"""/relay/v1/messages: who sees which, lists, sources, and waiting."""

import asyncio
from typing import Any
from urllib.parse import urlencode

import pytest

from relay.front_door.api import handlers
from relay.store.journeys.events import EventCursor
from relay.store.journeys.message_list import NO_MAILBOX, MessageSearch
from tests.support.api_clients import ApiClients, a_journey, code
from tests.support.journeys import json_of, made_journey
from tests.support.logs import capture_logs
from tests.support.tables import each_row


@each_row(
    "path",
    [
        "/messages",
        "/messages/q1",
        "/messages/q1/wait",
        "/messages/q1/source",
        "/messages/q1/checks",
        "/queue",
    ],
)
async def test_a_token_is_required(api: ApiClients, path: str) -> None:
    assert code(await api.http.get("/relay/v1" + path)) == (401, "InvalidAuthenticationToken")


@pytest.mark.parametrize(
    ("token", "seen"), [("alice", True), ("bob", False), ("watcher", True), ("operator", True)]
)
async def test_an_account_sees_its_own_messages_only(
    api: ApiClients, token: str, seen: bool
) -> None:
    journey = a_journey("relayed")
    api.records.known["q1"] = ("alice@example.test", journey)
    answer = await api.get("/relay/v1/messages/q1", token)
    if seen:
        assert (answer.status_code, answer.json()) == (200, json_of(journey))
    else:
        assert code(answer) == (404, "ErrorItemNotFound")
        never = await api.get("/relay/v1/messages/q2", token)
        assert answer.json()["error"]["code"] == never.json()["error"]["code"]
    recent = (await api.get("/relay/v1/messages", token)).json()
    cursor = str(EventCursor(5))
    assert recent == {
        "messages": [json_of(journey)] if seen else [],
        "cursor": cursor,
        "older": None,
    }


@each_row(
    "query, fault",
    [
        ("before=5", "before: found"),
        ("before=5-&after=5", "before: found it together with after"),
        ("before=5-&wait=1", "before: found it together with wait"),
        ("mailbox=", "mailbox: found 0 letters"),
    ],
)
async def test_a_place_in_the_list_is_checked(api: ApiClients, query: str, fault: str) -> None:
    answer = await api.get(f"/relay/v1/messages?{query}")
    assert code(answer) == (400, "BadRequest")
    assert answer.json()["error"]["message"].startswith(fault)


async def test_a_list_goes_on_from_its_place(api: ApiClients) -> None:
    answer = await api.get("/relay/v1/messages?before=5-06gzy78nhccc7r9c&mailbox=bob@a.test")
    assert answer.json() == {
        "messages": [],
        "cursor": str(EventCursor(5)),
        "older": "5-06gzy78nhccc7r9c",
    }


async def test_the_source_of_a_message(api: ApiClients) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("queued"))
    api.records.source = b"Subject: x\r\n\r\n\xff"
    answer = await api.get("/relay/v1/messages/q1/source")
    assert (answer.status_code, answer.content) == (200, api.records.source)
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-disposition"] == 'attachment; filename="q1.eml"'
    assert api.records.asked == [("q1", "alice@example.test")]


async def test_the_checks_of_a_message(api: ApiClients) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("queued"))
    api.records.source = b"Content-Type: text/html\r\n\r\n<p>\r\n<video></video><a href=/x>open</a>"
    answer = await api.get("/relay/v1/messages/q1/checks")
    assert answer.status_code == 200
    found = answer.json()
    assert [(one["feature"], one["lines"]) for one in found["problems"]][:1] == [
        ("<video> element", [2])
    ]
    [link] = found["links"]
    assert (link["target"], link["part"], link["problems"]) == ("/x", "html", ["relative"])
    assert 0 < found["score"] < 100
    assert (found["link_count"], found["has_html"]) == (1, True)


@pytest.mark.parametrize(("token", "gone"), [("alice", True), ("bob", False)])
async def test_a_source_that_is_gone_or_of_another_account(
    api: ApiClients, token: str, gone: bool
) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("relayed"))
    api.records.source = None
    answer = await api.get("/relay/v1/messages/q1/source", token)
    assert code(answer) == (404, "ErrorItemNotFound")
    assert answer.json()["error"]["message"].startswith("The content is gone") is gone


@each_row("token, status", [("sender", 403), ("reader", 200), ("writer", 200), ("watcher", 200)])
async def test_reading_content_needs_a_scope(api: ApiClients, token: str, status: int) -> None:
    api.records.known["q1"] = (f"{token}@example.test", a_journey("queued"))
    answer = await api.get("/relay/v1/messages/q1/source", token)
    assert answer.status_code == status
    assert (await api.get("/relay/v1/messages/q1", token)).status_code == 200


@pytest.mark.parametrize(
    ("token", "status", "who"),
    [
        ("alice", 200, None),
        ("bob", 404, None),
        ("watcher", 403, None),
        ("auditor", 403, None),
        ("operator", 200, "operator@example.test"),
        ("control", 200, "control socket"),
    ],
)
async def test_the_content_of_others_needs_the_role_operate_and_is_logged(
    api: ApiClients, token: str, status: int, who: str | None
) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("queued"))
    path = "/relay/v1/messages/q1/source"
    with capture_logs() as lines:
        answer = await (api.control.get(path) if token == "control" else api.get(path, token))
    assert answer.status_code == status
    looks = [one for one in lines if one["event"] == "content of others read"]
    expected = {"who": who, "message": "q1", "view": "source"}
    assert [{key: one[key] for key in expected} for one in looks] == ([expected] if who else [])


@pytest.mark.parametrize("name", ["%3Cm%2Fx@a.test%3E", "m%2Fx@a.test"])
async def test_a_message_id_with_or_without_brackets(api: ApiClients, name: str) -> None:
    api.records.known["<m/x@a.test>"] = ("alice@example.test", a_journey("queued"))
    assert (await api.get(f"/relay/v1/messages/{name}")).status_code == 200


async def test_the_newest_messages(api: ApiClients) -> None:
    after = EventCursor(1_700_000_000_000_000)
    asked = {"to": "*@a.test", "sender": "a@b", "subject": "s", "state": "final", "after": after}
    await api.get("/relay/v1/messages?" + urlencode(asked | {"limit": 5, "wait": 0}))
    await api.get("/relay/v1/messages", "watcher")
    assert api.records.asked == [
        ("alice@example.test", MessageSearch(**asked, reader="alice@example.test"), 5),
        (None, MessageSearch(reader="watcher@example.test"), 100),
    ]


@pytest.mark.parametrize(
    ("token", "reader"),
    [
        ("alice", "alice@example.test"),
        ("reader", "reader@example.test"),
        ("sender", NO_MAILBOX),  # it may not read messages
        ("auditor", NO_MAILBOX),
        ("watcher", "watcher@example.test"),
        ("operator", "operator@example.test"),
    ],
)
async def test_a_search_looks_into_the_mailbox_of_who_asks(
    api: ApiClients, token: str, reader: str
) -> None:
    text = "giraffe has:attachment larger:1k after:2026-11-01 is:unread from:bob"
    answer = await api.get("/relay/v1/messages?" + urlencode({"q": text, "to": "x"}), token)
    assert answer.status_code == 200
    [(_, wanted, _)] = api.records.asked
    assert wanted == MessageSearch(
        to="x",
        sender="*bob*",
        words=("giraffe",),
        has_attachment=True,
        is_unread=True,
        larger_than_bytes=1000,
        from_us=1_793_491_200_000_000,
        reader=reader,
    )


async def test_a_list_waits_for_a_match(api: ApiClients) -> None:
    wait = asyncio.create_task(api.get("/relay/v1/messages?to=0@a.test&wait=60"))
    await api.records.looks.get()
    api.records.known["q2"] = ("alice@example.test", a_journey())
    api.changes.notify()
    await api.records.looks.get()
    assert not wait.done()
    found = a_journey("queued")
    api.records.known["q1"] = ("alice@example.test", found)
    api.changes.notify()
    async with asyncio.timeout(120):
        answer = await wait
    assert answer.json()["messages"] == [json_of(found)]


async def test_a_list_without_a_match_is_empty_after_its_time(api: ApiClients) -> None:
    async with asyncio.timeout(120):
        answer = await api.get("/relay/v1/messages?to=x@a.test&wait=0.05")
    missed = {"messages": [], "nearest": None, "in_flight": [], "refused": []}
    assert answer.status_code == 200
    assert answer.json().items() >= missed.items()
    assert "nearest" not in (await api.get("/relay/v1/messages?to=x@a.test")).json()


async def test_waits_are_limited_and_the_last_are_for_operators(
    api: ApiClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, busy = "/relay/v1/messages?wait=60", (503, "ResourceUnhealthy")
    monkeypatch.setattr(handlers, "WAITING_RESERVED", handlers.WAITING_MAX - 2)
    waits = []
    for token in ("alice", "bob"):
        waits.append(asyncio.create_task(api.get(wait, token)))
        await api.records.looks.get()
        assert code(await api.get(wait, "alice")) == busy
    assert (await api.get("/relay/v1/messages", "alice")).status_code == 200
    assert (await api.get("/relay/v1/messages?wait=0.05", "operator")).status_code == 200
    for waiting in waits:
        waiting.cancel()


@each_row(
    "path, named",
    [
        ("/messages?limit=0", "limit"),
        ("/messages?limit=nan", "limit"),
        ("/messages?state=sent", "state"),
        ("/messages?stat=queued", "stat"),
        ("/messages?kind=reports", "kind"),
        ("/messages?after=xyz", "after"),
        ("/messages?q=larger:x", "larger"),
        ("/messages?q=tag:x", "relay dev"),
        ("/messages?q=to:x&to=y", "to"),
        ("/messages?q=id:x&after=5", "after"),
        ("/messages?wait=301", "wait"),
        ("/messages?wait=-1", "wait"),
        ("/messages?to=", "to"),
        ("/messages?subject=" + "a" * 1001, "subject"),
        ("/messages?limit=1&limit=2", "limit"),
        ("/messages/q1?x=1", "x"),
        ("/messages/q1/wait?timeout=301", "timeout"),
        ("/messages/q1/wait?state=done", "state"),
        ("/queue?state=sent", "state"),
        ("/queue?sender=", "sender"),
        ("/queue?older_than=1h", "older_than"),
        ("/queue/stats?x=1", "x"),
    ],
)
async def test_bad_parameters_are_named(api: ApiClients, path: str, named: str) -> None:
    answer = await api.get("/relay/v1" + path, "operator")
    assert code(answer) == (400, "BadRequest")
    assert named in answer.json()["error"]["message"]


@each_row(
    "states, state, reached",
    [
        (["relayed", "failed"], "final", True),
        (["relayed", "deferred"], "final", False),
        (["captured"], "final", False),
        (["captured", "failed"], "there", True),
        (["captured", "held"], "there", False),
        ([], "there", False),
        ([], "final", False),
        (["captured"], "captured", True),
        (["deferred"], "captured", False),
    ],
)
async def test_waiting_says_whether_it_got_there(
    api: ApiClients, states: list[str], state: str, reached: bool
) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey(*states))
    answer = await api.get(f"/relay/v1/messages/q1/wait?state={state}&timeout=0")
    assert answer.json() == json_of(a_journey(*states)) | {"reached": reached}


TOLD = {"kind": "failure", "status": "", "reply": "", "host": "", "at": ""}
LATE = TOLD | {"kind": "delayed"}
CLAIM = TOLD | {"by": "remote", "source": {"client": "", "reporting_mta": ""}}


@each_row(
    "recipients, report, reached",
    [
        ([("failed", TOLD)], "captured", True),
        ([("failed", TOLD)], "deferred", True),
        ([("failed", TOLD)], "queued", False),
        ([("expired", TOLD), ("delivered", None), ("deferred", LATE)], "delivered", True),
        ([("failed", None)], "", False),
        ([("failed", TOLD), ("expired", None)], "captured", False),
        ([("failed", TOLD), ("failed", LATE)], "captured", False),
        ([("failed", TOLD), ("queued", None)], "captured", False),
        ([("deferred", LATE)], "captured", False),
        ([("delivered", None), ("captured", None)], "", False),
        ([("relayed", CLAIM)], "", True),
    ],
)
async def test_reported_waits_for_each_report(
    api: ApiClients, recipients: list[tuple[str, Any]], report: str, reached: bool
) -> None:
    people = [
        {"address": f"{number}@a.test", "state": state, "reported": told}
        for number, (state, told) in enumerate(recipients)
    ]
    steps = [{"step": 7, "detail": {"report_id": "r1"}}] if report else []
    found = made_journey(id="q1", state=recipients[0][0], recipients=people, steps=steps)
    api.records.known["q1"] = ("alice@example.test", found)
    api.records.known["r1"] = ("alice@example.test", a_journey(report, name="r1"))
    answer = await api.get("/relay/v1/messages/q1/wait?state=reported&timeout=0")
    assert answer.json()["reached"] is reached


async def test_wait_does_not_query_at_every_change(api: ApiClients) -> None:
    wait = asyncio.create_task(api.get("/relay/v1/messages/q1/wait?timeout=0.3"))
    await api.records.looks.get()
    while not wait.done():
        api.changes.notify()
        await asyncio.sleep(0)
    # each look for "q1" is one; a busy loop makes thousands of them
    assert api.records.looks.qsize() < 20
