"""POST /relay/v1/storage/prune: for operators only, with the given age."""

from collections.abc import Mapping
from typing import Any
from unittest.mock import sentinel

import httpx
import pytest

from relay.base.accounts.account import Account, Role
from relay.base.clock import SystemClock
from relay.base.observe.metrics import Metrics
from relay.base.pressure import Pressure
from relay.front_door.api import ApiDependencies, create_app, create_control_app
from relay.store.journeys.event_feed import ChangeNotifier
from tests.support.accounts import TokenAccounts, authentication_of

ACCOUNTS = {role: Account(f"{role}@example.test", role=role) for role in Role}


@pytest.fixture
def asked() -> list[tuple[float | None, bool]]:
    return []


@pytest.fixture
def dependencies(asked) -> ApiDependencies:
    async def prune(older_than_s: float | None, dry_run: bool) -> Mapping[str, Any]:
        asked.append((older_than_s, dry_run))
        return {"ended": True}

    return ApiDependencies(
        journeys=sentinel.journeys, queue_admin=sentinel.queue_admin, stats=sentinel.stats, way_to=sentinel.way_to, target_of=sentinel.target_of,
        changes=ChangeNotifier(), metrics=Metrics(), ready=lambda: "", clock=SystemClock(), prune=prune,
        pressure=Pressure(), sources=sentinel.sources, unlock=sentinel.unlock, samples=sentinel.samples,
        restored=sentinel.restored, submissions=sentinel.submissions, events=sentinel.events,
        refusals=sentinel.refusals, impaired=lambda: "", pauses=None, explain=sentinel.explain, webhooks=None,
    )  # fmt: skip


async def post(app: Any, body: bytes, token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        return await http.post("/relay/v1/storage/prune", content=body, headers=headers)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (None, False)),
        (b"{}", (None, False)),
        (b'{"older_than_s": 60, "dry_run": true}', (60.0, True)),
        (b'{"older_than_s": 0}', (0.0, False)),
    ],
)
async def test_prune_passes_the_age_and_dry_run(dependencies, asked, body, expected) -> None:
    answer = await post(create_control_app(dependencies), body)
    assert (answer.status_code, answer.json(), asked) == (200, {"ended": True}, [expected])


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b'{"older_than_s": -1}', "older_than_s"),
        (b'{"older_than_s": 1e300}', "older_than_s"),
        (b'{"older_than": 5}', "older_than"),
        (b'{"dry_run": "yes"}', "dry_run"),
        (b"{", "body"),
    ],
)
async def test_an_invalid_prune_removes_nothing(dependencies, asked, body, named) -> None:
    answer = await post(create_control_app(dependencies), body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert asked == []


@pytest.mark.parametrize(
    ("token", "status"), [("", 401), ("user", 403), ("read", 403), ("operate", 200)]
)
async def test_operators_only(dependencies, asked, token, status) -> None:
    app = create_app(dependencies, authentication_of(TokenAccounts(ACCOUNTS)))
    assert (await post(app, b"{}", token)).status_code == status
    assert len(asked) == (status == 200)
