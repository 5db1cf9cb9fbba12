"""mailboxSettings: what is read, what PATCH stores, and what it rejects."""

import asyncio
from typing import Any

import pytest

from relay.store.mailbox.settings_file import FILE_NAME
from tests.support.graph_fakes import OnDisk, WatchedGraph, refused
from tests.support.tables import each_row

SETTINGS = "/v1.0/me/mailboxSettings"
FROM_8_TO_5 = {
    "daysOfWeek": ["monday", "tuesday", "wednesday", "thursday", "friday"],
    "startTime": "08:00:00.0000000",
    "endTime": "17:00:00.0000000",
    "timeZone": {"name": "UTC"},
}


async def changed(graph: WatchedGraph, change: object) -> dict[str, Any]:
    """Return the settings after a PATCH; a GET returns the same."""
    answer = await graph.http.patch(SETTINGS, json=change)
    assert answer.status_code == 200, answer.text
    assert (await graph.http.get(SETTINGS)).json() == answer.json()
    found: dict[str, Any] = answer.json()
    return found


async def test_the_settings_of_a_new_mailbox(graph: WatchedGraph) -> None:
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
            {"timeZone": "Asia/Tokyo"},
            {"workingHours": FROM_8_TO_5 | {"timeZone": {"name": "Asia/Tokyo"}}},
        ),
        ({"userPurpose": "room", "archiveFolder": "inbox"}, {"userPurpose": "user"}),
        ({"automaticRepliesSetting": {"status": "Disabled"}}, {}),
    ],
)
async def test_a_change(graph: WatchedGraph, change: object, expected: dict[str, object]) -> None:
    settings = await changed(graph, change)
    assert settings | expected == settings


async def test_null_sets_the_default(graph: WatchedGraph) -> None:
    before = (await graph.http.get(SETTINGS)).json()
    change = {
        "timeZone": "Asia/Tokyo",
        "language": {"locale": "ja"},
    }
    assert await changed(graph, change) != before
    assert (
        await changed(graph, dict.fromkeys([*change, "workingHours", "automaticRepliesSetting"]))
        == before
    )
    assert await changed(graph, before) == before


async def test_what_relay_does_not_do_is_refused(graph: WatchedGraph) -> None:
    for change, says in (
        ({"workingHours": {"startTime": "07:30:00"}}, "only timeZone"),
        ({"timeZone": "Asia/Tokyo", "dateFormat": "d"}, "dateFormat"),
        ({"automaticRepliesSetting": {"status": "scheduled"}}, "sends no automatic replies"),
        ({"automaticRepliesSetting": {"internalReplyMessage": "x"}}, "sends no automatic replies"),
        ({"delegateMeetingMessageDeliveryOptions": "sendToDelegateAndPrincipal"}, "delegate"),
    ):
        answer = await graph.http.patch(SETTINGS, json=change)
        assert says in refused(answer, 501, "NotImplemented")
    assert graph.store.written == 0


async def test_settings_are_kept_in_the_mailbox(on_disk: OnDisk) -> None:
    http, path = on_disk.http, on_disk.root / "example.test/alice" / FILE_NAME
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "UTC"
    assert not path.exists()
    change = {"timeZone": "Asia/Tokyo"}
    assert (await http.patch("/mailboxSettings", json=change)).status_code == 200
    assert (await http.get("/mailboxSettings")).json()["timeZone"] == "Asia/Tokyo"
    assert not path.with_name(FILE_NAME + ".new").exists()
    assert path.stat().st_mode & 0o777 == 0o600


@each_row(
    "octets", [b"", b"{", b"[]", b'{"time_zone": 5}', b'{"time_zone": "Mars"}', b"\xff" * 100_000]
)
async def test_a_damaged_file_gives_the_defaults(on_disk: OnDisk, octets: bytes) -> None:
    http, path = on_disk.http, on_disk.root / "example.test/alice" / FILE_NAME
    await http.get("/mailFolders/drafts")
    path.write_bytes(octets)
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "UTC"
    change = {"timeZone": "Asia/Tokyo"}
    assert (await http.patch("/mailboxSettings", json=change)).status_code == 200
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "Asia/Tokyo"


async def test_concurrent_changes_are_all_kept(on_disk: OnDisk) -> None:
    changes = [{"timeZone": "Asia/Tokyo"}, {"language": {"locale": "ja"}}] * 5
    answers = await asyncio.gather(
        *(on_disk.http.patch("/mailboxSettings", json=change) for change in changes)
    )
    assert {answer.status_code for answer in answers} == {200}
    shown = (await on_disk.http.get("/mailboxSettings")).json()
    assert (shown["timeZone"], shown["language"]["locale"]) == ("Asia/Tokyo", "ja")


async def test_the_time_zones_of_the_list_can_be_set(graph: WatchedGraph) -> None:
    zones = (await graph.http.get("/v1.0/me/outlook/supportedTimeZones")).json()["value"]
    aliases = [zone["alias"] for zone in zones]
    assert {"UTC", "W. Europe Standard Time", "Pacific Standard Time"} <= set(aliases)
    for alias in aliases[::20]:
        assert (await changed(graph, {"timeZone": alias}))["timeZone"] == alias


async def test_the_file_of_an_earlier_release(on_disk: OnDisk) -> None:
    """It had working hours, formats and the colours of categories."""
    http, path = on_disk.http, on_disk.root / "example.test/alice" / FILE_NAME
    await http.get("/mailFolders/drafts")
    path.write_text(
        '{"time_zone": "Asia/Tokyo", "date_format": "d", "categories": [{"id": "1", "name": "Red"}],'
        ' "working_hours": {"days": ["monday"], "start": "07:30:00", "time_zone": "UTC"}}'
    )
    assert (await http.get("/mailboxSettings/timeZone")).json()["value"] == "Asia/Tokyo"
    assert (await http.get("/outlook/masterCategories")).json()["value"] == []
