"""GET /relay/v1/refused: who sees which refusals, and what a bad request gets."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from relay.base.clock import rfc3339
from relay.front_door.api import create_app, create_control_app
from relay.transport.refusals.refusal import Refusal, RefusalReason
from tests.support.accounts import TokenAccounts, authentication_of
from tests.support.api_clients import ACCOUNTS, ApiClients
from tests.support.tables import each_row

FIELDS = (  # noqa: SIM905
    "at client helo listener account sender recipients recipient_count subject command reply reason "
    "rule times"
).split()
PATH = "/relay/v1/refused"


@pytest.fixture
async def refusing(api: ApiClients) -> ApiClients:
    """250 refusals, each fiftieth of alice's login."""
    for number in range(250):
        account = "alice@example.test" if number % 50 == 0 else ""
        api.dependencies.refusals.record(
            Refusal(
                at=rfc3339(1_700_000_000_000_000 + number),
                client="192.0.2.1",
                account=account,
                sender=f"app{number}@example.test",
                command="MAIL",
                reply="530 5.7.0 Log in",
                reason=RefusalReason.LOGIN,
            )
        )
    return api


async def page(api: ApiClients, query: str = "", token: str = "") -> dict[str, Any]:
    answer = await (api.get(PATH + query, token) if token else api.control.get(PATH + query))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def asked(app: Any, token: str = "") -> httpx.Response:
    """What an application with other parts answers."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        return await http.get(PATH, headers=headers)


async def test_an_operator_sees_all_in_bounded_pages(refusing: ApiClients) -> None:
    for token in ("", "watcher", "operator"):
        seen, query = [], ""
        while query is not None:
            found = await page(refusing, query, token)
            seen += [one["sender"] for one in found["refused"]]
            assert len(found["refused"]) <= 100
            query = found["older"] and f"?before={found['older']}"
        assert seen == [f"app{number}@example.test" for number in reversed(range(250))]


async def test_the_fields_are_those_of_the_documentation(refusing: ApiClients) -> None:
    found = await page(refusing, "?limit=1")
    assert list(found) == ["refused", "cursor", "older"]
    assert list(found["refused"][0]) == FIELDS
    after = await page(refusing, f"?after={found['cursor']}")
    assert after == {"refused": [], "cursor": found["cursor"], "older": None}
    assert (await page(refusing, "?after="))["cursor"] == found["cursor"]


async def test_an_account_sees_those_of_its_own_login(refusing: ApiClients) -> None:
    found = (await page(refusing, token="alice"))["refused"]
    assert [one["account"] for one in found] == ["alice@example.test"] * 5
    assert (await page(refusing, "?address=app1@example.test", "alice"))["refused"] == []
    in_development = replace(refusing.dependencies, development=_Nothing())
    app = create_app(in_development, authentication_of(TokenAccounts(ACCOUNTS)))
    assert len((await asked(app, "alice")).json()["refused"]) == 100


class _Nothing:
    """A development relay without paths of its own."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


async def test_an_address_selects(refusing: ApiClients) -> None:
    found = (await page(refusing, "?address=APP7@example.test"))["refused"]
    assert [one["sender"] for one in found] == ["app7@example.test"]
    assert len((await page(refusing, "?address=192.0.2.1&limit=1000"))["refused"]) == 250


@each_row(
    "query, named",
    [
        ("?after=yesterday", "after: found"),
        ("?before=", "before: found"),
        ("?limit=1001", "limit: found"),
        ("?address=", "address: found"),
        ("?address=" + "a" * 1001, "address: found"),
        ("?client=x", "client"),
        (
            "?after=2026-11-22T10:00:00.000000Z&before=2026-11-22T10:00:00.000000Z",
            "before: found it together",
        ),
    ],
)
async def test_a_bad_parameter_is_named(refusing: ApiClients, query: str, named: str) -> None:
    answer = await refusing.control.get(PATH + query)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


async def test_without_a_token_there_is_nothing(refusing: ApiClients) -> None:
    assert (await refusing.http.get(PATH)).status_code == 401


async def test_files_that_cannot_be_read_are_a_503(api: ApiClients) -> None:
    async def page(_wanted):
        raise OSError(5, "Input/output error")

    broken = SimpleNamespace(page=page)
    answer = await asked(create_control_app(replace(api.dependencies, refusals=broken)))
    assert answer.status_code == 503
    assert "Input/output error" in answer.json()["error"]["message"]
