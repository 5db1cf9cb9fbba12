"""Extended properties: found by their values, and computed for received mail."""

from base64 import b64decode
from typing import Any

import pytest

from tests.support.graph_fakes import OnDisk, refused, to
from tests.support.tables import each_row

COLOR = "String {00020329-0000-0000-C000-000000000046} Name Color"
COUNT = "Integer {00020329-0000-0000-C000-000000000046} Id 0x8001"
DUE = "SystemTime 0x4001"
RATE = "Double 0x4002"
GUID = "00020329-0000-0000-c000-0000000000ff"
VALUES = {"rate": "9.25", "octets": "+/8="}
TAGS = "StringArray {00020329-0000-0000-C000-000000000046} Name Tags"
INDEX = "AQHYZ1w3nJ0nJ0nJ0nJ0nJ0nJ0nJ0g=="
RECEIVED = (
    b"Received: from a by b; Sat, 04 May 2019 03:02:01 +0000\r\nDate: Sat, 04 May 2019 03:00:00 +0000\r\n"
    b"From: Carol <carol@other.test>\r\nTo: Bob <bob@example.test>, d@a.test\r\nSubject: =?utf-8?q?Gr=C3=B6=C3=9Fe?=\r\n"
    b"Message-ID: <two@other.test>\r\nIn-Reply-To: <one@other.test>\r\n"
    b"References: <zero@other.test> <one@other.test>\r\nThread-Index: "
    + INDEX.encode()
    + b"\r\nX-Odd:  two\r\n lines\r\n\r\nhello\r\n"
)


def single(**values: str | None) -> list[dict[str, Any]]:
    ids = {"color": COLOR, "count": COUNT, "due": DUE, "rate": RATE, "octets": "Binary 0x4003"}
    return [{"id": ids[name], "value": value} for name, value in values.items()]


def condition(identity: str, value: str, *, kind: str = "singleValue") -> str:
    return f"{kind}ExtendedProperties/Any(ep: ep/id eq '{identity}' and {value})"


async def received(on_disk: OnDisk) -> str:
    """Put a message into the Inbox, as another program does; return its id."""
    await on_disk.http.get("/mailFolders")
    (on_disk.root / "example.test/alice/new/1600000000.M1.h").write_bytes(RECEIVED)
    page = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    return str(page[0]["id"])


async def found(on_disk: OnDisk, text: str) -> set[str]:
    answer = await on_disk.http.get("/messages", params={"$filter": text, "$top": "50"})
    assert answer.status_code == 200, answer.text
    return {one["subject"] for one in answer.json()["value"]}


@pytest.fixture
async def three(on_disk: OnDisk) -> OnDisk:
    """A mailbox with three drafts, two of them with values."""
    for subject, own, tags in (
        ("green", single(color="Green", count="7", rate="10.5"), ["a", "cc"]),
        ("tree", single(color="Tree", due="2026-12-01T00:00:00Z", **VALUES), ["a", "b"]),
        ("plain", [], []),
    ):
        message = {"subject": subject, "singleValueExtendedProperties": own}
        message["multiValueExtendedProperties"] = [{"id": TAGS, "value": tags}] if tags else []
        assert (await on_disk.http.post("/messages", json=message)).status_code == 201
    return on_disk


@each_row(
    "text, names",
    [
        (condition(COLOR.upper().replace("STRING", "string"), "ep/value eq 'green'"), {"green"}),
        (condition(COLOR, "contains(ep/value, 'ree')"), {"green", "tree"}),
        (condition(COLOR, "ep/value ne null"), {"green", "tree"}),
        (condition(COLOR, "ep/value gt 'green'"), {"tree"}),
        (condition(COUNT, "cast(ep/value, Edm.Int32) ge 7"), {"green"}),
        (condition(COUNT, "cast(ep/value, Edm.Int32) eq null"), {"tree", "plain"}),
        (condition(RATE, "cast(ep/value, Edm.Double) eq 10.50"), {"green"}),
        (condition(RATE, "cast(ep/value, Edm.Double) lt 9.5"), {"tree"}),
        (condition("Binary 0x4003", "cast(ep/value,Edm.Binary) eq binary'-_8'"), {"tree"}),
        (condition("CLSID 0x4004", f"cast(ep/value, Edm.Guid) ne {GUID}"), set()),
        (condition(DUE, "cast(ep/value,Edm.DateTimeOffset) gt 2026-12-01T00:00:00Z"), set()),
        (
            condition(DUE, "cast(ep/value,Edm.DateTimeOffset) lt datetimeoffset'2026-12-02'"),
            {"tree"},
        ),
        (condition(DUE, "ep/value ge '2026-12-01T01:00:00+01:00'"), {"tree"}),
        (condition(TAGS, "ep/value/any(v:v eq 'a')", kind="multiValue"), {"green", "tree"}),
        ("not " + condition(COLOR, "ep/value eq 'Green'"), {"tree", "plain"}),
    ],
)
async def test_stored_values_are_found(three: OnDisk, text: str, names: set[str]) -> None:
    assert await found(three, text) == names


async def test_what_a_client_adds_to_received_mail_is_found(on_disk: OnDisk) -> None:
    identity = await received(on_disk)
    green, tree = (condition(COLOR, f"ep/value eq '{name}'") for name in ("Green", "Tree"))
    replied = condition("String 0x1042", "ep/value eq '<one@other.test>'")
    assert await found(on_disk, green) == set()  # its content is indexed now
    for value, expected in (("Green", [1, 0]), ("Tree", [0, 1]), (None, [0, 0]), ("Tree", [0, 1])):
        change = {"singleValueExtendedProperties": single(color=value)}
        assert (await on_disk.http.patch(f"/messages/{identity}", json=change)).status_code == 200
        assert [len(await found(on_disk, one)) for one in (green, tree)] == expected
        assert await found(on_disk, replied) == {"Größe"}


