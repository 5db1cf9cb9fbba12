"""Delta queries of messages, on disk: rounds, links, changes by other programs, and their cost."""

import base64
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from relay.front_door.graph.delta import TOKEN_CHARACTERS_MAX
from tests.support.graph_fakes import OnDisk, refused
from tests.support.tables import each_row

INBOX = "/mailFolders/inbox/messages/delta"
ARCHIVE = "/mailFolders/archive/messages/delta"
EMPTY = b"From: a@a.test\r\nSubject: %d\r\n\r\nx"
JANUARY = 1_704_067_200


class Client:
    """A client that keeps a copy of a folder, or of the folders, by delta queries."""

    def __init__(self, on_disk: OnDisk, path: str) -> None:
        self.on_disk = on_disk
        self.url = path
        self.copy: dict[str, dict[str, Any]] = {}
        self.pages: list[list[dict[str, Any]]] = []

    async def page(self, **headers: str) -> bool:
        """Read a page; return whether the round goes on."""
        answer = await self.on_disk.http.get(self.url, headers=headers)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert ("@odata.nextLink" in body) != ("@odata.deltaLink" in body)
        self.url = body.get("@odata.nextLink") or body["@odata.deltaLink"]
        assert self.url.startswith("https://mail.example.test/v1.0/me/")
        self.pages.append(body["value"])
        for one in body["value"]:
            if "@removed" in one:
                self.copy.pop(one["id"], None)
            else:
                self.copy[one["id"]] = one
        return "@odata.nextLink" in body

    async def round(self) -> list[dict[str, Any]]:
        """Read a whole round; return its items."""
        self.pages.clear()
        while await self.page():
            pass
        return [one for page in self.pages for one in page]


def deliver(on_disk: OnDisk, number: int, *, folder: str = "", flags: str = "") -> Path:
    """Put a message into a folder, as another program does; its number is its time in seconds."""
    directory = on_disk.root / "example.test/alice" / folder / "cur"
    path = directory / f"{JANUARY + number}.M{number}.host:2,{flags}"
    temporary = directory.parent / "tmp" / path.name
    temporary.write_bytes(EMPTY % number)
    os.utime(temporary, (JANUARY + number, JANUARY + number))
    temporary.rename(path)
    return path


def subjects(items: list[dict[str, Any]]) -> list[str]:
    return [one["subject"] for one in items]


def removed(message_id: str, reason: str) -> dict[str, Any]:
    return {"id": message_id, "@removed": {"reason": reason}}


async def by_subject(on_disk: OnDisk) -> dict[str, str]:
    answer = await on_disk.http.get("/messages?$top=1000&$select=subject")
    return {one["subject"]: one["id"] for one in answer.json()["value"]}


@pytest.fixture
async def filled(on_disk: OnDisk) -> OnDisk:
    """A mailbox with the messages 0 to 4 in its Inbox."""
    assert (await on_disk.http.get("/mailFolders")).status_code == 200
    for number in range(5):
        deliver(on_disk, number)
    return on_disk


# -- rounds


async def test_the_first_round_lists_the_folder_newest_first_and_ends_with_a_delta_link(filled):
    client = Client(filled, f"{INBOX}?$top=2&$select=subject")
    assert subjects(await client.round()) == ["4", "3", "2", "1", "0"]
    assert [len(page) for page in client.pages] == [2, 2, 1]
    assert set(client.pages[0][0]) == {"@odata.etag", "id", "subject"}
    assert await client.round() == []
    assert await client.round() == []


async def test_the_whole_mailbox_has_a_delta_query_in_which_a_move_is_a_change(filled):
    client = Client(filled, "/messages/delta?$select=subject,parentFolderId")
    assert len(await client.round()) == 5
    ids = await by_subject(filled)
    await filled.http.post(f"/messages/{ids['1']}/move", json={"destinationId": "archive"})
    await filled.http.post(f"/messages/{ids['2']}/permanentDelete")
    moved, gone = await client.round()
    assert (moved["id"], moved["parentFolderId"]) == (ids["1"], "archive")
    assert gone == removed(ids["2"], "deleted")


