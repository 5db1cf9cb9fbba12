"""Mail folders over HTTP, and moving messages between them, on disk."""

import asyncio
import re
from typing import Any

import pytest

from tests.support.graph_fakes import OnDisk, refused, to
from tests.support.tables import each_row

ROOTS = ["inbox", "drafts", "sentitems", "deleteditems", "junkemail", "archive", "outbox"]


async def made(on_disk: OnDisk, name: str, within: str = "") -> dict[str, Any]:
    path = f"/mailFolders/{within}/childFolders" if within else "/mailFolders"
    answer = await on_disk.http.post(path, json={"displayName": name})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def listed(on_disk: OnDisk, path: str) -> list[str]:
    answer = await on_disk.http.get(path)
    assert answer.status_code == 200, answer.text
    return [one["displayName"] for one in answer.json()["value"]]


async def a_draft(on_disk: OnDisk, **more: object) -> dict[str, Any]:
    message = {"subject": "s", "toRecipients": to("c@a.test"), **more}
    return dict((await on_disk.http.post("/messages", json=message)).json())


async def test_a_folder_lives_its_life(on_disk: OnDisk) -> None:
    http = on_disk.http
    answer = await http.post("/mailFolders", json={"displayName": "Rechnungen", "isHidden": False})
    folder = answer.json()
    owner = "users('alice%40example.test')"
    assert answer.status_code == 201
    assert answer.headers["location"].endswith(f"/mailFolders/{folder['id']}")
    assert folder == {
        "@odata.context": f"https://mail.example.test/v1.0/$metadata#{owner}/mailFolders/$entity",
        "id": folder["id"],
        "displayName": "Rechnungen",
        "parentFolderId": "msgfolderroot",
        "childFolderCount": 0,
        "unreadItemCount": 0,
        "totalItemCount": 0,
        "isHidden": False,
    }
    path = f"/mailFolders/{folder['id']}"
    child = await made(on_disk, "2026/Größe", folder["id"])
    assert child["parentFolderId"] == folder["id"]
    renamed = (await http.patch(path, json={"displayName": "Belege", "id": "x"})).json()
    assert (renamed["id"], renamed["displayName"]) == (folder["id"], "Belege")
    assert renamed["childFolderCount"] == 1
    moved = await http.post(f"{path}/move", json={"DestinationId": "Archive"})
    assert (moved.status_code, moved.json()["parentFolderId"]) == (201, "archive")
    assert await listed(on_disk, "/mailFolders/archive/childFolders") == ["Belege"]
    assert await listed(on_disk, f"{path}/childFolders") == ["2026/Größe"]
    for _ in range(2):
        assert (await http.delete(path)).status_code == 204
    refused(await http.get(path), 404, "ErrorItemNotFound")
    refused(await http.get(f"/mailFolders/{child['id']}"), 404, "ErrorItemNotFound")


async def test_the_root_has_the_folders_at_the_top(on_disk: OnDisk) -> None:
    outer = await made(on_disk, "Outer")
    await made(on_disk, "Inner", outer["id"])
    root = (await on_disk.http.get("/mailFolders/msgFolderRoot")).json()
    assert root["id"] == "msgfolderroot"
    assert root["childFolderCount"] == len(ROOTS) + 1
    every = await on_disk.http.get("/mailFolders?$top=50&includeHiddenFolders=true")
    assert [one["id"] for one in every.json()["value"]] == [*ROOTS, outer["id"]]
    children = "/mailFolders/msgfolderroot/childFolders?$top=50"
    assert await listed(on_disk, children) == await listed(on_disk, "/mailFolders?$top=50")
    assert (await listed(on_disk, "/mailFolders?$filter=displayName eq 'OUTER'")) == ["Outer"]
    page = (await on_disk.http.get("/mailFolders?$top=2&$count=true")).json()
    assert (page["@odata.count"], len(page["value"])) == (len(ROOTS) + 1, 2)
    context = (await on_disk.http.get(f"/mailFolders/{outer['id']}/childFolders")).json()
    assert context["@odata.context"].endswith(f"mailFolders('{outer['id']}')/childFolders")


