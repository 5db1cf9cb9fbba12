"""The Prefer header: what is applied, what is answered, and what is ignored."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest

from relay.front_door.graph import attachments, preferred_body
from tests.support.graph_fakes import OnDisk, refused

HTML = {"contentType": "html", "content": "<h1>Title</h1><p>One &amp; <b>two</b></p>"}
TEXT = {"contentType": "text", "content": "a < b\n  & c"}
SHOWN_AS_HTML = '<html><head></head><body><div class="PlainText">a &lt; b<br>\n &nbsp;&amp; c</div></body></html>'
FILE = {
    "@odata.type": "#microsoft.graph.fileAttachment",
    "name": "a.txt",
    "contentBytes": "aGVsbG8=",
}


async def drafted(on_disk: OnDisk, body: dict[str, str]) -> str:
    made = await on_disk.http.post("/messages", json={"subject": "s", "body": body})
    return str(made.json()["id"])


def preferring(value: str) -> dict[str, str]:
    return {"prefer": value}


PATHS = {
    "message": "/messages/{}",
    "expanded": "/messages/{}?$expand=attachments",
    "list": "/messages",
    "expanded list": "/messages?$expand=attachments",
    "folder": "/mailFolders/drafts/messages?$select=body",
    "delta": "/mailFolders/drafts/messages/delta",
}


@pytest.mark.parametrize(
    ("stored", "wanted", "shown"),
    [
        (HTML, "text", {"contentType": "text", "content": "Title\n\nOne & two"}),
        (HTML, "HTML", HTML),
        (TEXT, "html", {"contentType": "html", "content": SHOWN_AS_HTML}),
        (TEXT, "text", TEXT),
    ],
)
async def test_the_type_of_bodies(
    on_disk: OnDisk, stored: dict[str, str], wanted: str, shown: dict[str, str]
) -> None:
    identity = await drafted(on_disk, stored)
    header = preferring(f'outlook.body-content-type="{wanted}"')
    for path in PATHS.values():
        answer = await on_disk.http.get(path.format(identity), headers=header)
        found = answer.json()
        [message] = found.get("value", [found])
        body = message["body"]
        assert (body["contentType"], body["content"].strip()) == (
            shown["contentType"],
            shown["content"],
        )
        assert (
            answer.headers["preference-applied"] == f'outlook.body-content-type="{wanted.lower()}"'
        )
        stored_now = (await on_disk.http.get(f"/messages/{identity}")).json()
        assert stored_now["body"] == stored
        assert message.get("bodyPreview", stored_now["bodyPreview"]) == stored_now["bodyPreview"]


async def test_all_that_are_applied_are_in_one_field(on_disk: OnDisk) -> None:
    await drafted(on_disk, HTML)
    wanted = [
        ("prefer", 'IdType="ImmutableId", outlook.body-content-type="text"'),
        ("prefer", "odata.maxpagesize=5, outlook.allow-unsafe-html, respond-async"),
    ]
    answer = await on_disk.http.get("/messages", headers=wanted)
    assert [one.split(", ") for one in answer.headers.get_list("preference-applied")] == [
        [
            "odata.maxpagesize=5",
            'outlook.body-content-type="text"',
            "outlook.allow-unsafe-html",
            'IdType="ImmutableId"',
        ]
    ]


CHANGES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "message": ("PATCH", "/messages/{id}", {"subject": "new"}),
    "attachment": ("POST", "/messages/{id}/attachments", FILE),
    "move": ("POST", "/messages/{id}/move", {"destinationId": "archive"}),
    "copy": ("POST", "/messages/{id}/copy", {"destinationId": "archive"}),
    "new folder": ("POST", "/mailFolders", {"displayName": "A"}),
    "folder": ("PATCH", "/mailFolders/{folder}", {"displayName": "B"}),
    "settings": ("PATCH", "/mailboxSettings", {"timeZone": "Asia/Tokyo"}),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wanted", ["minimal", "representation"])
async def test_a_change_without_or_with_a_body(on_disk: OnDisk, change: str, wanted: str) -> None:
    identity = await drafted(on_disk, HTML)
    folder = (await on_disk.http.post("/mailFolders", json={"displayName": "F"})).json()["id"]
    method, path, body = CHANGES[change]
    path = path.format(id=identity, folder=folder)
    header = preferring(f"return={wanted}")
    answer = await on_disk.http.request(method, path, json=body, headers=header)
    assert answer.headers.get("preference-applied") in (f"return={wanted}", None)
    if wanted == "representation":
        assert answer.status_code in (200, 201)
        assert answer.json()
        return
    assert (answer.status_code, answer.content) == (204, b"")
    assert ("location" in answer.headers) == (method == "POST")
    entity = answer.headers["odata-entityid"].removeprefix("https://mail.example.test")
    assert (await on_disk.http.get("http://h" + entity)).status_code == 200


# -- If-None-Match, and If-Match of folders and attachments


@pytest.mark.parametrize("query", ["", "?$expand=attachments", "?$select=subject"])
async def test_a_message_that_the_client_has_is_not_sent_again(on_disk: OnDisk, query: str) -> None:
    identity = await drafted(on_disk, HTML)
    path = f"/messages/{identity}{query}"
    first = await on_disk.http.get(path)
    etag = first.headers["etag"]
    assert etag == first.json()["@odata.etag"]
    for known in (etag, f'"x", {etag}', "*"):
        answer = await on_disk.http.get(path, headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    await on_disk.http.patch(f"/messages/{identity}", json={"isRead": False})
    answer = await on_disk.http.get(path, headers={"if-none-match": etag})
    assert (answer.status_code, answer.headers["etag"]) == (200, answer.json()["@odata.etag"])
    answer = await on_disk.http.get(path, headers={"if-none-match": "a b"})
    assert "If-None-Match: found 'a b'" in refused(answer, 400, "BadRequest")


FOLDER_CHANGES: dict[str, tuple[str, str, dict[str, str] | None]] = {
    "rename": ("PATCH", "", {"displayName": "B"}),
    "move": ("POST", "/move", {"destinationId": "archive"}),
    "delete": ("DELETE", "", None),
    "remove": ("POST", "/permanentDelete", None),
}


@pytest.mark.parametrize("change", FOLDER_CHANGES)
async def test_a_folder_is_changed_only_in_the_version_of_if_match(
    on_disk: OnDisk, change: str
) -> None:
    made = await on_disk.http.post("/mailFolders", json={"displayName": "A"})
    path = f"/mailFolders/{made.json()['id']}"
    method, action, body = FOLDER_CHANGES[change]
    await on_disk.http.patch(path, json={"displayName": "A2"})
    answer = await on_disk.http.request(
        method, path + action, json=body, headers={"if-match": made.headers["etag"]}
    )
    now = await on_disk.http.get(path)
    assert now.headers["etag"] in refused(answer, 412, "ErrorIrresolvableConflict")
    assert now.json()["displayName"] == "A2"
    answer = await on_disk.http.request(
        method, path + action, json=body, headers={"if-match": now.headers["etag"]}
    )
    assert answer.status_code < 300, answer.text


@pytest.mark.parametrize("change", ["add", "remove", "upload"])
async def test_attachments_are_changed_only_in_the_version_of_if_match(
    on_disk: OnDisk, change: str
) -> None:
    http, identity = on_disk.http, await drafted(on_disk, HTML)
    path = f"/messages/{identity}/attachments"
    attached = (await http.post(path, json=FILE)).json()["id"]
    before = (await http.get(f"/messages/{identity}")).json()["@odata.etag"]
    await http.patch(f"/messages/{identity}", json={"subject": "new"})
    now = (await http.get(f"/messages/{identity}")).json()["@odata.etag"]
    upload = {"AttachmentItem": {"attachmentType": "file", "name": "b", "size": 5}}
    method, url, body = {
        "add": ("POST", path, FILE),
        "remove": ("DELETE", f"{path}/{attached}", None),
        "upload": ("POST", f"{path}/createUploadSession", upload),
    }[change]
    answer = await http.request(method, url, json=body, headers={"if-match": before})
    refused(answer, 412, "ErrorIrresolvableConflict")
    assert len((await http.get(path)).json()["value"]) == 1
    answer = await http.request(method, url, json=body, headers={"if-match": now})
    assert answer.status_code < 300, answer.text


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", ["message", "expanded", "list", "expanded list", "delta"])
async def test_few_bodies_are_converted_at_a_time(
    on_disk: OnDisk, monkeypatch: pytest.MonkeyPatch, path: str, is_streamed: bool
) -> None:
    if is_streamed:
        monkeypatch.setattr(attachments, "LARGE_BYTES", -1)
    path = PATHS[path].format(await drafted(on_disk, HTML))
    one_too_many, crowds = threading.Barrier(2, timeout=0.2), []

    def converted(html: str) -> str:
        with suppress(threading.BrokenBarrierError):
            crowds.append(one_too_many.wait())
        return html

    monkeypatch.setitem(preferred_body._CONVERT, "text", converted)
    header = preferring('outlook.body-content-type="text"')
    requests = (on_disk.http.get(path, headers=header) for _ in range(6))
    answers = await asyncio.gather(*requests)
    shown = [answer.json().get("value", [answer.json()])[0] for answer in answers]
    assert [one["body"]["contentType"] for one in shown] == ["text"] * len(answers)
    assert crowds == []
