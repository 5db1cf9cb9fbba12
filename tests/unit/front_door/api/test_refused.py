"""GET /relay/v1/refused: who sees which refusals, and what a bad request gets."""

from dataclasses import replace
from typing import Any
from unittest.mock import sentinel

import httpx
import pytest

from relay.base.accounts.account import Account, Role
from relay.base.clock import SystemClock, rfc3339
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Pressure
from relay.front_door.api import ApiDependencies, create_app, create_control_app
from relay.store.journeys.event_feed import ChangeNotifier
from relay.transport.refusals.refusal import RecentRefusals, Refusal, RefusalReason
from tests.support.accounts import TokenAccounts, authentication_of

ACCOUNTS = {role: Account(f"{role}@example.test", role=role) for role in Role}
FIELDS = (  # noqa: SIM905
    "at client helo listener account sender recipients recipient_count subject command reply reason "
    "rule times"
).split()


async def no_prune(_older_than_s: float | None, _dry_run: bool) -> dict[str, Any]:
    return {}


@pytest.fixture
def dependencies() -> ApiDependencies:
    refusals = RecentRefusals()
    for number in range(250):
        account = "user@example.test" if number % 50 == 0 else ""
        refusals.record(
            Refusal(
                at=rfc3339(1_700_000_000_000_000 + number), client="192.0.2.1", account=account,
                sender=f"app{number}@example.test", command="MAIL", reply="530 5.7.0 Log in",
                reason=RefusalReason.LOGIN,
            )
        )  # fmt: skip
    return ApiDependencies(
        journeys=sentinel.journeys, queue_admin=sentinel.queue_admin, stats=sentinel.stats, way_to=sentinel.way_to, target_of=sentinel.target_of,
        changes=ChangeNotifier(), metrics=Metrics(), ready=lambda: "", clock=SystemClock(), prune=no_prune,
        pressure=Pressure(), sources=sentinel.sources, unlock=sentinel.unlock, samples=sentinel.samples,
        refusals=refusals, restored=sentinel.restored, submissions=sentinel.submissions,
        events=sentinel.events, impaired=lambda: "", pauses=None, explain=sentinel.explain, webhooks=None,
    )  # fmt: skip


async def get(
    dependencies: ApiDependencies, query: str = "", *, role: Role | None = None
) -> httpx.Response:
    accounts = TokenAccounts({one.address: one for one in ACCOUNTS.values()})
    app = (
        create_app(dependencies, authentication_of(accounts))
        if role
        else create_control_app(dependencies)
    )
    headers = {"authorization": f"Bearer {ACCOUNTS[role].address}"} if role else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        return await http.get(f"/relay/v1/refused{query}", headers=headers)


@pytest.mark.parametrize("role", [None, Role.READ, Role.OPERATE])
async def test_an_operator_sees_all_in_bounded_pages(dependencies, role):
    seen, query = [], ""
    while query is not None:
        page = (await get(dependencies, query, role=role)).json()
        seen += [one["sender"] for one in page["refused"]]
        assert len(page["refused"]) <= 100
        query = page["older"] and f"?before={page['older']}"
    assert seen == [f"app{number}@example.test" for number in reversed(range(250))]


async def test_the_fields_are_those_of_the_documentation(dependencies):
    page = (await get(dependencies, "?limit=1")).json()
    assert list(page) == ["refused", "cursor", "older"]
    assert list(page["refused"][0]) == FIELDS
    after = (await get(dependencies, f"?after={page['cursor']}")).json()
    assert after == {"refused": [], "cursor": page["cursor"], "older": None}
    assert (await get(dependencies, "?after=")).json()["cursor"] == page["cursor"]


async def test_an_account_sees_those_of_its_own_login(dependencies):
    found = (await get(dependencies, role=Role.USER)).json()["refused"]
    assert [one["account"] for one in found] == ["user@example.test"] * 5
    assert (await get(dependencies, "?address=app1@example.test", role=Role.USER)).json()[
        "refused"
    ] == []
    in_development = replace(dependencies, development=sentinel.development)
    in_development = replace(in_development, development=_Nothing())
    assert len((await get(in_development, role=Role.USER)).json()["refused"]) == 100


class _Nothing:
    """A development relay without paths of its own."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def test_an_address_selects(dependencies):
    found = (await get(dependencies, "?address=APP7@example.test")).json()["refused"]
    assert [one["sender"] for one in found] == ["app7@example.test"]
    assert len((await get(dependencies, "?address=192.0.2.1&limit=1000")).json()["refused"]) == 250


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("?after=yesterday", "after: found"), ("?before=", "before: found"), ("?limit=1001", "limit: found"),
        ("?address=", "address: found"), ("?address=" + "a" * 1001, "address: found"), ("?client=x", "client"),
        ("?after=2026-11-22T10:00:00.000000Z&before=2026-11-22T10:00:00.000000Z", "before: found it together"),
    ],
)  # fmt: skip
async def test_a_bad_parameter_is_named(dependencies, query, named):
    answer = await get(dependencies, query)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


async def test_without_a_token_there_is_nothing(dependencies):
    app = create_app(dependencies, authentication_of(TokenAccounts({})))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        assert (await http.get("/relay/v1/refused")).status_code == 401


async def test_files_that_cannot_be_read_are_a_503(dependencies):
    class Broken(RecentRefusals):
        async def page(self, wanted):
            raise OSError(5, "Input/output error")

    answer = await get(replace(dependencies, refusals=Broken()))
    assert answer.status_code == 503
    assert "Input/output error" in answer.json()["error"]["message"]
