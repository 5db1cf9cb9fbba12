"""PATCH of received messages: categories, importance, flags with dates, receipts, properties."""

from typing import Any

import httpx
import pytest

from tests.support.graph_fakes import OnDisk, refused, to
from tests.support.tables import each_row

MIME = (
    b"From: Bob <bob@a.test>\r\nTo: alice@example.test\r\nSubject: order\r\nX-Job: 7\r\n"
    b"Message-ID: <1@a.test>\r\nContent-Type: text/html\r\n\r\n<p>body</p>\r\n"
)
ID = "String {00020329-0000-0000-c000-000000000046} Name Job"
COLORS = f"$expand=singleValueExtendedProperties($filter=id eq '{ID}')"
AT_8 = {"dateTime": "2026-12-01T08:00:00", "timeZone": "W. Europe Standard Time"}
AT_9 = {"dateTime": "2026-12-01T09:00:00.0000000", "timeZone": "UTC"}
AT_0 = {"dateTime": "1970-01-01T00:00:00.0000000", "timeZone": "UTC"}


@pytest.fixture
async def path(on_disk: OnDisk) -> str:
    """The path of a received message."""
    await on_disk.http.get("/mailFolders")
    (on_disk.root / "example.test/alice/new/1600000000.M1.h").write_bytes(MIME)
    [message] = (await on_disk.http.get("/mailFolders/inbox/messages")).json()["value"]
    return f"/messages/{message['id']}"


def error(answer: httpx.Response, status: int) -> str:
    """Return the texts of an error."""
    return refused(answer, status, answer.json()["error"]["code"])


async def patched(on_disk: OnDisk, path: str, change: object) -> dict[str, Any]:
    """Return a message after a PATCH; a GET returns the same."""
    answer = await on_disk.http.patch(path, json=change)
    assert answer.status_code == 200, answer.text
    assert (await on_disk.http.get(path)).json() == answer.json()
    found: dict[str, Any] = answer.json()
    return found


async def test_all_properties_that_any_message_may_change(on_disk: OnDisk, path: str) -> None:
    change = {
        "importance": "high",
        "isReadReceiptRequested": True,
        "isDeliveryReceiptRequested": True,
        "categories": ["a", "b"],
        "inferenceClassification": "other",
        "isRead": False,
        "flag": {"flagStatus": "flagged"},
    }
    changed = await patched(on_disk, path, change)
    assert {name: changed[name] for name in change} == change
    assert changed["subject"] == "order"
    focused = await patched(on_disk, path, {"inferenceClassification": "focused"})
    assert focused["inferenceClassification"] == "focused"


async def test_extended_properties_are_merged(on_disk: OnDisk, path: str) -> None:
    many = "StringArray {00020329-0000-0000-c000-000000000046} Name Tags"
    single = {"singleValueExtendedProperties": [{"id": ID, "value": "7"}]}
    await patched(on_disk, path, single)
    tags = {"multiValueExtendedProperties": [{"id": many, "value": ["x", "y"]}]}
    await patched(on_disk, path, tags)
    expand = f"{COLORS},multiValueExtendedProperties($filter=id eq '{many}')"
    shown = (await on_disk.http.get(f"{path}?{expand}")).json()
    assert shown["singleValueExtendedProperties"] == single["singleValueExtendedProperties"]
    assert shown["multiValueExtendedProperties"] == tags["multiValueExtendedProperties"]
    await patched(on_disk, path, {"singleValueExtendedProperties": [{"id": ID, "value": None}]})
    shown = (await on_disk.http.get(f"{path}?{expand}")).json()
    assert "singleValueExtendedProperties" not in shown
    assert "multiValueExtendedProperties" in shown


async def test_a_flag_has_dates_in_any_zone_and_is_completed(on_disk: OnDisk, path: str) -> None:
    given = {"flagStatus": "flagged", "startDateTime": AT_8, "dueDateTime": AT_9}
    flagged = (await patched(on_disk, path, {"flag": given}))["flag"]
    at_7 = {"dateTime": "2026-12-01T07:00:00.0000000", "timeZone": "UTC"}
    assert flagged == {"flagStatus": "flagged", "startDateTime": at_7, "dueDateTime": AT_9}
    found = "flag/flagStatus eq 'flagged' and flag/dueDateTime/dateTime le '2026-12-01T09:00:00Z'"
    for condition, number in (
        (found, 1),
        ("flag/dueDateTime/dateTime lt '2026-12-01T09:00:00Z'", 0),
        ("flag/dueDateTime/dateTime gt 2026-11-30T00:00:00Z", 1),
        ("flag/startDateTime/dateTime ne null", 1),
        ("flag/completedDateTime/dateTime eq null", 1),
        ("flag/flagStatus eq 'complete'", 0),
    ):
        page = await on_disk.http.get("/messages", params={"$filter": condition})
        assert len(page.json()["value"]) == number, condition
    complete = (await patched(on_disk, path, {"flag": {"flagStatus": "complete"}}))["flag"]
    assert (complete["flagStatus"], complete["dueDateTime"]) == ("complete", AT_9)
    assert complete["completedDateTime"]["timeZone"] == "UTC"
    given = {"flagStatus": "complete", "completedDateTime": AT_0}
    assert (await patched(on_disk, path, {"flag": given}))["flag"]["completedDateTime"] == AT_0
    without = (await patched(on_disk, path, {"flag": {"flagStatus": "notFlagged"}}))["flag"]
    assert without == {"flagStatus": "notFlagged"}


