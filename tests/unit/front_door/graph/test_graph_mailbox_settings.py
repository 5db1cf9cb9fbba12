"""mailboxSettings: what is read, what PATCH stores, and what it rejects."""

import asyncio
from typing import Any

import pytest

from relay.store.mailbox.settings_file import FILE_NAME
from tests.support.graph_fakes import GraphInMemory, OnDisk, refused
from tests.support.tables import each_row

SETTINGS = "/v1.0/me/mailboxSettings"
FROM_8_TO_5 = {
    "daysOfWeek": ["monday", "tuesday", "wednesday", "thursday", "friday"],
    "startTime": "08:00:00.0000000",
    "endTime": "17:00:00.0000000",
    "timeZone": {"name": "UTC"},
}


async def changed(graph: GraphInMemory, change: object) -> dict[str, Any]:
    """Return the settings after a PATCH; a GET returns the same."""
    answer = await graph.http.patch(SETTINGS, json=change)
    assert answer.status_code == 200, answer.text
    assert (await graph.http.get(SETTINGS)).json() == answer.json()
    found: dict[str, Any] = answer.json()
    return found


async def test_the_settings_of_a_new_mailbox(graph: GraphInMemory) -> None:
    settings = (await graph.http.get(SETTINGS)).json()
    context = settings.pop("@odata.context")
    assert context.endswith("/$metadata#users('alice%40example.test')/mailboxSettings")
    automatic = settings.pop("automaticRepliesSetting")
    assert settings == {
        "archiveFolder": "archive",
        "timeZone": "UTC",
        "delegateMeetingMessageDeliveryOptions": "sendToDelegateOnly",
        "dateFormat": "M/d/yyyy",
        "timeFormat": "h:mm tt",
        "userPurpose": "user",
        "language": {"locale": "en-US", "displayName": "English (United States)"},
        "workingHours": FROM_8_TO_5,
    }
    assert (automatic["status"], automatic["internalReplyMessage"]) == ("disabled", "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"timeZone": "Europe/Berlin"}, {"timeZone": "Europe/Berlin"}),
        ({"timeZone": "W. Europe Standard Time"}, {"timeZone": "W. Europe Standard Time"}),
        (
            {"language": {"locale": "de-DE", "displayName": "German (Germany)"}},
            {"language": {"locale": "de-DE", "displayName": "German (Germany)"}},
        ),
        (
            {"language": {"locale": "fr-CA"}},
            {"language": {"locale": "fr-CA", "displayName": "fr-CA"}},
        ),
        (
            {"dateFormat": "dd.MM.yyyy", "timeFormat": "HH:mm", "@odata.context": "x"},
            {"dateFormat": "dd.MM.yyyy", "timeFormat": "HH:mm"},
        ),
        (
            {"workingHours": {"startTime": "07:30", "daysOfWeek": ["Sunday", "MONDAY"]}},
            {
                "workingHours": FROM_8_TO_5
                | {"startTime": "07:30:00.0000000", "daysOfWeek": ["sunday", "monday"]}
            },
        ),
        (
            {"workingHours": {"timeZone": {"name": "Pacific Standard Time"}}},
            {"workingHours": FROM_8_TO_5 | {"timeZone": {"name": "Pacific Standard Time"}}},
        ),
        (
            {"timeZone": "Asia/Tokyo"},
            {"workingHours": FROM_8_TO_5 | {"timeZone": {"name": "Asia/Tokyo"}}},
        ),
        ({"userPurpose": "room", "archiveFolder": "inbox"}, {"userPurpose": "user"}),
        ({"automaticRepliesSetting": {"status": "Disabled", "externalAudience": "all"}}, {}),
    ],
)
async def test_a_change(graph: GraphInMemory, change: object, expected: dict[str, object]) -> None:
    settings = await changed(graph, change)
    assert settings | expected == settings


async def test_null_sets_the_default(graph: GraphInMemory) -> None:
    before = (await graph.http.get(SETTINGS)).json()
    change = {
        "timeZone": "Asia/Tokyo",
        "language": {"locale": "ja"},
        "dateFormat": "d",
        "timeFormat": "H",
    }
    await changed(graph, {**change, "workingHours": {"startTime": "01:00"}})
    assert await changed(graph, {**dict.fromkeys(change), "workingHours": None}) == before


