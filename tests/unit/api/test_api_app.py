"""/relay/v1, health and metrics: visibility, waiting, and queue commands."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from relay.accounts.account import Account, Role, Scope, UnknownUserError
from relay.api import ApiDependencies, create_app, create_control_app, handlers
from relay.clock import SystemClock
from relay.journeys.changes import ChangeNotifier
from relay.journeys.document import Journey
from relay.journeys.journey import MessageList
from relay.journeys.message_list import ListPosition
from relay.journeys.message_search import NO_MAILBOX, ListCursor, MessageSearch
from relay.message.nexthop import NextHop
from relay.observe.history import MetricsHistory
from relay.observe.metrics import Metrics
from relay.pressure import Pressure, PressureLevel, PressureReason, PressureState
from relay.spool.queue_commands import (
    CommandReport,
    CommandResult,
    EntryList,
    Operation,
    QueueCommand,
)
from relay.spool.types import Selector, SpoolUnavailableError
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.journeys import json_of, made_journey
from tests.support.logs import capture_logs

ACCOUNTS = {
    "alice": Account("alice@example.test"),
    "bob": Account("bob@example.test"),
    "sender": Account("sender@example.test", scopes=frozenset({Scope.MAIL_SEND})),
    "reader": Account("reader@example.test", scopes=frozenset({Scope.MAIL_READ})),
    "writer": Account("writer@example.test", scopes=frozenset({Scope.MAIL_READ_WRITE})),
    "auditor": Account("auditor@example.test", role=Role.READ, scopes=frozenset()),
    "watcher": Account("watcher@example.test", role=Role.READ),
    "operator": Account("operator@example.test", role=Role.OPERATE),
}


def a_journey(*states: str, name: str = "q1") -> Journey:
    recipients = [{"address": f"{n}@a.test", "state": state} for n, state in enumerate(states)]
    state = states[0] if states else "queued"
    return made_journey(id=name, message_id="<m@a.test>", state=state, recipients=recipients)


@dataclass
class Records:
    """Journeys by key with their owner; `looks` records each query."""

    known: dict[str, tuple[str, Journey]] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    looks: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    source: bytes | None = b""
    fault: Exception | None = None
    allowed: asyncio.Event = field(default_factory=asyncio.Event)

    async def journey(self, key: str, *, account: str | None) -> Journey | None:
        self.looks.put_nowait(key)
        owner, journey = self.known.get(key, ("", None))
        return journey if account in (None, owner) else None

    async def search(
        self,
        wanted: MessageSearch,
        *,
        account: str | None,
        limit: int,
        before: ListPosition | None = None,
        lookup_s: float | None = None,
    ) -> MessageList:
        if before is not None:
            return MessageList([], ListCursor(5), older=before)
        self.asked.append((account, wanted, limit))
        self.looks.put_nowait("list")
        found = [
            journey
            for owner, journey in self.known.values()
            if account in (None, owner) and wanted.matches(journey)
        ]
        return MessageList(found, ListCursor(5))

    async def list(self, selector: Selector, *, limit: int, **_: Any) -> EntryList:
        if self.fault:
            raise self.fault
        self.asked.append((selector, limit))
        return EntryList(
            [{"id": "q1", "entry": 1}], unknown=(one for one in selector.ids if one[0] != "q")
        )

    async def execute(self, order: QueueCommand) -> CommandReport:
        self.asked.append((order,))
        try:
            await self.allowed.wait()
        except asyncio.CancelledError:
            self.asked.append(("given up",))
            raise
        return CommandReport(
            {**dict.fromkeys(CommandResult, 0), CommandResult.DONE: 3}, [{"id": "q1", "entry": 1}]
        )

    async def find(self, journey: Journey, *, reader: str | None) -> bytes | None:
        self.asked.append((journey.id, reader))
        return self.source

    def unlock(self, address: str) -> int:
        if address != "alice@example.test":
            raise UnknownUserError(address)
        self.asked.append(("unlock", address))
        return 2

    async def count_before_queue(self) -> dict[str, int]:
        return {"scheduled": 1, "converting": 0}

    async def stats(self) -> dict[str, Any]:
        return {"entries": {"queued": 1}}


@dataclass
class ApiClients:
    http: httpx.AsyncClient
    control: httpx.AsyncClient
    records: Records
    changes: ChangeNotifier
    not_ready: str = ""
    pressure: Pressure = field(default_factory=Pressure)

    async def get(self, path: str, token: str = "alice") -> httpx.Response:
        return await self.http.get(path, headers={"authorization": f"Bearer {token}"})


async def no_history(_older_than_s: float | None, _dry_run: bool) -> dict[str, Any]:
    raise AssertionError("no test of this module prunes")


@pytest.fixture
async def api() -> AsyncIterator[ApiClients]:
    records, changes = Records(), ChangeNotifier()
    records.allowed.set()
    dependencies = ApiDependencies(
        journeys=records,
        queue_admin=records,
        stats=records.stats,
        way_to=lambda text: lambda _: NextHop.parse(text),
        changes=changes,
        metrics=(metrics := Metrics()),
        history=MetricsHistory(metrics, SystemClock()),
        ready=lambda: made.not_ready,
        clock=SystemClock(),
        pressure=(pressure := Pressure()),
        prune=no_history,
        sources=records,
        unlock=records.unlock,
    )
    app = create_app(dependencies, authentication_of(TokenAccounts(ACCOUNTS)))
    outside, inside = (
        httpx.ASGITransport(app),
        httpx.ASGITransport(create_control_app(dependencies)),
    )
    async with (
        httpx.AsyncClient(transport=outside, base_url="http://relay.test") as http,
        httpx.AsyncClient(transport=inside, base_url="http://localhost") as control,
    ):
        made = ApiClients(http, control, records, changes, pressure=pressure)
        yield made


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "path", ["/messages", "/messages/q1", "/messages/q1/wait", "/messages/q1/source", "/queue"]
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
    cursor = str(ListCursor(5))
    assert recent == {
        "messages": [json_of(journey)] if seen else [],
        "cursor": cursor,
        "older": None,
    }


@pytest.mark.parametrize(
    ("query", "fault"),
    [
        ("before=5", "before: found"),
        ("before=5-&after=AAAAAAAAAAU", "before: found it together with after"),
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
        "messages": [], "cursor": str(ListCursor(5)), "older": "5-06gzy78nhccc7r9c",
    }  # fmt: skip


async def test_the_source_of_a_message(api: ApiClients) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("queued"))
    api.records.source = b"Subject: x\r\n\r\n\xff"
    answer = await api.get("/relay/v1/messages/q1/source")
    assert (answer.status_code, answer.content) == (200, api.records.source)
    assert answer.headers["content-type"] == "message/rfc822"
    assert answer.headers["content-disposition"] == 'attachment; filename="q1.eml"'
    assert api.records.asked == [("q1", "alice@example.test")]


@pytest.mark.parametrize(("token", "gone"), [("alice", True), ("bob", False)])
async def test_a_source_that_is_gone_or_of_another_account(
    api: ApiClients, token: str, gone: bool
) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("relayed"))
    api.records.source = None
    answer = await api.get("/relay/v1/messages/q1/source", token)
    assert code(answer) == (404, "ErrorItemNotFound")
    assert answer.json()["error"]["message"].startswith("The content is gone") is gone


@pytest.mark.parametrize(
    ("token", "status"), [("sender", 403), ("reader", 200), ("writer", 200), ("watcher", 200)]
)
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
    after = ListCursor(1_700_000_000_000_000)
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
        to="x", sender="*bob*", words=("giraffe",), has_attachment=True, is_unread=True,
        larger_than_bytes=1000, from_us=1_793_491_200_000_000, reader=reader,
    )  # fmt: skip


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
    async with asyncio.timeout(30):
        answer = await wait
    assert answer.json()["messages"] == [json_of(found)]


async def test_a_list_without_a_match_is_empty_after_its_time(api: ApiClients) -> None:
    async with asyncio.timeout(30):
        answer = await api.get("/relay/v1/messages?to=x@a.test&wait=0.05")
    assert (answer.status_code, answer.json()["messages"]) == (200, [])


async def test_waiting_lists_are_limited(api: ApiClients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "_WAITING_MAX", 1)
    wait = asyncio.create_task(api.get("/relay/v1/messages?wait=60"))
    await api.records.looks.get()
    assert code(await api.get("/relay/v1/messages?wait=60")) == (503, "ResourceUnhealthy")
    assert (await api.get("/relay/v1/messages")).status_code == 200
    wait.cancel()


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/messages?limit=0", "limit"),
        ("/messages?limit=nan", "limit"),
        ("/messages?state=sent", "state"),
        ("/messages?stat=queued", "stat"),
        ("/messages?after=xyz", "after"),
        ("/messages?q=larger:x", "larger"),
        ("/messages?q=to:x&to=y", "to"),
        ("/messages?q=id:x&after=AAAAAAAAAAAA", "after"),
        ("/messages?wait=301", "wait"),
        ("/messages?wait=-1", "wait"),
        ("/messages?to=", "to"),
        ("/messages?subject=" + "a" * 1001, "subject"),
        ("/messages?limit=1&limit=2", "limit"),
        ("/messages/q1?x=1", "x"),
        ("/messages/q1/wait?timeout=301", "timeout"),
        ("/messages/q1/wait?state=done", "state"),
        ("/queue?state=sent", "state"),
        ("/queue?state=relayed", "state"),
        ("/queue?sender=", "sender"),
        ("/queue?domain=" + "a" * 1001, "domain"),
        ("/queue?older_than=1h", "older_than"),
        ("/queue/stats?x=1", "x"),
    ],
)
async def test_bad_parameters_are_named(api: ApiClients, path: str, named: str) -> None:
    answer = await api.get("/relay/v1" + path, "operator")
    assert code(answer) == (400, "BadRequest")
    assert named in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("states", "state", "reached"),
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


async def test_wait_ends_when_the_message_is_final_in_another_state(api: ApiClients) -> None:
    api.records.known["q1"] = ("alice@example.test", a_journey("failed", "delivered"))
    async with asyncio.timeout(30):
        answer = await api.get("/relay/v1/messages/q1/wait?state=relayed&timeout=60")
    assert answer.json()["reached"] is False


async def test_waiting_wakes_on_a_change(api: ApiClients, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "_POLL_S", 60.0)
    wait = asyncio.create_task(api.get("/relay/v1/messages/q1/wait?timeout=60"))
    await api.records.looks.get()
    api.records.known["q1"] = ("alice@example.test", a_journey("deferred"))
    api.changes.notify()
    await api.records.looks.get()
    assert not wait.done()
    api.records.known["q1"] = ("alice@example.test", a_journey("delivered"))
    api.changes.notify()
    async with asyncio.timeout(30):
        answer = await wait
    assert answer.json()["reached"] is True


async def test_wait_does_not_query_at_every_change(api: ApiClients) -> None:
    wait = asyncio.create_task(api.get("/relay/v1/messages/q1/wait?timeout=0.3"))
    await api.records.looks.get()
    while not wait.done():
        api.changes.notify()
        await asyncio.sleep(0)
    # each look for "q1" is one; a busy loop makes thousands of them
    assert api.records.looks.qsize() < 20


async def test_a_change_during_a_query_is_not_missed() -> None:
    changes = ChangeNotifier()
    seen = changes.count
    changes.notify()
    async with asyncio.timeout(30):
        await changes.wait_beyond(seen)
    waiting = [asyncio.create_task(changes.wait_beyond(changes.count)) for _ in range(3)]
    await asyncio.sleep(0)
    changes.notify()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)


async def test_a_change_in_a_thread_wakes_waiters() -> None:
    changes = ChangeNotifier()
    waiting = asyncio.create_task(changes.wait_beyond(changes.count))
    await asyncio.sleep(0)
    await asyncio.to_thread(changes.notify)
    async with asyncio.timeout(30):
        await waiting


async def test_wait_times_out(api: ApiClients) -> None:
    answer = await api.get("/relay/v1/messages/q1/wait?timeout=0.05")
    assert code(answer) == (404, "ErrorItemNotFound")


@pytest.mark.parametrize(
    ("token", "read_status", "change_status"),
    [("alice", 403, 403), ("watcher", 200, 403), ("operator", 200, 200)],
)
async def test_roles_of_the_queue(
    api: ApiClients, token: str, read_status: int, change_status: int
) -> None:
    assert (await api.get("/relay/v1/queue", token)).status_code == read_status
    assert (await api.get("/relay/v1/queue/stats", token)).status_code == read_status
    headers = {"authorization": f"Bearer {token}"}
    for operation in ("retry", "hold", "release", "cancel", "reroute"):
        body = {"all": True} | ({"to": "mx:a.test"} if operation == "reroute" else {})
        answer = await api.http.post(f"/relay/v1/queue/{operation}", json=body, headers=headers)
        assert answer.status_code == change_status
    orders = [one for one in api.records.asked if isinstance(one[0], QueueCommand)]
    assert len(orders) == (5 if change_status == 200 else 0)


async def test_a_list_names_the_ids_that_nothing_has_in_a_header(api: ApiClients) -> None:
    answer = await api.get("/relay/v1/queue?id=q1,%3Cx%40y%3E,%C3%BC%0a", "watcher")
    assert (answer.status_code, answer.json()) == (200, [{"id": "q1", "entry": 1}])
    assert answer.headers["x-relay-unknown"] == "%3Cx%40y%3E,%C3%BC%0A"
    assert "x-relay-unknown" not in (await api.get("/relay/v1/queue?id=q1", "watcher")).headers
    assert answer.headers["x-relay-before-queue"] == "scheduled=1, converting=0"


async def test_an_id_of_a_list_may_have_a_comma(api: ApiClients) -> None:
    ids = ("<a,b%2C@c>", "q1")
    query = urlencode({"id": ",".join(quote(one, safe="") for one in ids)})
    assert (await api.get(f"/relay/v1/queue?{query}", "watcher")).status_code == 200
    ((selector, _),) = api.records.asked
    assert selector == Selector(ids=ids)


async def test_the_control_socket_is_an_operator(api: ApiClients) -> None:
    await api.control.get("/relay/v1/queue?id=q1,q2&domain=a.test&older_than=60&limit=7")
    body = {"sender": "a@b.test", "older_than_s": 5, "dry_run": True, "reason": " why "}
    answer = await api.control.post("/relay/v1/queue/hold", json=body)
    assert answer.json() == {
        "matched": 3, "done": 3, "unchanged": 0, "in_flight": 0, "dry_run": False, "unknown": [],
        "entries": [{"id": "q1", "entry": 1}],
    }  # fmt: skip
    listed, (order,) = api.records.asked
    assert listed == (Selector(ids=("q1", "q2"), domain="a.test", older_than_s=60.0), 7)
    assert order == QueueCommand(
        Operation.HOLD,
        Selector(sender="a@b.test", older_than_s=5.0),
        "control socket",
        why="why",
        dry_run=True,
    )
    api.records.known["last"] = ("alice@example.test", a_journey("queued"))
    assert (await api.control.get("/relay/v1/messages/last")).status_code == 200


async def test_the_issuer_of_a_command_is_the_token_or_the_operators_user(
    api: ApiClients,
) -> None:
    body = {"all": True, "who": "olga"}
    assert (await api.control.post("/relay/v1/queue/cancel", json=body)).status_code == 200
    headers = {"authorization": "Bearer operator"}
    answer = await api.http.post("/relay/v1/queue/cancel", json=body, headers=headers)
    assert code(answer) == (403, "ErrorAccessDenied")
    del body["who"]
    await api.http.post("/relay/v1/queue/cancel", json=body, headers=headers)
    assert [one.who for (one,) in api.records.asked] == ["olga", "operator@example.test"]


async def test_a_queue_command_wakes_waiters(api: ApiClients) -> None:
    before = api.changes.count
    await api.control.post("/relay/v1/queue/cancel", json={"all": True})
    assert api.changes.count > before


async def test_the_spool_is_not_there(api: ApiClients) -> None:
    api.records.fault = SpoolUnavailableError("The spool is locked.")
    answer = await api.control.get("/relay/v1/queue")
    assert code(answer) == (503, "ResourceUnhealthy")
    assert answer.headers["retry-after"] == "5"


async def test_health_readiness_and_metrics_need_no_token(api: ApiClients) -> None:
    assert (await api.http.get("/healthz")).text == "ok\n"
    assert (await api.http.get("/readyz")).text == "ready\n"
    api.not_ready = "starting"
    late = await api.http.get("/readyz")
    assert (late.status_code, late.text) == (503, "starting\n")
    api.not_ready = ""
    api.pressure.state = PressureState(
        {PressureReason.QUEUE: PressureLevel.REFUSE, PressureReason.MEMORY: PressureLevel.SLOW}
    )
    short = await api.http.get("/readyz")  # mail is still read, and delivered
    assert (short.status_code, short.text) == (200, "ready; refuse: queue\n")
    metrics = await api.http.get("/metrics")
    assert "relay_queue_unaccounted 0.0" in metrics.text
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/relay/v2/messages", 404),
        ("GET", "/relay/v1/queue/q1", 404),
        ("POST", "/relay/v1/messages", 405),
        ("POST", "/relay/v1/queue/delete", 404),
        ("POST", "/relay/v1/messages/q1/release", 404),  # only in a development relay
        ("GET", "/relay/v1/queue/retry", 405),
        ("GET", "/relay/v1/queue/hold", 405),
        ("POST", "/relay/v1/queue/stats", 405),
        ("POST", "/metrics", 405),
        *(("GET", f"/{name}/", 404) for name in ("healthz", "readyz", "metrics")),
        *(("GET", f"//{name}", 404) for name in ("healthz", "readyz", "metrics")),
        ("GET", "///metrics//", 404),
        ("GET", "/metrics//?a=b", 404),
        ("GET", "/%6detrics", 404),
        ("GET", "/METRICS", 404),
    ],
)
async def test_what_is_not_there(api: ApiClients, method: str, path: str, status: int) -> None:
    headers = {"authorization": "Bearer operator"}
    assert (await api.http.request(method, path, headers=headers)).status_code == status


async def test_an_order_that_a_stop_breaks_off_may_be_given_again(api: ApiClients) -> None:
    api.records.allowed.clear()
    asking = asyncio.create_task(api.control.post("/relay/v1/queue/hold", json={"all": True}))
    while not api.records.asked:
        await asyncio.sleep(0)
    asking.cancel()  # as the server does with what is still in work when its grace time is over
    answer = await asking
    assert code(answer) == (503, "ResourceUnhealthy")
    assert answer.headers["retry-after"]
    assert "Changes made before that remain" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("token", "body", "status"),
    [
        ("operator", b'{"address": "alice@example.test"}', 200),
        ("operator", b'{"address": "nobody@example.test"}', 404),
        ("operator", b"{}", 400),
        ("watcher", b'{"address": "alice@example.test"}', 403),
        ("alice", b'{"address": "alice@example.test"}', 403),
    ],
)
async def test_only_operators_unlock_accounts(
    api: ApiClients, token: str, body: bytes, status: int
) -> None:
    headers = {"authorization": f"Bearer {token}"}
    answer = await api.http.post("/relay/v1/accounts/unlock", content=body, headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {"address": "alice@example.test", "delays": 2}
    assert (("unlock", "alice@example.test") in api.records.asked) is (status == 200)
