"""Extended properties: one spelling for each id, values by type, and the supported ones."""

import pytest

from relay.base.message.extended_properties import (
    ExtendedPropertyError,
    RequestedSendOptions,
    canonical_id,
    canonical_value,
    merged,
    requested_send_options,
)
from relay.base.message.properties import ExtendedProperty
from tests.support.tables import each_row

HEADERS = "{00020386-0000-0000-C000-000000000046}"
NOW_US = 1_700_000_000_000_000


def prop(identity: str, *values: str, multiple: bool = False) -> ExtendedProperty:
    return ExtendedProperty(identity, values, multiple)


@each_row(
    "given, canonical",
    [
        ("SystemTime 0x3FEF", "SystemTime 0x3FEF"),
        ("systemtime 0x3fef", "SystemTime 0x3FEF"),
        ("SystemTime 0xF", "SystemTime 0x000F"),
        (
            "String {66f5a359-4659-4830-9070-00047ec6ac6e} Name Color",
            "String {66F5A359-4659-4830-9070-00047EC6AC6E} Name Color",
        ),
        (
            "string 66f5a359-4659-4830-9070-00047ec6ac6e name two words",
            "String {66F5A359-4659-4830-9070-00047EC6AC6E} Name two words",
        ),
        (
            "Integer {66f5a359-4659-4830-9070-00047ec6ac6e} Id 0x8113",
            "Integer {66F5A359-4659-4830-9070-00047EC6AC6E} Id 0x8113",
        ),
        (
            "Integer {66f5a359-4659-4830-9070-00047ec6ac6e} id 33043",
            "Integer {66F5A359-4659-4830-9070-00047EC6AC6E} Id 0x8113",
        ),
    ],
)
def test_an_id_has_one_spelling(given, canonical):
    assert canonical_id(given) == canonical
    assert canonical_id(canonical) == canonical


@each_row(
    "given, expected",
    [
        ("", "expected an id such as"),
        ("String 0x3FEF0x", "expected an id such as"),
        ("Date 0x3FEF", "one of the types ApplicationTime"),
        ("String 0x0", "a tag from 0x0001"),
        ("String 0x3FEF", "expected 'SystemTime 0x3FEF'"),
        ("String {66f5a359-4659-4830-9070} Name x", "expected an id such as"),
        ("String {66f5a359-4659-4830-9070-00047ec6ac6e} Name", "expected an id such as"),
        ("String {66f5a359-4659-4830-9070-00047ec6ac6e} Name a\r\nb", "expected an id such as"),
        (
            "String {66f5a359-4659-4830-9070-00047ec6ac6e} Name " + "x" * 600,
            "expected an id such as",
        ),
    ],
)
def test_an_invalid_id_is_rejected(given, expected):
    with pytest.raises(ExtendedPropertyError, match=expected):
        canonical_id(given)


def test_array_types_need_multiple():
    assert canonical_id("stringarray 0x8001", multiple=True) == "StringArray 0x8001"
    with pytest.raises(ExtendedPropertyError, match="StringArray"):
        canonical_id("String 0x8001", multiple=True)


@each_row(
    "kind, given, canonical",
    [
        ("Boolean", "TRUE", "true"),
        ("Boolean", False, "false"),
        ("Integer", -(1 << 31), "-2147483648"),
        ("Long", str(1 << 62), str(1 << 62)),
        ("Short", 32767, "32767"),
        ("Currency", "12.34", "12.34"),
        ("Binary", "AQID", "AQID"),
        ("String", "é\r\nü", "é\r\nü"),
        ("CLSID", "{66F5A359-4659-4830-9070-00047EC6AC6E}", "66f5a359-4659-4830-9070-00047ec6ac6e"),
        ("SystemTime", "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z"),
        ("SystemTime", "2026-12-01T02:30:00+02:30", "2026-12-01T00:00:00Z"),
        ("SystemTime", "2026-12-01T00:00:00.1234567Z", "2026-12-01T00:00:00.123456Z"),
        ("SystemTime", "2026-12-01T00:00:00", "2026-12-01T00:00:00Z"),
    ],
)
def test_a_value_fits_its_type(kind, given, canonical):
    assert canonical_value(f"{kind} 0x8001", given) == canonical
    assert canonical_value(f"{kind}Array 0x8001", given) == canonical