@pytest.mark.parametrize("name", ["delta()", "microsoft.graph.delta", "Microsoft.Graph.Delta()"])
async def test_every_spelling_of_the_function_works_and_its_links_too(filled, name):
    client = Client(filled, f"/mailFolders('Inbox')/messages/{name}?$top=3")
    assert len(await client.round()) == 5
    deliver(filled, 7)
    assert subjects(await client.round()) == ["7"]


# -- other programs


async def test_any_sequence_of_changes_keeps_a_client_equal_to_the_folder(filled):
    chance = random.Random(7)
    root = filled.root / "example.test/alice"
    clients = [Client(filled, INBOX), Client(filled, f"{INBOX}?$top=1"), Client(filled, ARCHIVE)]
    for step in range(60):
        files = [path for folder in ("cur", ".Archive/cur") for path in (root / folder).iterdir()]
        path = chance.choice(files)
        match chance.choice(("new", "flag", "move", "remove", "read")):
            case "new":
                deliver(filled, 100 + step, folder=chance.choice(("", ".Archive")))
            case "flag":
                flags = "" if path.name.endswith("F") else "F"
                path.rename(path.with_name(path.name.partition(":")[0] + f":2,{flags}"))
            case "move":
                other = "cur" if ".Archive" in str(path) else ".Archive/cur"
                path.rename(root / other / path.name)
            case "remove" if len(files) > 3:
                path.unlink()
            case _:
                await chance.choice(clients).page()
    for client in clients:
        await client.round()
        await client.round()
        folder = "archive" if client is clients[2] else "inbox"
        listed = await filled.http.get(f"/mailFolders/{folder}/messages?$top=1000")
        assert {one["id"]: one for one in listed.json()["value"]} == client.copy


# -- options


async def test_the_options_are_those_of_the_first_request_and_only_the_token_is_needed(filled):
    client = Client(
        filled,
        f"{INBOX}?$select=subject&$top=2&$expand=singleValueExtendedProperties"
        "($filter=id eq 'String 0x1045')",
    )
    await client.page()
    [token] = parse_qs(urlsplit(client.url).query)["$skiptoken"]
    assert [*parse_qs(urlsplit(client.url).query)] == ["$skiptoken"]
    body = (await filled.http.get(INBOX, params={"$skiptoken": token})).json()
    assert [set(one) for one in body["value"]] == [{"@odata.etag", "id", "subject"}] * 2
    answer = await filled.http.get(INBOX, params={"$skiptoken": token, "$select": "subject"})
    assert answer.json() == body
    answer = await filled.http.get(INBOX, params={"$skiptoken": token, "$select": "id"})
    assert "select" in refused(answer, 400, "BadRequest")


@pytest.mark.parametrize("operator", ["ge", "gt"])
async def test_messages_before_a_time_are_left_out_of_all_rounds(filled, operator):
    query = (
        f"$filter=receivedDateTime {operator} 2024-01-01T00:00:03Z&$orderby=receivedDateTime desc"
    )
    client = Client(filled, f"{INBOX}?{query}&$select=subject")
    listed = await filled.http.get(f"/mailFolders/inbox/messages?{query}")
    assert subjects(await client.round()) == subjects(listed.json()["value"])
    deliver(filled, -5)
    deliver(filled, 8)
    ids = await by_subject(filled)
    await filled.http.patch(f"/messages/{ids['1']}", json={"isRead": True})
    assert subjects(await client.round()) == ["8"]


@pytest.mark.parametrize(
    ("change_type", "first", "second"),
    [("created", 5, ["9"]), ("Updated", 0, ["0"]), ("deleted", 0, ["changed", "deleted"])],
)
async def test_change_type_restricts_the_rounds(filled, change_type, first, second):
    client = Client(filled, f"{INBOX}?changeType={change_type}")
    assert len(await client.round()) == first
    ids = await by_subject(filled)
    deliver(filled, 9)
    await filled.http.patch(f"/messages/{ids['0']}", json={"isRead": True})
    await filled.http.delete(f"/messages/{ids['1']}")
    await filled.http.post(f"/messages/{ids['2']}/permanentDelete")
    found = await client.round()
    shown = [one.get("subject") or one["@removed"]["reason"] for one in found]
    assert shown == second


async def test_options_that_do_not_fit_into_a_token_are_refused(filled):
    ids = " or ".join(
        f"id eq 'String {{00020386-0000-0000-C000-{n:012}}} Name x-{'y' * 60}'" for n in range(90)
    )
    query = {"$expand": f"singleValueExtendedProperties($filter={ids})"}
    answer = await filled.http.get(INBOX, params=query)
    assert str(TOKEN_CHARACTERS_MAX) in refused(answer, 400, "BadRequest")


