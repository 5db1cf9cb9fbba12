"""If-Match: a message is changed, moved, deleted or sent only in the version that the client names."""

from itertools import cycle

import pytest

from tests.support.graph_fakes import OnDisk, refused, to

MIME = "UzogbWltZQ0KDQpiDQo="
CALLS = {
    "PATCH": ("PATCH", "", {"subject": "other"}),
    "PATCH of nothing": ("PATCH", "", {}),
    "DELETE": ("DELETE", "", None),
    "move": ("POST", "/move", {"destinationId": "archive"}),
    "copy": ("POST", "/copy", {"destinationId": "archive"}),
    "permanentDelete": ("POST", "/permanentDelete", None),
    "send": ("POST", "/send", None),
    "PUT": ("PUT", "/$value", MIME),
}


@pytest.fixture
async def draft(on_disk: OnDisk) -> dict:
    """A draft in its second version, as the client read it last."""
    made = await on_disk.http.post("/messages", json={"subject": "s", "toRecipients": to("b@b.c")})
    path = f"/messages/{made.json()['id']}"
    changed = await on_disk.http.patch(path, json={"subject": "second"})
    return changed.json() | {"before": made.json()["@odata.etag"]}


async def ask(on_disk: OnDisk, draft: dict, call: str, if_match: str):
    method, path, body = CALLS[call]
    headers = {"if-match": if_match}
    given = {"json": body} if isinstance(body, dict) else {"content": body}
    if isinstance(body, str):
        headers["content-type"] = "text/plain"
    return await on_disk.http.request(
        method, f"/messages/{draft['id']}{path}", headers=headers, **given
    )


async def test_another_version_is_left_alone(on_disk, draft):
    before = on_disk.files()
    for call in CALLS:
        answer = await ask(on_disk, draft, call, draft["before"])
        assert draft["changeKey"] in refused(answer, 412, "ErrorIrresolvableConflict"), call
    assert on_disk.files() == before


@pytest.mark.parametrize(
    ("call", "form"),
    [*zip(CALLS, cycle(['W/"{}"', '"{}"', "{}", '"other", W/"{}"', "*"]), strict=False)],
)
async def test_if_match_with_the_current_version_succeeds(on_disk, draft, call, form):
    answer = await ask(on_disk, draft, call, form.replace("{}", draft["changeKey"]))
    assert answer.status_code < 300, answer.text


async def test_flags_and_folder_make_another_version(on_disk, draft):
    path = f"/messages/{draft['id']}"
    read = await on_disk.http.patch(path, json={"isRead": False})
    flagged = await on_disk.http.patch(path, json={"flag": {"flagStatus": "flagged"}})
    moved = await on_disk.http.post(f"{path}/move", json={"destinationId": "archive"})
    seen = [draft, read.json(), flagged.json(), moved.json()]
    assert len({one["@odata.etag"] for one in seen}) == len(seen)


async def test_the_folder_in_the_path_is_checked_when_it_acts(on_disk, draft):
    for call in ("DELETE", "move", "copy", "permanentDelete"):
        method, path, body = CALLS[call]
        where = f"/mailFolders/archive/messages/{draft['id']}{path}"
        refused(await on_disk.http.request(method, where, json=body), 404, "ErrorItemNotFound")


async def test_rescheduling_a_message_that_is_not_a_draft_is_a_conflict(on_disk, draft):
    [file] = [path for path in on_disk.files() if path.parent.parent.name == ".Drafts"]
    archive = on_disk.root / "example.test/alice/.Archive/cur"
    file.rename(archive / file.name.replace(":2,DS", ":2,S"))
    path = f"/messages/{draft['id']}"
    for ids in ("SystemTime 0x3FEF", "SystemTime 0x000F"):
        given = {"singleValueExtendedProperties": [{"id": ids, "value": None}]}
        refused(await on_disk.http.patch(path, json=given), 409, "ErrorIrresolvableConflict")
    refused(await on_disk.http.patch(path, json={"subject": "x"}), 400, "ErrorInvalidPropertySet")
