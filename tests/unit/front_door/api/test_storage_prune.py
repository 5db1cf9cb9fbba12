"""POST /relay/v1/storage/prune: for operators only, with the given age."""

from typing import Any

from tests.support.api_clients import ApiClients
from tests.support.tables import each_row

PATH = "/relay/v1/storage/prune"


@each_row(
    "body, expected",
    [
        (b"", (None, False)),
        (b"{}", (None, False)),
        (b'{"older_than_s": 60, "dry_run": true}', (60.0, True)),
        (b'{"older_than_s": 0}', (0.0, False)),
    ],
)
async def test_prune_passes_the_age_and_dry_run(
    api: ApiClients, body: bytes, expected: Any
) -> None:
    answer = await api.control.post(PATH, content=body)
    assert (answer.status_code, answer.json()) == (200, {"ended": True})
    assert api.records.asked[-1] == expected


@each_row(
    "body, named",
    [
        (b'{"older_than_s": -1}', "older_than_s"),
        (b'{"older_than_s": 1e300}', "older_than_s"),
        (b'{"older_than": 5}', "older_than"),
        (b'{"dry_run": "yes"}', "dry_run"),
        (b"{", "body"),
    ],
)
async def test_an_invalid_prune_removes_nothing(api: ApiClients, body: bytes, named: str) -> None:
    answer = await api.control.post(PATH, content=body)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]
    assert api.records.asked == []


async def test_operators_only(api: ApiClients) -> None:
    for token, status in (("", 401), ("alice", 403), ("watcher", 403), ("operator", 200)):
        headers = {"authorization": f"Bearer {token}"}
        assert (await api.http.post(PATH, content=b"{}", headers=headers)).status_code == status
    assert api.records.asked == [(None, False)]
