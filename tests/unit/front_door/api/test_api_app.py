"""/relay/v1, health and metrics: roles, queue commands, and what is not there."""

import asyncio

import pytest

from relay.base.pressure import PressureLevel, PressureReason, PressureState
from relay.store.spool.queue_commands import Operation, QueueCommand
from relay.store.spool.types import Selector, SpoolUnavailableError
from tests.support.api_clients import ApiClients, a_journey, code
from tests.support.events import until
from tests.support.tables import each_row


@pytest.mark.parametrize(
    ("token", "read_status", "change_status"),
    [("alice", 403, 403), ("watcher", 200, 403), ("operator", 200, 200)],
)
async def test_roles_of_the_queue(
    api: ApiClients, token: str, read_status: int, change_status: int
) -> None:
    assert (await api.get("/relay/v1/queue", token)).status_code == read_status
    assert (await api.get("/relay/v1/queue/stats", token)).status_code == read_status
    assert (await api.get("/relay/v1/stats?by=route&since=60", token)).status_code == read_status
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


async def test_the_control_socket_is_an_operator(api: ApiClients) -> None:
    await api.control.get("/relay/v1/queue?id=q1,q2&domain=a.test&older_than=60&limit=7")
    body = {"sender": "a@b.test", "older_than_s": 5, "dry_run": True, "reason": " why "}
    answer = await api.control.post("/relay/v1/queue/hold", json=body)
    assert answer.json() == {
        "matched": 3,
        "done": 3,
        "unchanged": 0,
        "in_flight": 0,
        "ordered": 0,
        "dry_run": False,
        "unknown": [],
        "entries": [{"id": "q1", "entry": 1}],
    }
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


async def test_the_issuer_of_a_command_is_the_token_or_the_operators_user(api: ApiClients) -> None:
    given = {"authorization": "Bearer operator", "x-relay-sudo-user": "anna"}
    for client in (api.control, api.http):
        await client.post("/relay/v1/queue/cancel", json={"all": True}, headers=given)
    names = ["control socket (SUDO_USER anna)", "operator@example.test"]
    assert [one.who for (one,) in api.records.asked] == names


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
    assert 'account="alice@example.test"} 3.0' in (await api.control.get("/metrics")).text
    metrics = await api.http.get("/metrics")
    assert "alice" not in metrics.text  # to a client elsewhere
    assert "relay_queue_unaccounted 0.0" in metrics.text
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


@each_row(
    "method, path, status",
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
    await until(lambda: api.records.asked)
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
