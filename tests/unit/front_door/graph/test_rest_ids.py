"""Ids of messages in the profile strict: they change with the folder, unless a client asks for others."""

import re

import httpx
import pytest

from relay.front_door.graph import graph_request
from tests.support.graph_fakes import OnDisk, refused, to

FORM = re.compile("AAMk[A-Za-z0-9_=-]{148}")
IMMUTABLE = {"prefer": 'relay.strict, IdType="ImmutableId"'}
FILE = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "a.txt", "contentBytes": "eA=="}
DRAFT = {"subject": "s", "toRecipients": to("bob@example.test"), "attachments": [FILE]}


@pytest.fixture
def http(on_disk: OnDisk) -> httpx.AsyncClient:
    on_disk.http.headers["prefer"] = "relay.strict"
    return on_disk.http


async def shown(http: httpx.AsyncClient, path: str, **headers: str) -> list[str]:
    """The ids in a list, each of which names its message."""
    ids = [str(one["id"]) for one in (await http.get(path, headers=headers)).json()["value"]]
    for one in ids:
        assert (await http.get(f"/messages/{one}", headers=headers)).json()["id"] == one
    return ids


async def moved(http: httpx.AsyncClient, message_id: str, folder: str) -> str:
    answer = await http.post(f"/messages/{message_id}/move", json={"destinationId": folder})
    assert answer.headers["location"].endswith(f"/messages/{answer.json()['id']}")
    return str(answer.json()["id"])


async def test_an_id_is_of_a_message_in_one_folder(http: httpx.AsyncClient) -> None:
    made = await http.post("/messages", json=DRAFT)
    assert "ImmutableId" not in made.headers["preference-applied"]
    draft, [own] = made.json()["id"], await shown(http, "/messages", **IMMUTABLE)
    for path in ("/messages", "/mailFolders/Drafts/messages", "/messages?$expand=attachments"):
        assert await shown(http, path) == [draft]
    for form in (draft, own):
        assert await shown(http, f"/messages?$filter=id eq '{form}'") == [draft]
        files = (await http.get(f"/messages/{form}/attachments")).json()
        assert f"/messages('{draft}')/attachments" in files["@odata.context"]
    archived = await moved(http, draft, "archive")
    assert FORM.fullmatch(draft)
    assert FORM.fullmatch(archived)
    for method, path in (
        ("GET", draft),
        ("GET", f"{draft}/$value"),
        ("GET", f"{draft}/attachments"),
        ("PATCH", draft),
        ("DELETE", draft),
        ("POST", f"{draft}/createForward"),
        ("POST", f"{draft}/send"),
        ("GET", f"../mailFolders/inbox/messages/{archived}"),
    ):
        answer = await http.request(method, f"/messages/{path}", json={})
        refused(answer, 404, "ErrorItemNotFound")
        assert answer.json()["error"]["innerError"]["detail"]
    assert await shown(http, f"/messages?$filter=id eq '{draft}'") == []
    assert await shown(http, "/messages", **IMMUTABLE) == [own]
    ids = [archived, own, "inbox", own[::-1]]
    for source, target, wanted in (
        ("restId", "restImmutableEntryId", [own, own, *ids[2:]]),
        ("restImmutableEntryId", "restId", [archived, archived, "inbox", None]),
    ):
        types = {"sourceIdType": source, "targetIdType": target}
        answer = await http.post("/translateExchangeIds", json={"inputIds": ids, **types})
        assert [one.get("targetId") for one in answer.json()["value"]] == wanted
    query = {"entityTypes": ["message"], "query": {"queryString": "s"}}
    answer = await http.post("../search/query", json={"requests": [query]})
    [hit] = answer.json()["value"][0]["hitsContainers"][0]["hits"]
    assert (hit["hitId"], hit["resource"]["id"]) == (archived, archived)
    assert await moved(http, own, "drafts") == draft
    parts = [
        {"id": one, "method": "GET", "url": f"/me/messages/{own}", "headers": headers}
        for one, headers in ((draft, {}), (own, IMMUTABLE))
    ]
    for one in (await http.post("/../$batch", json={"requests": parts})).json()["responses"]:
        assert one["body"]["id"] == one["id"]


@pytest.mark.parametrize("path", ["/mailFolders/drafts/messages/delta", "/messages/delta"])
async def test_a_delta_query_removes_the_old_id(http: httpx.AsyncClient, path: str) -> None:
    first, second = [(await http.post("/messages", json=DRAFT)).json()["id"] for _ in "ab"]
    page = (await http.get(path)).json()
    assert {one["id"] for one in page["value"]} == {first, second}
    archived = await moved(http, first, "archive")
    await http.post(f"/messages/{second}/permanentDelete")
    found = (await http.get(page["@odata.deltaLink"])).json()["value"]
    elsewhere = {} if "drafts" in path else {archived: False}
    assert {one["id"]: "@removed" in one for one in found} == {
        first: True,
        second: True,
        **elsewhere,
    }


@pytest.mark.parametrize("query", ["", "?$expand=attachments"])
async def test_a_large_message_is_on_the_page_of_its_old_id(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """A page that ended between them would have itself as the next one."""
    old = (await http.post("/messages", json=DRAFT)).json()["id"]
    link = (await http.get(f"/messages/delta{query}")).json()["@odata.deltaLink"]
    monkeypatch.setattr(graph_request, "PAGE_BYTES_MAX", 500)
    both = [old, await moved(http, old, "archive")]
    page = (await http.get(link)).json()
    assert [one["id"] for one in page["value"]] == both, page
    assert "@odata.deltaLink" in page