@each_row(
    "change, status, code, says",
    [
        ({"timeZone": "Mars"}, 400, "InvalidTimeZone", "timeZone: found 'Mars'"),
        ({"timeZone": 5}, 400, "RequestBodyRead", "timeZone"),
        ({"timeZone": "a\nb"}, 400, "ErrorInvalidRequest", "timeZone"),
        ({"language": "de"}, 400, "RequestBodyRead", "language: found 'de'"),
        ({"language": {"locale": "x"}}, 400, "RequestBodyRead", "language.locale"),
        ({"dateFormat": "d" * 65}, 400, "ErrorInvalidRequest", "dateFormat"),
        ({"workingHours": []}, 400, "RequestBodyRead", "workingHours: found an array"),
        ({"workingHours": {"startTime": "08"}}, 400, "RequestBodyRead", "Edm.TimeOfDay"),
        (
            {"workingHours": {"startTime": "24:00"}},
            400,
            "RequestBodyRead",
            "workingHours.startTime",
        ),
        ({"workingHours": {"startTime": "18:00"}}, 400, "ErrorInvalidTimeSettings", "18:00:00 to"),
        ({"workingHours": {"daysOfWeek": ["May"]}}, 400, "RequestBodyRead", "daysOfWeek[0]"),
        ({"workingHours": {"timeZone": {"name": "x"}}}, 400, "InvalidTimeZone", "timeZone.name"),
        ({"workingHours": {"timeZone": {"bias": 5}}}, 501, "NotImplemented", "customTimeZone"),
        (
            {"automaticRepliesSetting": {"status": "alwaysEnabled"}},
            501,
            "NotImplemented",
            "automatic replies",
        ),
        (
            {"automaticRepliesSetting": {"internalReplyMessage": "away"}},
            501,
            "NotImplemented",
            "automatic replies",
        ),
        ({"automaticRepliesSetting": {"status": "x"}}, 400, "RequestBodyRead", ".status"),
        (
            {"delegateMeetingMessageDeliveryOptions": "sendToDelegateAndPrincipal"},
            501,
            "NotImplemented",
            "delegate",
        ),
        ([], 400, "UnableToDeserializePostBody", "object"),
    ],
)
async def test_a_bad_change_changes_nothing(
    graph: GraphInMemory, change: object, status: int, code: str, says: str
) -> None:
    answer = await graph.http.patch(SETTINGS, json=change)
    assert says in refused(answer, status, code)
    assert graph.store.written == 0


async def test_settings_are_kept_in_the_mailbox(on_disk: OnDisk) -> None:
    http, path = on_disk.http, on_disk.root / "example.test/alice" / FILE_NAME
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "UTC"
    assert not path.exists()
    change = {"timeZone": "Asia/Tokyo", "workingHours": {"startTime": "09:00:00.0000000"}}
    assert (await http.patch("/mailboxSettings", json=change)).status_code == 200
    shown = (await http.get("/mailboxSettings")).json()
    assert (shown["timeZone"], shown["workingHours"]["startTime"]) == (
        "Asia/Tokyo",
        "09:00:00.0000000",
    )
    assert not path.with_name(FILE_NAME + ".new").exists()
    assert path.stat().st_mode & 0o777 == 0o600


@each_row(
    "octets", [b"", b"{", b"[]", b'{"time_zone": 5}', b'{"time_zone": "Mars"}', b"\xff" * 100_000]
)
async def test_a_damaged_file_gives_the_defaults(on_disk: OnDisk, octets: bytes) -> None:
    http, path = on_disk.http, on_disk.root / "example.test/alice" / FILE_NAME
    await http.get("/mailboxSettings")
    path.write_bytes(octets)
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "UTC"
    change = {"timeZone": "Asia/Tokyo"}
    assert (await http.patch("/mailboxSettings", json=change)).status_code == 200
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "Asia/Tokyo"


async def test_concurrent_changes_are_all_kept(on_disk: OnDisk) -> None:
    changes = [{"timeZone": "Asia/Tokyo"}, {"dateFormat": "d"}, {"timeFormat": "H"}] * 5
    answers = await asyncio.gather(
        *(on_disk.http.patch("/mailboxSettings", json=change) for change in changes)
    )
    assert {answer.status_code for answer in answers} == {200}
    shown = (await on_disk.http.get("/mailboxSettings")).json()
    assert [shown[name] for name in ("timeZone", "dateFormat", "timeFormat")] == [
        "Asia/Tokyo",
        "d",
        "H",
    ]


@each_row("path", [
        "me/inferenceClassification/overrides",
        "me/mailFolders/inbox/messageRules",
    ])  # fmt: skip
async def test_lists_that_are_empty(graph: GraphInMemory, path: str) -> None:
    page = (await graph.http.get(f"/v1.0/{path}")).json()
    name = path.rpartition("/")[2]
    assert (page["value"], page["@odata.context"].endswith(name)) == ([], True)
    refused(await graph.http.post(f"/v1.0/{path}", json={}), 501, "NotImplemented")


async def test_the_time_zones_of_the_list_can_be_set(graph: GraphInMemory) -> None:
    zones = (await graph.http.get("/v1.0/me/outlook/supportedTimeZones")).json()["value"]
    aliases = [zone["alias"] for zone in zones]
    assert {"UTC", "W. Europe Standard Time", "Pacific Standard Time"} <= set(aliases)
    for alias in aliases[::20]:
        assert (await changed(graph, {"timeZone": alias}))["timeZone"] == alias