async def test_what_a_sent_message_had_is_not_found_after_a_change(on_disk: OnDisk) -> None:
    message = {"subject": "s", "singleValueExtendedProperties": single(color="Green")}
    made = (await on_disk.http.post("/mailFolders/archive/messages", json=message)).json()
    [file] = on_disk.files()
    file.rename(file.with_name(file.name.replace(":2,DS", ":2,S")))  # as after it was sent
    green, tree = (condition(COLOR, f"ep/value eq '{name}'") for name in ("Green", "Tree"))
    assert await found(on_disk, green) == {"s"}
    change = {"singleValueExtendedProperties": single(color="Tree")}
    assert (await on_disk.http.patch(f"/messages/{made['id']}", json=change)).status_code == 200
    assert (await found(on_disk, green), await found(on_disk, tree)) == (set(), {"s"})


COMPUTED = {
    "String 0x10f3": "Größe.EML",
    "String 0x7d": RECEIVED.partition(b"\r\n\r\n")[0].decode(),
    "String 0x37": "Größe",
    "String 0xe04": "Bob; d@a.test",
    "String 0x1035": "<two@other.test>",
    "String 0x1042": "<one@other.test>",
    "String 0x1039": "<zero@other.test> <one@other.test>",
    "Binary 0x71": INDEX,
    "Integer 0xe08": str(len(RECEIVED)),
    "Long 0xe08": str(len(RECEIVED)),
    "SystemTime 0xe06": "",
    "SystemTime 0x39": "2019-05-04T03:00:00Z",
    "Integer 0xe07": "0",
}


@pytest.mark.parametrize("digits", [1, 4])
async def test_received_mail_has_computed_values(on_disk: OnDisk, digits: int) -> None:
    identity = await received(on_disk)
    names = (one.split(" 0x") for one in (*COMPUTED, "Binary 0xff9"))
    ids = " or ".join(f"id eq '{kind} 0x{tag.upper():0>{digits}}'" for kind, tag in names)
    query = {"$expand": f"singleValueExtendedProperties($filter={ids})"}
    shown = (await on_disk.http.get(f"/messages/{identity}", params=query)).json()
    values = {one["id"]: one["value"] for one in shown["singleValueExtendedProperties"]}
    assert b64decode(values.pop("Binary 0xff9")).decode() == identity
    assert values == COMPUTED | {"SystemTime 0xe06": shown["receivedDateTime"]}
    listing = query | {"$select": "id"}
    answer = await on_disk.http.get("/mailFolders/inbox/messages", params=listing)
    [listed] = answer.json()["value"]
    assert listed["singleValueExtendedProperties"] == shown["singleValueExtendedProperties"]
    back = {"singleValueExtendedProperties": shown["singleValueExtendedProperties"], "isRead": True}
    assert (await on_disk.http.patch(f"/messages/{identity}", json=back)).status_code == 200
    shown = (await on_disk.http.get(f"/messages/{identity}", params=query)).json()
    values = {one["id"]: one["value"] for one in shown["singleValueExtendedProperties"]}
    assert values["Integer 0xe07"] == "1"


async def test_they_do_not_change(on_disk: OnDisk) -> None:
    identity = await received(on_disk)
    values = {"String": "<x@y.test>", "System": "2020-01-01T00:00:00Z"}
    for name in COMPUTED:
        if not name.startswith("Binary"):
            own = [{"id": name, "value": values.get(name[:6], "99")}]
            change = {"singleValueExtendedProperties": own}
            answer = await on_disk.http.patch(f"/messages/{identity}", json=change)
            assert "draft" in refused(answer, 400, "ErrorInvalidPropertySet"), name


@pytest.fixture
async def mixed(on_disk: OnDisk) -> OnDisk:
    """A mailbox with a received message and a draft."""
    await received(on_disk)
    await on_disk.http.post("/messages", json={"subject": "d", "toRecipients": to("x@y.test")})
    return on_disk


@each_row(
    "text",
    [
        condition("String 0x37", "ep/value eq 'größe'"),
        condition("String 0x1042", "ep/value eq '<one@other.test>'"),
        condition("String 0x1039", "ep/value eq '<zero@other.test>'"),
        condition("String 0x1039", "contains(ep/value, 'zero@')"),
        condition("SystemTime 0x0039", "ep/value lt '2019-05-04T03:00:01Z'"),
        condition("SystemTime 0x0E06", "ep/value gt '2019-05-04T03:00:00Z'"),
        condition("Long 0xE08", "ep/value gt '99'"),
        condition("Integer 0xe08", f"cast(ep/value, Edm.Int32) eq {len(RECEIVED)}"),
    ],
)
async def test_computed_values_are_found(mixed: OnDisk, text: str) -> None:
    own = {"Größe"} if "Long" not in text and "0x0E06" not in text else {"Größe", "d"}
    assert await found(mixed, text) == own
    assert "Größe" not in await found(mixed, f"not {text}")


async def test_a_draft_shows_what_its_author_set(on_disk: OnDisk) -> None:
    own = [{"id": "String 0x0037", "value": "another"}]
    message = {"subject": "s", "singleValueExtendedProperties": own}
    made = (await on_disk.http.post("/messages", json=message)).json()
    expand = "singleValueExtendedProperties($filter=id eq 'String 0x37' or id eq 'Integer 0xE07')"
    shown = (await on_disk.http.get(f"/messages/{made['id']}", params={"$expand": expand})).json()
    flags = {"id": "Integer 0xe07", "value": "9"}
    found = sorted(shown["singleValueExtendedProperties"], key=lambda one: str(one["id"]))
    assert found == [flags, {"id": "String 0x37", "value": "another"}]