@each_row(
    "kind, given",
    [
        ("Boolean", "yes"),
        ("Boolean", 1),
        ("Integer", 1 << 31),
        ("Integer", "9" * 5000),
        ("Short", 32768),
        ("Long", 1 << 63),
        ("Double", "nan"),
        ("Currency", "1,5"),
        ("Binary", "AQI"),
        ("CLSID", "x"),
        ("String", "a\0b"),
        ("String", "\ud800"),
        ("SystemTime", "tomorrow"),
        ("SystemTime", "0001-01-01T00:00:00+14:00"),
        ("String", None),
        ("String", ["a"]),
    ],
)
def test_a_value_of_another_type_is_rejected(kind, given):
    with pytest.raises(ExtendedPropertyError, match=r"expected|found"):
        canonical_value(f"{kind} 0x8001", given)


def test_given_properties_replace_and_remove():
    before = (
        prop("String 0x8001", "a"),
        prop("String 0x8002", "b"),
        prop("SystemTime 0x3FEF", "t"),
    )
    given = (prop("String 0x8002", "c"), prop("SystemTime 0x3FEF"), prop("String 0x8003", "d"))
    assert merged(before, given) == (
        prop("String 0x8001", "a"),
        prop("String 0x8002", "c"),
        prop("String 0x8003", "d"),
    )


@each_row(
    "properties, wishes",
    [
        ([], RequestedSendOptions()),
        ([prop("Boolean 0x0E01", "true")], RequestedSendOptions(delete_after_submit=True)),
        ([prop("Boolean 0x0E01", "false")], RequestedSendOptions()),
        (
            [prop("SystemTime 0x3FEF", "2023-11-14T22:13:20Z")],
            RequestedSendOptions(scheduled_us=NOW_US),
        ),
        ([prop("SystemTime 0x3FEF", "1601-01-01T00:00:00Z")], RequestedSendOptions()),
        (
            [prop("SystemTime 0x000F", "2023-11-14T22:13:20.5Z")],
            RequestedSendOptions(scheduled_us=NOW_US + 500_000),
        ),
        (
            [
                prop("SystemTime 0x000F", "2030-01-01T00:00:00Z"),
                prop("SystemTime 0x3FEF", "2023-11-14T22:13:20Z"),
            ],
            RequestedSendOptions(scheduled_us=NOW_US),
        ),
        (
            [
                prop("Integer 0x3FEB", "2"),
                prop("Integer 0x3FEC", "1"),
                prop("SystemTime 0x3FEF", "2030-01-01T00:00:00Z"),
            ],
            RequestedSendOptions(scheduled_us=NOW_US + 7_200_000_000),
        ),
        ([prop("Integer 0x3FEB", "2")], RequestedSendOptions()),
        ([prop("Integer 0x3FEB", "1000"), prop("Integer 0x3FEC", "3")], RequestedSendOptions()),
        ([prop("Binary 0x0E0A", "archive")], RequestedSendOptions(sent_folders=("archive",))),
        (
            [prop("Binary 0x0E0A", "YXJjaGl2ZQ==")],
            RequestedSendOptions(sent_folders=("YXJjaGl2ZQ==", "archive")),
        ),
        ([prop("Binary 0x0E0A", "/w==")], RequestedSendOptions(sent_folders=("/w==",))),
    ],
)
def test_requested_send_options(properties, wishes):
    assert requested_send_options(properties, now_us=NOW_US) == wishes


@each_row(
    "identity, value",
    [
        (f"String {HEADERS} Name x-a", "one\r\nBcc: two"),
        (f"String {HEADERS} Name x-relay-data", "x"),
        (f"String {HEADERS} Name x-a:b", "x"),
        (f"String {HEADERS} Name x-é", "x"),
        (f"String {HEADERS} Name x-a", "x" * 9000),
        ("String 0x1045", "<a>\n"),
        ("String 0x1039", "<a@b>\r\nX: y"),
        ("Binary 0x0E0A", "a\nb"),
    ],
)
def test_no_value_can_break_a_header(identity, value):
    with pytest.raises(ExtendedPropertyError):
        canonical_value(canonical_id(identity), value)
