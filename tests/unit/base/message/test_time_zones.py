"""Time zones by their IANA and Windows names."""

from datetime import UTC, datetime, timedelta

import pytest

from relay.base.message.time_zones import WINDOWS_ZONES, time_zone
from tests.support.tables import each_row


@each_row(
    "name, hours",
    [
        ("UTC", 0),
        ("Europe/Berlin", 2),
        ("W. Europe Standard Time", 2),
        ("pacific standard time", -7),
        ("America/Argentina/Buenos_Aires", -3),
        ("Etc/GMT+12", -12),
        ("India Standard Time", 5.5),
    ],
)
def test_the_offset_of_a_zone_in_july(name: str, hours: float) -> None:
    july = datetime(2026, 7, 1, tzinfo=UTC).astimezone(time_zone(name))
    assert july.utcoffset() == timedelta(hours=hours)


def test_every_windows_name_has_a_zone() -> None:
    assert {time_zone(name).key for name in WINDOWS_ZONES} == set(WINDOWS_ZONES.values())


@pytest.mark.parametrize(
    "name",
    [
        *("", "Europe", "Europe/", "/etc/localtime", "../../etc/passwd", "localtime", "posixrules"),
        *("right/Europe/Berlin", "Mars/Olympus", "Europe\0", "Zürich", "a" * 10_000, "A/" * 3000),
        *("Customized Time Zone", "Factory", "zone.tab", "tzdata.zi"),
    ],
)
def test_an_unknown_name_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="expected a time zone such as Europe/Berlin") as caught:
        time_zone(name)
    assert len(str(caught.value)) < 250
