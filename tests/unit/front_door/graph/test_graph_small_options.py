"""$expand=childFolders, uniqueBody, contains(body/content,…), $select=*, $format, odata.metadata=none."""

from typing import Any

import pytest

from tests.support.graph_fakes import OnDisk
from tests.support.tables import each_row

REPLY = (
    '<html><body><p>Yes.</p><hr tabindex="-1"><div id="divRplyFwdMsg">From: b</div></body></html>'
)
SIZE = "$expand=singleValueExtendedProperties($filter=id eq 'Long 0xe08' or id eq 'String 0x3613')"


async def read(on_disk: OnDisk, path: str, status: int = 200, **headers: str) -> Any:
    answer = await on_disk.http.get(path, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.fixture
async def reply(on_disk: OnDisk) -> str:
    """The path of a draft that quotes a message."""
    body = {"contentType": "html", "content": REPLY}
    created = await on_disk.http.post("/messages", json={"subject": "RE: x", "body": body})
    return f"/messages/{created.json()['id']}"


async def test_child_folders_are_expanded_ten_of_each(on_disk: OnDisk) -> None:
    for number in range(11):
        name = {"displayName": f"{number:02}"}
        answer = await on_disk.http.post("/mailFolders/archive/childFolders", json=name)
        assert answer.status_code == 201
    folders = (await read(on_disk, "/mailFolders?$top=50&$expand=childFolders"))["value"]
    found = {one["id"]: one["childFolders"] for one in folders}
    assert [one["displayName"] for one in found.pop("archive")] == [
        f"{one:02}" for one in range(10)
    ]
    assert not any(found.values())
    [link] = [one["childFolders@odata.nextLink"] for one in folders if one["childFolders"]]
    rest = await read(on_disk, link)
    assert [one["displayName"] for one in rest["value"]] == ["10"]
    selected = "$select=displayName&$expand=childFolders($select=displayName)"
    one = await read(on_disk, f"/mailFolders/archive?{selected}")
    assert set(one["childFolders"][0]) == {"id", "displayName"}
    top = await read(on_disk, f"/mailFolders/msgfolderroot?$expand=childFolders,{SIZE[8:]}")
    assert "inbox" in [one["id"] for one in top["childFolders"]]
    page = await read(on_disk, "/mailFolders?$top=2&$expand=childFolders")
    assert "childFolders" in (await read(on_disk, page["@odata.nextLink"]))["value"][0]


@each_row(
    "expand",
    ["parentFolder", "childFolders($select=x)", "attachments", "childFolders,childFolders"],
)
async def test_what_folders_do_not_expand_is_a_400(on_disk: OnDisk, expand: str) -> None:
    assert (
        "$expand"
        in (await read(on_disk, f"/mailFolders?$expand={expand}", 400))["error"]["message"]
    )


async def test_extended_properties_of_folders(on_disk: OnDisk, reply: str) -> None:
    one = await read(on_disk, f"/mailFolders/drafts?$select=sizeInBytes&{SIZE}")
    assert one["sizeInBytes"] > 0
    assert one["singleValueExtendedProperties"] == [
        {"id": "Long 0x0E08", "value": str(one["sizeInBytes"])},
        {"id": "String 0x3613", "value": "IPF.Note"},
    ]


async def test_the_unique_body_needs_select(on_disk: OnDisk, reply: str) -> None:
    assert "uniqueBody" not in await read(on_disk, reply)
    unique = "<html><body><p>Yes.</p></body></html>"
    shown = (await read(on_disk, f"{reply}?$select=uniqueBody"))["uniqueBody"]
    assert shown == {"contentType": "html", "content": unique}
    as_text = {"prefer": 'outlook.body-content-type="text"'}
    shown = (await read(on_disk, f"{reply}?$select=body,uniqueBody", **as_text))["uniqueBody"]
    assert (shown["contentType"], shown["content"].strip()) == ("text", "Yes.")


@each_row("condition, count", [("'yes'", 1), ("'Ye'", 1), ("'From: b'", 1), ("'absent'", 0)])
async def test_words_of_the_text_are_filtered_by(
    on_disk: OnDisk, reply: str, condition: str, count: int
) -> None:
    query = f"$filter=isRead eq true and contains(body/content,{condition})&$count=true"
    assert (await read(on_disk, f"/messages?{query}"))["@odata.count"] == count


async def test_all_properties_may_be_selected(on_disk: OnDisk, reply: str) -> None:
    whole = await read(on_disk, reply)
    assert await read(on_disk, f"{reply}?$select=*") == whole
    assert "webLink" not in whole, "there are no pages"
    more = await read(on_disk, f"{reply}?$select=*,internetMessageHeaders")
    assert {**more, **whole} == more
    assert "internetMessageHeaders" in more


async def test_a_byte_order_mark_before_json_is_ignored(on_disk: OnDisk) -> None:
    kind = {"content-type": "application/json"}
    answer = await on_disk.http.post(
        "/messages", content=b'\xef\xbb\xbf{"subject": "x"}', headers=kind
    )
    assert answer.json()["subject"] == "x"


async def test_without_metadata(on_disk: OnDisk, reply: str) -> None:
    none = {"accept": "application/json; ODATA.metadata=none"}
    page = await read(on_disk, "/messages?$top=1&$count=true&$expand=attachments", **none)
    assert set(page) == {"@odata.count", "value"}
    assert not [name for name in page["value"][0] if "@" in name]
    answer = await on_disk.http.get(reply, headers=none)
    assert answer.headers["content-type"] == "application/json;odata.metadata=none"
    assert "W/" in answer.headers["etag"]
    links = await read(on_disk, "/mailFolders?$top=1", **none)
    assert set(links) == {"value", "@odata.nextLink"}
