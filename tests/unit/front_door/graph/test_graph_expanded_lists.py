"""Lists and delta queries with the attachments of their messages."""

from typing import Any

import pytest

from relay.store.mailbox import attachments
from tests.support.graph_fakes import OnDisk
from tests.unit.front_door.graph.test_graph_attachments import (
    ITEM,
    PDF,
    TEXT,
    draft,
    listed,
    mime_draft,
)


async def pages(on_disk: OnDisk, url: str) -> list[dict[str, Any]]:
    """Return the pages of a list."""
    found = []
    while url:
        answer = await on_disk.http.get(url)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        found.append(answer.json())
        url = answer.json().get("@odata.nextLink", "")
    return found


async def filled(on_disk: OnDisk) -> list[str]:
    """Make messages with and without attachments; return their ids, newest first."""
    ids = [await draft(on_disk, PDF, TEXT, ITEM), await draft(on_disk), await mime_draft(on_disk)]
    return ids[::-1]


@pytest.mark.parametrize("path", ["/messages", "/mailFolders/drafts/messages"])
async def test_a_list_has_the_attachments_of_each_message(on_disk: OnDisk, path: str) -> None:
    ids = await filled(on_disk)
    [page] = await pages(on_disk, f"{path}?$expand=attachments&$select=subject&$count=true")
    assert [*page] == ["@odata.context", "@odata.count", "value"]
    assert [one["id"] for one in page["value"]] == ids
    for one in page["value"]:
        assert set(one) == {"@odata.etag", "id", "subject", "attachments"}
        assert one["attachments"] == await listed(on_disk, one["id"])


async def test_a_delta_query_has_attachments_next_to_removed_messages(on_disk: OnDisk) -> None:
    url = "/mailFolders/drafts/messages/delta?$deltatoken=latest&$expand=attachments&$select=id"
    [page] = await pages(on_disk, url)
    kept, removed = await draft(on_disk, TEXT), await draft(on_disk, PDF)
    await on_disk.http.post(f"/messages/{removed}/permanentDelete")
    [page] = await pages(on_disk, page["@odata.deltaLink"])
    assert [one["id"] for one in page["value"]] == [kept, removed]
    assert page["value"][0]["attachments"] == await listed(on_disk, kept)
    assert page["value"][1] == {"id": removed, "@removed": {"reason": "deleted"}}
    assert [*page] == ["@odata.context", "value", "@odata.deltaLink"]


async def test_a_message_that_is_removed_meanwhile_is_left_out(
    on_disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [await draft(on_disk, TEXT) for _ in range(3)]
    opened = attachments.Attachments._opened

    def remove_one(self: Any, account: str, message_id: str, *given: str, **options: bool) -> Any:
        if message_id == ids[1]:
            [file] = [path for path in on_disk.files() if message_id in path.name]
            file.unlink()
        return opened(self, account, message_id, *given, **options)

    monkeypatch.setattr(attachments.Attachments, "_opened", remove_one)
    [page] = await pages(on_disk, "/messages?$expand=attachments")
    assert [one["id"] for one in page["value"]] == [ids[2], ids[0]]


async def test_expanded_attachments_have_options(on_disk: OnDisk) -> None:
    one = f"/messages/{await draft(on_disk, PDF, TEXT, ITEM)}"
    whole = [
        each["name"] for each in (await on_disk.http.get(f"{one}/attachments")).json()["value"]
    ]
    assert len(whole) == 3
    for options, names in (
        ("$top=1;$select=name", whole[:1]),
        (" " * 8_000, whole),  # in no time
        ("$filter=isInline eq true", []),
        (f"$filter=name eq '{whole[1]}';$select=name,size", whole[1:2]),
        (f"$top=9;$filter=startswith(name,'{whole[1]}')", whole[1:2]),
        ("$orderby=name desc;$skip=1", sorted(whole, key=str.casefold, reverse=True)[1:]),
    ):
        for url in (one, "/messages"):
            query = f"{url}?$select=subject,attachments&$expand=attachments({options})"
            shown = (await on_disk.http.get(query)).json()
            [shown] = shown.get("value", [shown])
            assert [each["name"] for each in shown["attachments"]] == names, query
            rest = await pages(on_disk, shown.get("attachments@odata.nextLink", ""))
            after = [each["name"] for page in rest for each in page["value"]]
            assert after == (whole[1:] if "$top=1" in options else [])
    for url in (f"{one}/attachments", one, "/messages"):
        wrong = "foo eq 1" if url.endswith("attachments") else None
        query = f"?$filter={wrong}" if wrong else "?$expand=attachments($filter=foo eq 1)"
        assert (await on_disk.http.get(url + query)).status_code == 400
    found = await on_disk.http.get(
        f"{one}/attachments?$filter=isInline eq false&$count=true&$top=2"
    )
    assert (found.json()["@odata.count"], len(found.json()["value"])) == (3, 2)