@each_row(
    "flag, said",
    [
        ({"flagStatus": "flagged", "startDateTime": "2026"}, "flag.startDateTime: found '2026'"),
        ({"startDateTime": {"dateTime": "2026-01-01T00:00:00", "timeZone": "Mars"}}, "'Mars'"),
        ({"startDateTime": {"dateTime": "0001-01-01T00:00:00", "timeZone": "UTC"}}, "since 1970"),
        ({"startDateTime": {"dateTime": "9999-12-31T23:59:59-12:00"}}, "found '9999"),
        ({"flagStatus": "flagged", "dueDateTime": AT_9}, "startDateTime as well"),
        ({"flagStatus": "flagged", "startDateTime": AT_9, "dueDateTime": AT_8}, "at most that of"),
        ({"flagStatus": "flagged", "completedDateTime": AT_9}, "flagStatus complete"),
        ({"dueDateTime": AT_9}, "no date, or flagStatus"),
    ],
)
async def test_a_bad_flag_is_a_400(on_disk: OnDisk, path: str, flag: object, said: str) -> None:
    answer = await on_disk.http.patch(path, json={"flag": flag, "isRead": True})
    assert said in error(answer, 400)
    assert (await on_disk.http.get(path)).json()["isRead"] is False


async def test_the_whole_object_may_be_sent_back(on_disk: OnDisk, path: str) -> None:
    """Office365-REST-Python-Client and msgraph-sdk read a message, change it and send all of it."""
    whole = (await on_disk.http.get(f"{path}?$expand=attachments")).json()
    headers = (await on_disk.http.get(f"{path}?$select=internetMessageHeaders,sensitivity")).json()
    given = {**whole, **headers, "categories": ["Done"], "importance": "low"}
    given["from"] = {
        "@odata.type": "#microsoft.graph.recipient",
        "EmailAddress": {"name": "Bob", "address": "bob@a.test"},
    }
    changed = await patched(on_disk, path, given)
    assert (changed["categories"], changed["importance"]) == (["Done"], "low")
    assert {**changed, **dict.fromkeys(("categories", "importance"))}.keys() == whole.keys() - {
        "attachments"
    }
    as_text = {"prefer": 'outlook.body-content-type="text"'}
    whole = (await on_disk.http.get(path, headers=as_text)).json()
    assert whole["body"]["contentType"] == "text"
    answer = await on_disk.http.patch(path, json={**whole, "categories": []}, headers=as_text)
    assert (answer.status_code, answer.json()["categories"]) == (200, [])


@each_row(
    "name, value",
    [
        ("subject", "another"),
        ("body", {"contentType": "html", "content": "<p>other</p>"}),
        ("from", {"emailAddress": {"address": "carol@a.test"}}),
        ("internetMessageId", "<2@a.test>"),
    ],
)
async def test_the_content_cannot_change(
    on_disk: OnDisk, path: str, name: str, value: object
) -> None:
    answer = await on_disk.http.patch(path, json={name: value, "categories": ["x"]})
    assert f"found another value of {name}" in refused(answer, 400, "ErrorInvalidPropertySet")
    assert (await on_disk.http.get(path)).json()["categories"] == []


async def test_extended_properties_of_the_content_cannot_change(on_disk: OnDisk, path: str) -> None:
    private = {"singleValueExtendedProperties": [{"id": "Integer 0x0036", "value": "2"}]}
    refused(await on_disk.http.patch(path, json=private), 400, "ErrorInvalidPropertySet")
    deferred = {"id": "SystemTime 0x3FEF", "value": "2030-01-01T08:00:00Z"}
    answer = await on_disk.http.patch(path, json={"singleValueExtendedProperties": [deferred]})
    assert "not a draft" in error(answer, 409)


