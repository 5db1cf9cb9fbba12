"""inferenceClassification: focused unless a client says other, and kept whatever happens."""

from pathlib import Path

import pytest

from tests.support.graph_fakes import OnDisk, refused


def put(path: Path) -> None:
    path.write_bytes(b"Subject: news\r\n\r\nx\r\n")


async def received(on_disk: OnDisk) -> str:
    """Put a message into the Inbox as another program does; return its id."""
    await on_disk.http.get("/mailFolders")
    put(on_disk.root / "example.test/alice/new/1600000000.M1.h")
    [message] = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    assert message["inferenceClassification"] == "focused"
    return str(message["id"])


async def test_a_received_message_is_classified(on_disk: OnDisk) -> None:
    http, identity = on_disk.http, await received(on_disk)
    before = (await http.get(f"/messages/{identity}")).json()
    change = {"inferenceClassification": "Other"}
    changed = (await http.patch(f"/messages/{identity}", json=change)).json()
    assert (changed["inferenceClassification"], changed["isRead"]) == ("other", False)
    assert changed["changeKey"] != before["changeKey"]
    await http.patch(f"/messages/{identity}", json={"isRead": True})
    await http.post(f"/messages/{identity}/move", json={"destinationId": "archive"})
    kept = (await http.get(f"/messages/{identity}?$select=inferenceClassification")).json()
    assert kept["inferenceClassification"] == "other"
    changed = (
        await http.patch(f"/messages/{identity}", json={"inferenceClassification": "focused"})
    ).json()
    assert changed["inferenceClassification"] == "focused"


async def test_lists_are_filtered_by_it(on_disk: OnDisk) -> None:
    http, identity = on_disk.http, await received(on_disk)
    await http.patch(f"/messages/{identity}", json={"inferenceClassification": "other"})
    await http.post("/messages", json={"subject": "focused"})
    drafted = {"subject": "other", "inferenceClassification": "other"}
    assert (await http.post("/messages", json=drafted)).json()["inferenceClassification"] == "other"
    for condition, subjects in (
        ("inferenceClassification eq 'other'", {"news", "other"}),
        ("inferenceClassification eq 'Focused'", {"focused"}),
        ("inferenceClassification ne 'focused' and isDraft", {"other"}),
    ):
        query = {"$filter": condition, "$count": "true"}
        page = (await http.get("/messages", params=query)).json()
        assert {one["subject"] for one in page["value"]} == subjects
        assert page["@odata.count"] == len(subjects)


@pytest.mark.parametrize("value", ["spam", 5, True, {}, []])
async def test_another_value_is_a_400(on_disk: OnDisk, value: object) -> None:
    identity = await received(on_disk)
    change = {"inferenceClassification": value, "isRead": True}
    answer = await on_disk.http.patch(f"/messages/{identity}", json=change)
    assert "inferenceClassification: found" in refused(answer, 400, "RequestBodyRead")
    assert (await on_disk.http.get(f"/messages/{identity}")).json()["isRead"] is False


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"$filter": "inferenceClassification eq 'spam'"}, "BadRequest"),
        ({"$filter": "inferenceClassification gt 'focused'"}, "BadRequest"),
        ({"$orderby": "inferenceClassification"}, "ErrorInvalidUrlQuery"),
    ],
)
async def test_a_bad_condition_is_a_400(on_disk: OnDisk, query: dict[str, str], code: str) -> None:
    refused(await on_disk.http.get("/messages", params=query), 400, code)
