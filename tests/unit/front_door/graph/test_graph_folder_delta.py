"""Delta queries of mail folders, on disk."""

import random
from typing import Any

import pytest

from relay.store.mailbox.index import change_feed
from tests.support.graph_fakes import OnDisk, refused
from tests.unit.front_door.graph.test_graph_delta import Client

FOLDERS = "/mailFolders/delta"
ROOTS = ["inbox", "drafts", "sentitems", "deleteditems", "junkemail", "archive", "outbox"]


def client_of(on_disk: OnDisk, url: str = FOLDERS) -> Client:
    return Client(on_disk, url)


async def made(on_disk: OnDisk, name: str, within: str = "msgfolderroot") -> str:
    path = f"/mailFolders/{within}/childFolders"
    answer = await on_disk.http.post(path, json={"displayName": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def removed(folder_id: str) -> dict[str, Any]:
    return {"id": folder_id, "@removed": {"reason": "deleted"}}


def by_id(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in items}


async def test_the_first_round_has_the_folders_of_all_levels(on_disk: OnDisk) -> None:
    outer = await made(on_disk, "Outer")
    inner = await made(on_disk, "Inner", outer)
    client = Client(on_disk, f"{FOLDERS}?$top=4&includeHiddenFolders=true")
    assert await client.page()
    [items] = client.pages
    assert len(items) == 4
    assert sorted(one["id"] for one in [*items, *await client.round()]) == sorted(
        [*ROOTS, outer, inner]
    )
    shown = (await on_disk.http.get(f"/mailFolders/{inner}")).json()
    del shown["@odata.context"]
    assert client.copy[inner] == shown
    assert client.copy[inner]["parentFolderId"] == outer
    assert await client.round() == []


async def test_any_sequence_of_changes_keeps_clients_equal_to_the_mailbox(on_disk: OnDisk) -> None:
    chance = random.Random(11)
    folders = [await made(on_disk, "First")]
    clients = [client_of(on_disk), Client(on_disk, f"{FOLDERS}?$top=2")]
    for step in range(40):
        folder, other = chance.choice(folders), chance.choice(folders)
        match chance.choice(("new", "rename", "move", "delete", "read", "read")):
            case "new":
                folders.append(await made(on_disk, f"New{step}", folder))
            case "rename":
                name = {"displayName": f"Name{step}"}
                await on_disk.http.patch(f"/mailFolders/{folder}", json=name)
            case "move":
                where = {"destinationId": other}
                await on_disk.http.post(f"/mailFolders/{folder}/move", json=where)
            case "delete" if len(folders) > 3:
                await on_disk.http.post(f"/mailFolders/{folder}/permanentDelete")
                answers = [(one, await on_disk.http.get(f"/mailFolders/{one}")) for one in folders]
                folders = [one for one, answer in answers if answer.status_code == 200]
                folders = folders or [await made(on_disk, f"Again{step}")]
            case _:
                await chance.choice(clients).page()
    first = client_of(on_disk)
    await first.round()
    assert set(folders) <= set(first.copy)
    for client in clients:
        await client.round()
        await client.round()
        assert client.copy == first.copy


async def test_a_link_of_messages_is_gone_for_folders_and_the_other_way_round(
    on_disk: OnDisk,
) -> None:
    folders, messages = client_of(on_disk), "/mailFolders/inbox/messages/delta"
    await folders.round()
    link = (await on_disk.http.get(messages)).json()["@odata.deltaLink"]
    token = link.partition("?")[2]
    refused(await on_disk.http.get(f"{FOLDERS}?{token}"), 410, "syncStateNotFound")
    token = folders.url.partition("?")[2]
    answer = await on_disk.http.get(f"{messages}?{token}")
    refused(answer, 410, "syncStateNotFound")
    assert (await on_disk.http.get(answer.headers["location"])).status_code == 200


async def test_removed_folders_are_remembered_up_to_a_maximum(
    on_disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed, "REMOVED_FOLDERS_KEPT", 2)
    ids = [await made(on_disk, f"F{number}") for number in range(4)]
    early, late = client_of(on_disk), client_of(on_disk)
    await early.round()
    await on_disk.http.post(f"/mailFolders/{ids[0]}/permanentDelete")
    await late.round()
    for folder_id in ids[1:3]:
        await on_disk.http.post(f"/mailFolders/{folder_id}/permanentDelete")
    assert by_id(await late.round()) == by_id([removed(ids[1]), removed(ids[2])])
    refused(await on_disk.http.get(early.url), 410, "syncStateNotFound")
    assert len(await client_of(on_disk).round()) == len(ROOTS) + 1