@each_row(
    "change, status, said",
    [
        ({"categories": ["c"] * 10_000}, 400, "found 10000 items"),
        ({"categories": ["c" * 10_000]}, 400, "categories[0]: found 10000 characters"),
        (
            {
                "singleValueExtendedProperties": [
                    {"id": f"String 0x{3000 + n:04X}", "value": "v" * 30_000} for n in range(3)
                ]
            },
            413,
            "65536",
        ),
    ],
)
async def test_too_much_is_refused(
    on_disk: OnDisk, path: str, change: object, status: int, said: str
) -> None:
    assert said in error(await on_disk.http.patch(path, json=change), status)
    assert (await on_disk.http.get(path)).json()["categories"] == []


async def whole(on_disk: OnDisk, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all that a client can read of a message, and what it shows by default."""
    expand = f"$expand=attachments,{COLORS.removeprefix('$expand=')[:-1]} or id eq 'String 0x001A')"
    found = (await on_disk.http.get(f"{path}?{expand}")).json()
    more = (await on_disk.http.get(f"{path}?$select=internetMessageHeaders,sensitivity")).json()
    return {**found, **more}, (await on_disk.http.get(path)).json()


SET = {
    "categories": ["a"],
    "importance": "high",
    "isReadReceiptRequested": True,
    "isRead": True,
    "isDeliveryReceiptRequested": True,
    "inferenceClassification": "other",
    "flag": {"flagStatus": "flagged", "startDateTime": AT_9, "dueDateTime": AT_9},
    "singleValueExtendedProperties": [{"id": ID, "value": "7"}],
}


@pytest.mark.parametrize("change", [{}, SET, SET | {"flag": {"flagStatus": "complete"}}])
@pytest.mark.parametrize("is_draft", [False, True])
async def test_a_patch_of_what_is_shown_writes_nothing(
    on_disk: OnDisk, path: str, change: dict[str, Any], is_draft: bool
) -> None:
    if is_draft:
        file = {"@odata.type": "#microsoft.graph.fileAttachment", "name": "f", "contentBytes": ""}
        body = {"contentType": "html", "content": "<p>body</p>"}
        content = {"toRecipients": to("bob@a.test"), "body": body, "attachments": [file]}
        made = (await on_disk.http.post("/messages", json={"subject": "s", **content})).json()
        path = f"/messages/{made['id']}"
    await on_disk.http.patch(path, json=change)
    given, shown = await whole(on_disk, path)
    assert await patched(on_disk, path, given) == shown
    read = {name: value for name, value in given.items() if name not in ("changeKey", "id")}
    upper = {**read, "importance": read["importance"].upper()}
    assert await patched(on_disk, path, upper) == shown
    other = await patched(on_disk, path, {**given, "categories": ["b"]})
    expected = {**shown, "categories": ["b"]}
    changing = ("changeKey", "@odata.etag", "lastModifiedDateTime")
    assert {**other, **dict.fromkeys(changing)} == {**expected, **dict.fromkeys(changing)}
    assert other["changeKey"] != shown["changeKey"]


async def test_a_draft_sent_back_as_text_keeps_its_html(on_disk: OnDisk) -> None:
    body = {"contentType": "html", "content": "<p>body</p>"}
    made = (await on_disk.http.post("/messages", json={"subject": "s", "body": body})).json()
    path, as_text = f"/messages/{made['id']}", {"prefer": 'outlook.body-content-type="text"'}
    shown = (await on_disk.http.get(path, headers=as_text)).json()
    answer = await on_disk.http.patch(path, json={**shown, "subject": "t"}, headers=as_text)
    assert answer.json()["body"]["contentType"] == "html"
    assert (await on_disk.http.get(path)).json()["body"] == made["body"]


async def test_a_completed_flag_is_complete_after_a_mail_program_flagged_the_message(
    on_disk: OnDisk, path: str
) -> None:
    given = {"flagStatus": "complete", "startDateTime": AT_9, "dueDateTime": AT_9}
    complete = (await patched(on_disk, path, {"flag": given, "isRead": True}))["flag"]
    [file] = (on_disk.root / "example.test/alice/cur").iterdir()
    flagged = file.rename(file.with_name(file.name.replace(":2,S", ":2,FS")))
    shown = (await on_disk.http.get(path)).json()["flag"]
    assert shown == {"flagStatus": "flagged", "startDateTime": AT_9, "dueDateTime": AT_9}
    page = await on_disk.http.get("/messages", params={"$filter": "flag/flagStatus eq 'flagged'"})
    assert len(page.json()["value"]) == 1
    flagged.rename(file)
    assert (await on_disk.http.get(path)).json()["flag"] == complete
