"""referenceAttachment: a link that is kept, shown, and sent as a list of URIs."""

import email
import email.policy
from typing import Any

from tests.support.graph_fakes import OnDisk, to

KIND = "#microsoft.graph.referenceAttachment"
LINK = {"@odata.type": KIND, "name": "Übersicht & Q4", "sourceUrl": "https://files.example/b?x=1,2"}
FULL = LINK | {
    "providerType": "oneDriveBusiness",
    "permission": "OrganizationEdit",
    "isFolder": "true",
    "previewUrl": "https://files.example/p",
    "thumbnailUrl": None,
}


async def drafted(on_disk: OnDisk, *attachments: dict[str, Any]) -> str:
    draft = {"subject": "s", "toRecipients": to("b@b.test"), "attachments": attachments}
    made = await on_disk.http.post("/messages", json=draft)
    assert made.status_code == 201, made.text
    return f"/messages/{made.json()['id']}"


async def test_a_link_is_kept_and_shown(on_disk: OnDisk) -> None:
    http, path = on_disk.http, await drafted(on_disk, LINK)
    added = await http.post(f"{path}/attachments", json=FULL)
    assert added.status_code == 201
    shown = added.json()
    expected = FULL | {"permission": "organizationEdit", "isFolder": True}
    assert shown | expected == shown
    assert "contentBytes" not in shown
    await http.patch(path, json={"subject": "new"})
    [first, second] = (await http.get(f"{path}/attachments")).json()["value"]
    assert (first["sourceUrl"], first["providerType"], first["isFolder"]) == (
        LINK["sourceUrl"],
        "other",
        False,
    )
    assert {**shown, "@odata.context": 0} == {
        **second,
        "@odata.context": 0,
        "lastModifiedDateTime": shown["lastModifiedDateTime"],
    }
    expanded = (await http.get(f"{path}?$expand=attachments")).json()
    assert [one["@odata.type"] for one in expanded["attachments"]] == [KIND, KIND]
    assert expanded["hasAttachments"] is True


async def test_select_of_a_link(on_disk: OnDisk) -> None:
    path = await drafted(on_disk, LINK)
    for select in ("name,sourceUrl", "name,microsoft.graph.referenceAttachment/sourceUrl"):
        [one] = (await on_disk.http.get(f"{path}/attachments?$select={select}")).json()["value"]
        assert {name for name in one if "@" not in name} == {"id", "name", "sourceUrl"}


async def test_the_mime_has_a_list_of_uris(on_disk: OnDisk) -> None:
    path = await drafted(on_disk, FULL)
    mime = (await on_disk.http.get(f"{path}/$value")).content
    message = email.message_from_bytes(mime, policy=email.policy.default)
    [part] = message.iter_attachments()
    assert (part.get_content_type(), part.get_filename()) == ("text/uri-list", "Übersicht & Q4")
    lines = part.get_payload(decode=True).decode("ascii").splitlines()
    assert lines[-1] == LINK["sourceUrl"]
    assert all(line.startswith("# ") for line in lines[:-1])
    copied = await on_disk.http.put(
        f"{path}/$value", content=mime, headers={"content-type": "message/rfc822"}
    )
    assert copied.status_code == 200
    [shown] = (await on_disk.http.get(f"{path}/attachments")).json()["value"]
    assert (shown["@odata.type"], shown["sourceUrl"]) == (KIND, LINK["sourceUrl"])


async def test_a_list_of_uris_that_a_client_attaches_stays_a_file(on_disk: OnDisk) -> None:
    file = {
        "@odata.type": "#microsoft.graph.fileAttachment",
        "name": "links",
        "contentType": "text/uri-list",
        "contentBytes": "aHR0cHM6Ly9hLnRlc3QvDQo=",
    }
    path = await drafted(on_disk, file)
    [shown] = (await on_disk.http.get(f"{path}/attachments")).json()["value"]
    assert (shown["@odata.type"], shown["contentBytes"]) == (
        file["@odata.type"],
        file["contentBytes"],
    )