async def test_a_path_may_name_the_folders_above(on_disk: OnDisk) -> None:
    outer = await made(on_disk, "Outer")
    inner = await made(on_disk, "Inner", outer["id"])
    path = f"/mailFolders/{outer['id']}/childFolders/{inner['id']}"
    assert (await on_disk.http.get(path)).json()["displayName"] == "Inner"
    written = await on_disk.http.post(f"{path}/messages", json={"subject": "here"})
    found = (await on_disk.http.get(f"{path}/messages")).json()["value"]
    assert [one["id"] for one in found] == [written.json()["id"]]
    deep = await made(on_disk, "Deep", f"{outer['id']}/childFolders/{inner['id']}")
    assert deep["parentFolderId"] == inner["id"]


@pytest.fixture
async def two_folders(on_disk: OnDisk) -> tuple[OnDisk, str]:
    """A mailbox with two folders, and the path of one of them."""
    await made(on_disk, "There")
    return on_disk, f"/mailFolders/{(await made(on_disk, 'Other'))['id']}"


@each_row(
    "name, status, code, words",
    [
        ("there", 409, "ErrorFolderExists", "already exists"),
        ("  ", 400, "ErrorInvalidRequest", "visible character"),
        ("a\nb", 400, "ErrorInvalidRequest", r"displayName.*U\+000A"),
        ("字" * 120, 400, "ErrorInvalidRequest", "too long"),
    ],
)
async def test_a_name_that_cannot_be_is_refused(two_folders, name, status, code, words):
    on_disk, path = two_folders
    answer = await on_disk.http.post("/mailFolders", json={"displayName": name})
    text = refused(answer, status, code)
    assert re.search(words, text)
    refused(await on_disk.http.patch(path, json={"displayName": name}), status, code)
    assert len(await listed(on_disk, "/mailFolders?$top=50")) == len(ROOTS) + 2


@each_row("folder", [*ROOTS, "Inbox"])
async def test_well_known_folders_stay(on_disk, folder):
    path = f"/mailFolders/{folder}"
    http = on_disk.http
    refused(await http.patch(path, json={"displayName": "x"}), 403, "ErrorAccessDenied")
    refused(await http.delete(path), 403, "ErrorDeleteDistinguishedFolder")
    refused(await http.post(f"{path}/permanentDelete"), 403, "ErrorDeleteDistinguishedFolder")
    move = await http.post(f"{path}/move", json={"destinationId": "archive"})
    refused(move, 403, "ErrorMoveDistinguishedFolder")


@pytest.mark.parametrize("action", ["move", "copy", "microsoft.graph.move", "Move"])
async def test_a_message_goes_to_another_folder(on_disk, action):
    draft = await a_draft(on_disk)
    folder = await made(on_disk, "Ziel")
    answer = await on_disk.http.post(
        f"/messages/{draft['id']}/{action}", json={"DestinationId": folder["id"]}
    )
    assert answer.status_code == 201
    is_move = action.lower().endswith("move")
    assert (answer.json()["id"] == draft["id"]) == is_move
    assert answer.json()["parentFolderId"] == folder["id"]
    there = await on_disk.http.get(f"/mailFolders/{folder['id']}/messages/{answer.json()['id']}")
    assert there.json()["subject"] == "s"
    first = (await on_disk.http.get(f"/messages/{draft['id']}")).json()
    assert first["parentFolderId"] == (folder["id"] if is_move else "drafts")


