"""`Integer 0xe23`, the IMAP UID: unique and ascending in a folder, and never given again."""

import asyncio
from pathlib import Path

from tests.support.graph_fakes import OnDisk

SHOWN = {"$expand": "singleValueExtendedProperties($filter=id eq 'Integer 0x0E23')"}
LISTED = {**SHOWN, "$top": "50", "$select": "subject"}
FROM_2 = "singleValueExtendedProperties/Any(ep: ep/id eq 'Integer 0xe23' and cast(ep/value, Edm.Int32) ge 2)"


async def uids(on_disk: OnDisk, path: str = "inbox/messages", **options: str) -> dict[str, int]:
    """Return the numbers of a folder's messages by subject."""
    listed = (await on_disk.http.get(f"/mailFolders/{path}", params=LISTED | options)).json()
    found = ((one["subject"], *one["singleValueExtendedProperties"]) for one in listed["value"])
    return {subject: int(uid["value"]) for subject, uid in found}


def deliver(home: Path, *numbers: int) -> None:
    for number in numbers:
        content = f"Subject: {number}\r\n\r\n.\r\n".encode()
        (home / f"new/{1_600_000_000 + number}.M1P1.host").write_bytes(content)


async def test_numbers_ascend_and_are_never_given_again(on_disk: OnDisk) -> None:
    http, home = on_disk.http, on_disk.root / "example.test/alice"
    await http.get("/mailFolders")
    deliver(home, 1, 2, 3, 4)
    listed = (await http.get("/messages", params={"$select": "subject"})).json()["value"]
    paths = {one["subject"]: f"/messages/{one['id']}" for one in listed}
    assert not (home / "relay-properties").exists(), "nobody has asked"
    one = (await http.get(paths["3"], params=SHOWN)).json()  # numbers its folder
    assert one["singleValueExtendedProperties"] == [{"id": "Integer 0xe23", "value": "3"}]
    found = await asyncio.gather(*(uids(on_disk) for _ in range(4)))
    assert found == [{"1": 1, "2": 2, "3": 3, "4": 4}] * 4
    assert (await http.delete(paths["4"])).status_code == 204
    deliver(home, 5)
    assert await uids(on_disk, **{"$filter": FROM_2}) == {"2": 2, "3": 3, "5": 5}
    for folder in ("archive", "inbox"):
        await http.post(f"{paths['1']}/move", json={"destinationId": folder})
    await http.post(f"{paths['2']}/copy", json={"destinationId": "archive"})
    await http.patch(paths["3"], json={"isRead": True, "flag": {"flagStatus": "flagged"}})
    assert await uids(on_disk) == {"2": 2, "3": 3, "5": 5, "1": 6}
    assert await uids(on_disk, "archive/messages") == {"2": 1}
    [file] = home.glob("new/1600000005*")
    away = file.rename(home / ".Archive/cur" / f"{file.name}:2,S")  # as other programs do
    assert await uids(on_disk, "archive/messages") == {"2": 1, "5": 2}
    away.rename(file)
    left = await uids(on_disk)
    assert left == {"2": 2, "3": 3, "1": 6, "5": 7}
    for file in home.glob("relay-index*"):
        file.unlink()
    deliver(home, 6)
    assert await uids(on_disk, "inbox/messages/delta") == left | {"6": 8}
    for file in home.glob("relay-properties*"):  # what it has is lost
        file.unlink()
    deliver(home, 7)
    assert await uids(on_disk) == {"1": 1, "2": 2, "3": 3, "5": 4, "6": 5, "7": 6}