# -- tokens that cannot be used


def token_of(*values: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(values)).decode().rstrip("=")


@each_row(
    "values",
    [
        ("inbox/messages", {"select": "nothing"}, "x.1", ""),
        ("inbox/messages", {"search": "x"}, "x.1", ""),
        ("inbox/messages", {"changetype": "x"}, "x.1", ""),
        ("inbox/messages", {"top": "-1"}, "x.1", ""),
        ("inbox/messages", {"top": 1}, "x.1", ""),
        ("inbox/messages", "x"),
        ("inbox/messages",),
        (1, {}),
        {},
        "x",
    ],
)
async def test_a_token_that_was_changed_is_refused(filled, values):
    token = token_of(*values) if isinstance(values, tuple) else token_of(values)
    refused(await filled.http.get(INBOX, params={"$deltatoken": token}), 400, "BadRequest")


async def gone(on_disk: OnDisk, url: str) -> str:
    """Check that a link is 410, and return where it says to begin again."""
    answer = await on_disk.http.get(url)
    refused(answer, 410, "syncStateNotFound")
    return str(answer.headers["location"])


@each_row("position", ["", "x", "0123456789abcdef.1", "0123456789abcdef.-1", "\ud83d"])
@pytest.mark.parametrize("page", ["", "x"])
async def test_a_token_with_a_position_of_no_feed_is_gone(filled, position, page):
    if not position and not page:
        return
    position = position.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    token = token_of("inbox/messages", {"select": "subject"}, position, page)
    location = await gone(filled, f"{INBOX}?$deltatoken={token}")
    assert location == f"https://mail.example.test/v1.0/me{INBOX}?$select=subject"


async def test_a_link_of_another_folder_or_mailbox_is_gone_and_says_where_to_begin(filled):
    bob = {"authorization": "Bearer bob"}
    client = Client(filled, f"{INBOX}?$select=subject&$top=2&changeType=created")
    await client.page()
    for _ in range(2):
        answer = await filled.http.get(client.url.replace("/inbox/", "/archive/"))
        refused(answer, 410, "syncStateNotFound")
        answer = await filled.http.get(client.url, headers=bob)
        refused(answer, 410, "syncStateNotFound")
        location = answer.headers["location"]
        assert location.endswith(f"{INBOX}?$select=subject&$top=2&changeType=created")
        again = Client(filled, location)
        assert len(await again.round()) == 5
        await client.round()


async def test_a_link_whose_changes_are_not_kept_is_gone(filled, monkeypatch):
    from relay.store.mailbox.index import change_feed

    monkeypatch.setattr(change_feed, "CHANGES_KEPT", 5)
    monkeypatch.setattr(change_feed, "_PRUNED_EVERY", 10)
    client = Client(filled, INBOX)
    await client.round()
    for number in range(10, 40):
        deliver(filled, number)
    await gone(filled, client.url)


# -- cost


class Files:
    """The files below a directory that this process opens, as the interpreter itself tells them."""

    def __init__(self) -> None:
        self.root = ""
        self.opened: Counter[str] = Counter()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.root and event in ("open", "os.listdir", "os.scandir"):
            path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes | Path) else ""
            if path.startswith(self.root):
                self.opened[path.partition(":")[0]] += 1


@pytest.fixture(scope="module")
def files() -> Files:
    return Files()


async def test_a_round_reads_the_files_of_the_changes_and_no_others(on_disk, files):
    await on_disk.http.get("/mailFolders")
    for number in range(300):
        deliver(on_disk, number)
    client = Client(on_disk, f"{INBOX}?$deltatoken=latest&$top=50")
    await client.round()
    changed = [deliver(on_disk, 1000 + number) for number in range(3)]
    files.root, _ = str(on_disk.root / "example.test/alice"), files.opened.clear()
    try:
        assert len(await client.round()) == 3
        opened = dict(files.opened)
    finally:
        files.root = ""
    messages = {path for path in opened if "/cur/" in path}
    assert messages == {str(path).partition(":")[0] for path in changed}
    assert not any(path.endswith(("/cur", "/new")) for path in opened), opened