async def test_a_message_is_moved_within_the_folder_that_the_path_names(on_disk: OnDisk) -> None:
    draft = await a_draft(on_disk)
    other_folder = f"/mailFolders/inbox/messages/{draft['id']}"
    for action in ("move", "copy", "permanentDelete"):
        answer = await on_disk.http.post(
            f"{other_folder}/{action}", json={"destinationId": "archive"}
        )
        refused(answer, 404, "ErrorItemNotFound")
    right = f"/mailFolders/drafts/messages/{draft['id']}"
    moved = await on_disk.http.post(f"{right}/move", json={"destinationId": "ARCHIVE"})
    assert moved.json()["parentFolderId"] == "archive"
    gone = await on_disk.http.post(f"/messages/{draft['id']}/permanentDelete")
    assert (gone.status_code, gone.content) == (204, b"")
    assert on_disk.files() == []


async def test_of_many_that_make_one_folder_one_succeeds(on_disk: OnDisk) -> None:
    answers = await asyncio.gather(
        *(on_disk.http.post("/mailFolders", json={"displayName": "One"}) for _ in range(8))
    )
    assert sorted(one.status_code for one in answers) == [201] + [409] * 7


# -- copies and counts


async def test_a_folder_is_copied_with_its_messages(on_disk: OnDisk) -> None:
    one, two = await made(on_disk, "One"), await made(on_disk, "Two")
    inner = await made(on_disk, "Inner", one["id"])
    path = f"/mailFolders/{inner['id']}/messages"
    draft = (await on_disk.http.post(path, json={"subject": "s"})).json()
    answer = await on_disk.http.post(
        f"/mailFolders/{one['id']}/copy", json={"DestinationId": two["id"]}
    )
    copy = answer.json()
    assert answer.status_code == 201
    assert copy == one | {"id": copy["id"], "parentFolderId": two["id"], "childFolderCount": 1}
    [below] = (await on_disk.http.get(f"/mailFolders/{copy['id']}/childFolders")).json()["value"]
    [copied] = (await on_disk.http.get(f"/mailFolders/{below['id']}/messages")).json()["value"]
    assert copied["subject"] == "s"
    assert copied["id"] != draft["id"]


async def test_a_copy_that_exceeds_the_quota_is_refused(on_disk: OnDisk) -> None:
    body = {"contentType": "text", "content": "x" * 40_000}
    await a_draft(on_disk, body=body)
    answer = await on_disk.http.post("/mailFolders/drafts/copy", json={"destinationId": "archive"})
    refused(answer, 507, "ErrorQuotaExceeded")
    assert await listed(on_disk, "/mailFolders/archive/childFolders") == []


async def test_folders_are_counted(on_disk: OnDisk) -> None:
    outer = (await made(on_disk, "Outer"))["id"]
    for name in "ab":
        await made(on_disk, name, outer)
    for path, count in (
        ("$count", len(ROOTS) + 1),
        ("$count?$filter=displayName eq 'outer'", 1),
        ("$count?includeHiddenFolders=true", len(ROOTS) + 1),
        ("msgFolderRoot/childFolders/$count", len(ROOTS) + 1),
        (f"inbox/childFolders/{outer}/childFolders/$count", 2),
        (f"{outer}/childFolders/$count?$filter=startswith(displayName,'b')", 1),
    ):
        answer = await on_disk.http.get(f"/mailFolders/{path}")
        assert (answer.status_code, answer.text) == (200, str(count)), path
        assert answer.headers["content-type"].startswith("text/plain")


async def test_an_extended_property_that_a_folder_would_not_keep_is_refused(
    on_disk: OnDisk,
) -> None:
    for kind, given, status in [
        ("single", {"id": "String 0x3613", "value": "IPF.Note"}, 201),
        ("single", {"id": "String 0x3613", "value": "IPF.Task"}, 501),
        ("multi", {"id": "StringArray 0x8001", "value": ["x"]}, 501),
    ]:
        name = f"{kind}ValueExtendedProperties"
        body = {"displayName": f"{kind} {status}", name: [given]}
        answer = await on_disk.http.post("/mailFolders", json=body)
        assert answer.status_code == status, answer.text
        if status == 201:
            path = f"/mailFolders/{answer.json()['id']}"
        else:
            refused(answer, 501, "NotImplemented")
            refused(await on_disk.http.patch(path, json={name: [given]}), 501, "NotImplemented")
