"""Small options and resources: $expand=childFolders, uniqueBody, $select=*, $metadata, time zones."""

import json
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from relay.front_door.graph import graph_request
from relay.front_door.graph.json_values import PROPERTIES_OF_TYPES
from relay.front_door.graph.serializer import FOLDER_PROPERTIES, MESSAGE_PROPERTIES
from tests.support.graph_fakes import OnDisk, post_mime, refused, to
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
    [
        *("parentFolder", "childFolders($select=x)", "attachments", "childFolders,childFolders"),
        *("childFolders($top=0)", "childFolders($filter=x eq 1)", "childFolders($orderby=x)"),
        "childFolders($expand=childFolders($expand=childFolders))",
        *("childFolders($select=id", "childFolders)", "childFolders($search=x)"),
    ],
)
async def test_what_folders_do_not_expand_is_a_400(on_disk: OnDisk, expand: str) -> None:
    await read(on_disk, f"/mailFolders?$expand={expand}", 400)


@pytest.fixture
async def tree(on_disk: OnDisk) -> OnDisk:
    """A mailbox with three folders in Archive, and three in each of these."""
    for outer in "abc":
        folder = {"displayName": outer}
        answer = await on_disk.http.post("/mailFolders/archive/childFolders", json=folder)
        for inner in "xyz":
            path = f"/mailFolders/{answer.json()['id']}/childFolders"
            folder = {"displayName": f"{outer}{inner} ('1'); 2"}
            assert (await on_disk.http.post(path, json=folder)).status_code == 201
    return on_disk


async def below(on_disk: OnDisk, resource: dict[str, Any]) -> list[str]:
    """The names of the folders in a page or a folder, and in the pages that it links."""
    names: list[str] = []
    for folder in resource.get("value", []) + resource.get("childFolders", []):
        names += [folder["displayName"][:2], *(await below(on_disk, folder))]
    for name in ("@odata.nextLink", "childFolders@odata.nextLink"):
        if link := resource.get(name):
            names += await below(on_disk, await read(on_disk, link))
    return names


AY = "startswith(displayName,'ay (''1''); 2')"
ALL = "a ax ay az b bx by bz c cx cy cz"


@each_row(
    "options, expected",
    [
        ("($top=9999)&$top=9999", "a b c"),
        ("($top=2;$orderby=displayName desc)", "c b a"),
        ("($filter=displayName ne 'b';$select=displayName)", "a c"),
        ("($expand=childFolders)", ALL),
        ("($top=1;$expand=childFolders($top=1))", ALL),
        (f"($filter=displayName eq 'a';$expand=childFolders($filter={AY};$top=2))", "a ay"),
    ],
)
async def test_child_folders_have_options(tree: OnDisk, options: str, expected: str) -> None:
    page = await read(tree, f"/mailFolders?$skip=5&$expand=childFolders{options}")
    assert " ".join(await below(tree, page)) == f"Ar {expected} Ou"


async def test_the_octets_of_a_page_are_those_of_expanded_folders_too(
    tree: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_request, "PAGE_BYTES_MAX", 2600)
    url = "/mailFolders?$top=9999&$expand=childFolders($top=9999;$expand=childFolders($top=9999))"
    pages = [await read(tree, url)]
    assert "Ar " + ALL in " ".join(await below(tree, pages[0]))
    while link := pages[-1].get("@odata.nextLink"):
        pages.append(await read(tree, link))
    assert all(len(json.dumps(page)) <= 2600 for page in pages), pages


async def test_extended_properties_of_folders(on_disk: OnDisk, reply: str) -> None:
    one = await read(on_disk, f"/mailFolders/drafts?$select=sizeInBytes&{SIZE}")
    assert one["sizeInBytes"] > 0
    assert one["singleValueExtendedProperties"] == [
        {"id": "Long 0xe08", "value": str(one["sizeInBytes"])},
        {"id": "String 0x3613", "value": "IPF.Note"},
    ]
    wanted = "singleValueExtendedProperties/Any(ep: ep/id eq 'Integer {}' and cast(ep/value, Edm.Int32) lt 10)"
    assert (
        len((await read(on_disk, f"/mailFolders?$filter={wanted.format('0x3602')}"))["value"]) == 7
    )
    await read(on_disk, f"/mailFolders?$filter={wanted.format('0x3604')}", 400)


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


async def test_the_schema_needs_no_token_and_has_each_property(on_disk: OnDisk) -> None:
    url = "https://mail.example.test/v1.0/$metadata"
    answer = await on_disk.http.get(url, headers={"authorization": ""})
    assert answer.headers["content-type"] == "application/xml"
    schema = ET.fromstring(answer.text)
    space = "{http://docs.oasis-open.org/odata/ns/edm}"
    types = {
        one.get("Name"): one
        for kind in ("EntityType", "ComplexType")
        for one in schema.iter(space + kind)
    }

    def properties(name: str) -> set[str | None]:
        base = (types[name].get("BaseType") or "").removeprefix("graph.")
        return {one.get("Name") for one in types[name]} | (properties(base) if base else set())

    for name in types.keys() & PROPERTIES_OF_TYPES.keys():
        # open extensions are not implemented
        assert _names(PROPERTIES_OF_TYPES[name]) - {"extensions"} <= properties(str(name)), name
    assert set(MESSAGE_PROPERTIES) - {"@odata.etag"} <= properties("message")
    assert set(FOLDER_PROPERTIES) <= properties("mailFolder")


def _names(text: str) -> set[str]:
    return {one.partition(":")[0] for one in text.split()}


async def test_time_zones_and_well_known_names(on_disk: OnDisk) -> None:
    path = "/outlook/supportedTimeZones(TimeZoneStandard=microsoft.graph.timeZoneStandard'{}')"
    for standard, alias in (("Iana", "Europe/Berlin"), ("Windows", "W. Europe Standard Time")):
        zones = (await read(on_disk, path.format(standard)))["value"]
        assert {"alias": alias, "displayName": "W. Europe Standard Time (Europe/Berlin)"} in zones
    assert "wellKnownName" not in await read(on_disk, "/mailFolders/inbox")
    beta = "https://mail.example.test/beta/me/mailFolders"
    assert (await read(on_disk, f"{beta}/inbox"))["wellKnownName"] == "inbox"
    made = (await on_disk.http.post("/mailFolders", json={"displayName": "x"})).json()
    assert (await read(on_disk, f"{beta}/{made['id']}?$select=wellKnownName"))[
        "wellKnownName"
    ] is None


async def test_what_graph_does_with_another_type_or_flags_is_not_done_silently(
    on_disk: OnDisk, reply: str
) -> None:
    event = {
        "@odata.type": "#microsoft.graph.eventMessage",
        "subject": "x",
        "toRecipients": to("b@b.test"),
    }
    refused(await on_disk.http.post("/sendMail", json={"message": event}), 501, "NotImplemented")
    mime = await post_mime(on_disk.http, "/messages", b"Subject: x\r\n\r\nx\r\n")
    for draft in (reply, f"/messages/{mime.json()['id']}"):
        for value, status in (("1", 400), ("9", 200)):
            flags = {"singleValueExtendedProperties": [{"id": "Integer 0x0E07", "value": value}]}
            answer = await on_disk.http.patch(draft, json=flags)
            assert answer.status_code == status, answer.text
