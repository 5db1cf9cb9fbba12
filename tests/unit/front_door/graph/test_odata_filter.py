"""$filter: conditions, errors, and any input."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.front_door.graph.odata.expression import CHARACTERS_MAX, DEPTH_MAX, TERMS_MAX
from relay.front_door.graph.odata.resources import message_condition
from relay.front_door.http.errors import ApiError
from relay.store.mailbox.query import (
    AllOf,
    AnyItem,
    AnyOf,
    Collection,
    Compare,
    CompareItem,
    Condition,
    ItemProperty,
    Negation,
    Operator,
    Property,
)
from tests.support.tables import each_row

EQ, NE, GT, GE, LT, LE = (Operator(name) for name in ("eq", "ne", "gt", "ge", "lt", "le"))
CONTAINS = Operator.CONTAINS
UNREAD = Compare(Property.IS_READ, EQ, value=False)
READ = Compare(Property.IS_READ, EQ, value=True)
RECEIVED_US = 1_795_157_320_000_000  # 2026-11-20T06:48:40Z
ADDRESS, NAME = ItemProperty.ADDRESS, ItemProperty.NAME


def subject(value: str, operator: Operator = EQ) -> Compare:
    return Compare(Property.SUBJECT, operator, value)


def received(operator: Operator, time_us: int = RECEIVED_US) -> Compare:
    return Compare(Property.RECEIVED, operator, time_us)


def to(value: str, operator: Operator = EQ, named: ItemProperty = ADDRESS) -> CompareItem:
    return CompareItem(named, operator, value)


@each_row(
    "text, expected",
    [
        ("isRead eq false", UNREAD),
        ("ISREAD EQ False", UNREAD),
        ("isRead", READ),
        ("not isRead", Negation(READ)),
        ("false eq isRead", UNREAD),
        ("subject eq 'it''s'", subject("it's")),
        ("subject in ('a', 'b')", AnyOf((subject("a"), subject("b")))),
        ("not (subject IN ('a'))", Negation(subject("a"))),
        ("subject eq 'a and (b'", subject("a and (b")),
        ("'m' lt subject", subject("m", GT)),
        ("'m' ge subject", subject("m", LE)),
        ("subject eq null", subject("")),
        ("subject ne null", subject("", NE)),
        ("isRead ne null", AllOf(())),
        ("receivedDateTime eq null", AnyOf(())),
        ("true", AllOf(())),
        ("tolower(subject) eq tolower('A')", subject("A")),
        ("contains(subject,'x')", subject("x", CONTAINS)),
        ("contains(tolower(subject), 'x') eq true", subject("x", CONTAINS)),
        ("false ne StartsWith(subject,'x')", subject("x", Operator.STARTS_WITH)),
        (
            "endswith(from/emailAddress/address,'@a.test')",
            Compare(Property.FROM_ADDRESS, Operator.ENDS_WITH, "@a.test"),
        ),
        ("from/EmailAddress/Name eq 'A'", Compare(Property.FROM_NAME, EQ, "A")),
        ("importance eq 'High'", Compare(Property.IMPORTANCE, EQ, "high")),
        (
            "importance ge microsoft.graph.importance'normal'",
            Compare(Property.IMPORTANCE, GE, "normal"),
        ),
        ("flag/flagStatus ne 'notflagged'", Compare(Property.FLAG, NE, "notFlagged")),
        ("internetMessageId eq '<a@b>'", Compare(Property.INTERNET_MESSAGE_ID, EQ, "<a@b>")),
        # precedence
        (
            "isRead or subject eq 'a' and not isRead",
            AnyOf((READ, AllOf((subject("a"), Negation(READ))))),
        ),
        ("(isRead or subject eq 'a') and isRead", AllOf((AnyOf((READ, subject("a"))), READ))),
        ("isRead and (isRead and isRead)", AllOf((READ, AllOf((READ, READ))))),
        ("not subject eq 'a' and isRead", AllOf((Negation(subject("a")), READ))),
        ("(isRead and isRead) eq false", Negation(AllOf((READ, READ)))),
        # lists
        (
            "toRecipients/any(r:r/emailAddress/address eq 'a@b.test')",
            AnyItem(Collection.TO, to("a@b.test")),
        ),
        (
            "ccRecipients/any(r: contains(r/emailAddress/name,'a') and r/emailAddress/address ne 'b')",
            AnyItem(Collection.CC, AllOf((to("a", CONTAINS, NAME), to("b", NE)))),
        ),
        (
            "bccRecipients/all(x : endswith(x/emailAddress/address,'@a.test'))",
            Negation(AnyItem(Collection.BCC, Negation(to("@a.test", Operator.ENDS_WITH)))),
        ),
        ("replyTo/any()", AnyItem(Collection.REPLY_TO, AllOf(()))),
        (
            "categories/any(c:c eq 'Red')",
            AnyItem(Collection.CATEGORIES, to("Red", named=ItemProperty.ITSELF)),
        ),
        (
            "categories/any(c:startswith(c,'R') or 'x' eq c)",
            AnyItem(
                Collection.CATEGORIES,
                AnyOf(
                    (
                        to("R", Operator.STARTS_WITH, ItemProperty.ITSELF),
                        to("x", named=ItemProperty.ITSELF),
                    )
                ),
            ),
        ),
    ],
)
def test_a_filter_selects_messages(text: str, expected: Condition) -> None:
    assert message_condition(text) == expected


@each_row(
    "written, time_us",
    [
        ("2026-11-20T06:48:40Z", RECEIVED_US),
        ("2026-11-20t06:48:40z", RECEIVED_US),
        ("2026-11-20T06:48:40", RECEIVED_US),
        ("2026-11-20T06:48:40.1234567Z", RECEIVED_US + 123_456),
        ("2026-11-20T06:48:40.5Z", RECEIVED_US + 500_000),
        ("2026-11-20T08:48:40+02:00", RECEIVED_US),
        ("2026-11-20T08:48:40 02:00", RECEIVED_US),  # a plus that was not percent-encoded
        ("2026-11-20T01:18:40-05:30", RECEIVED_US),
        ("2026-11-20T06:48Z", RECEIVED_US - 40_000_000),
        ("2026-11-20", RECEIVED_US - (6 * 3600 + 48 * 60 + 40) * 1_000_000),
        ("0001-01-01T00:00:00+14:00", -62_135_596_800_000_000 - 14 * 3_600_000_000),
        ("1969-12-31T23:59:59.25Z", -750_000),
    ],
)
def test_times(written: str, time_us: int) -> None:
    assert message_condition(f"receivedDateTime ge {written}") == received(GE, time_us)


def test_eq_compares_times_to_the_second() -> None:
    second = AllOf((received(GE), received(LT, RECEIVED_US + 1_000_000)))
    assert message_condition("receivedDateTime eq 2026-11-20T06:48:40Z") == second
    assert message_condition("receivedDateTime ne 2026-11-20T06:48:40Z") == Negation(second)
    exact = message_condition("receivedDateTime eq 2026-11-20T06:48:40.25Z")
    assert exact == received(EQ, RECEIVED_US + 250_000)


def api_error(text: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        message_condition(text)
    assert caught.value.status == 400
    return caught.value


OF_CLASS = "singleValueExtendedProperties/any(ep:ep/id eq 'String 0x001A' and "


@each_row(
    "text, position, named",
    [
        ("", 0, "found the end, expected a property"),
        ("isRead eq", 9, "found the end"),
        ("isRead equals true", 7, "found 'equals', expected one of eq, ne"),
        ("isRead eq true)", 14, "found ')', expected 'and', 'or' or the end"),
        ("(isRead eq true", 15, "expected ')'"),
        ("subject eq 'abc", 11, "expected its closing quote"),
        ('subject eq "abc"', 11, "expected a name, a value or a sign"),
        ("subject eq from/emailAddress/name", 11, "expected a value"),
        ("subject eq true", 11, "expected a text in single quotes"),
        ("subject", 0, "expected a comparison"),
        ("'a' eq 'b'", 0, "expected a property"),
        ("isRead gt true", 7, "expected eq or ne"),
        ("flag/flagStatus eq 'red'", 19, "one of 'notFlagged', 'flagged', 'complete'"),
        ("startswith(importance,'h')", 11, "a property that is a text"),
        ("receivedDateTime ge '2026-11-20T06:48:40Z'", 20, "a time without quotes"),
        ("receivedDateTime ge 2026-13-20", 20, "a date and time that exist"),
        ("receivedDateTime ge 20261120", 20, "a time without quotes"),
        ("cast(subject,Edm.String) eq 'x'", 0, "expected cast(ep/value,TYPE)"),
        (OF_CLASS + "cast(ep/value, Edm.Int99) eq 1)", 81, "expected one of Edm.Int32, "),
        ("substringof('x',subject)", 0, "contains(property,'text')"),
        ("contains(subject,null)", 17, "a text in single quotes"),
        ("contains(subject,'x') eq 'true'", 25, "true or false"),
        ("toRecipients/any(r:r/emailAddress/adress eq 'a')", 19, "r/emailAddress/address or r/"),
        ("toRecipients/any(r/x:r eq 'a')", 17, "the name of a variable"),
        ("toRecipients/all()", 17, "the name of a variable"),
        ("toRecipients/any(r:categories/any(c:c eq 'a'))", 19, "a property of 'r'"),
        ("subject eq 'x' and\x00", 18, "found '\\x00'"),
    ],
)
def test_an_invalid_filter_gives_the_position(text: str, position: int, named: str) -> None:
    error = api_error(text)
    assert f"position {position}:" in error.message + error.detail
    assert named in error.message + error.detail
    assert error.message.startswith("Invalid filter clause: ")


@each_row(
    "text, hint",
    [
        ("bodyPreview eq 'x'", '$search="body:word"'),
        ("contains(body,'x')", "expected body/content"),
        ("from eq 'a@b.test'", "expected from/emailAddress/address or from/emailAddress/name"),
        ("toRecipients eq 'a@b.test'", "toRecipients/any(x:x"),
        ("toRecipients/emailAddress/address eq 'a@b.test'", "cannot be filtered by"),
        ("subject/length eq 3", "'subject/length' cannot be filtered by"),
        ("changeKey eq 'x'", "'changeKey' cannot be filtered by"),
        ("attachments/any(a:a/name eq 'x')", "attachment:name"),
        (
            "singleValueExtendedProperties/any(p:p/id eq 'x')",
            "singleValueExtendedProperties/any(ep:ep/id eq 'TYPE 0xTAG' and ep/value eq 'text')",
        ),
        (
            "multiValueExtendedProperties/any(p:p/id eq 'x')",
            "multiValueExtendedProperties/any(ep:ep/id eq",
        ),
    ],
)
def test_a_property_that_cannot_be_filtered_by_is_named(text: str, hint: str) -> None:
    error = api_error(text)
    assert error.code == "ErrorInvalidUrlQueryFilter"
    assert hint in error.detail


def test_every_property_and_collection_can_be_filtered_by() -> None:
    for named in Property:
        text = f"{named} ne null"
        if named in (Property.MESSAGE_CLASS, Property.SIZE, Property.ARTICLE):
            text = OF_CLASS.replace("String 0x001A", named) + "ep/value ne null)"
        condition = message_condition(text)
        dated = Compare(named, GE, 0)  # only the flag's times can be missing
        assert condition in (
            (dated,)
            if "flag/" in named and named is not Property.FLAG
            else (Compare(named, NE, ""), AllOf(()))
        )
    for collection in Collection:
        assert message_condition(f"{collection}/any()") == AnyItem(collection, AllOf(()))


@each_row(
    "text",
    [
        "(" * DEPTH_MAX + "isRead" + ")" * DEPTH_MAX,
        "not " * DEPTH_MAX + "isRead",
        " and ".join(["isRead"] * TERMS_MAX),
        f"subject eq '{'a' * (CHARACTERS_MAX - 13)}'",
        *(
            " or ".join([one] * (DEPTH_MAX + 1))  # beside each other, not within
            for one in (
                *("not isRead", "(isRead)", "contains(subject,'x')", "categories/any()"),
                "categories/any(c:c eq 'x')",
            )
        ),
    ],
)
def test_a_filter_at_the_limits_is_accepted(text: str) -> None:
    message_condition(text)


@each_row(
    "text, named",
    [
        ("(" * (DEPTH_MAX + 1) + "isRead" + ")" * (DEPTH_MAX + 1), "more than 32 levels"),
        ("not " * (DEPTH_MAX + 1) + "isRead", "more than 32 levels"),
        ("tolower(" * (DEPTH_MAX + 1), "more than 32 levels"),
        (" and ".join(["isRead"] * (TERMS_MAX + 1)), "more than 200 names and values"),
        (f"subject eq '{'a' * (CHARACTERS_MAX - 12)}'", "expected at most 8192"),
    ],
)
def test_a_filter_over_the_limits_is_rejected(text: str, named: str) -> None:
    assert named in api_error(text).message


@each_row(
    "piece",
    [
        *("(", ")", "'", "''", "not ", "not(", "a/", "a.", "1-", "2026-11-20T", "x'", ","),
        *("any(a:", " "),
    ],
)
def test_eight_kilobytes_of_anything_take_no_time(piece: str) -> None:
    api_error((piece * CHARACTERS_MAX)[:CHARACTERS_MAX])
    api_error("subject eq " + (piece * CHARACTERS_MAX)[: CHARACTERS_MAX - 11] + "\x00")


# -- a tree, written down and read again, is the same tree


PIECES = st.sampled_from(
    [
        *("and", "or", "not", "eq", "ge", "null", "true", "subject", "isRead", "receivedDateTime"),
        *("toRecipients/any(", "categories/all(c:", "c", "r:", "r/emailAddress/address", "("),
        *(
            ")",
            ",",
            "'",
            "''",
            "'x'",
            "contains(",
            "tolower(",
            "2026-11-20",
            "2026-11-20T06:48:40Z",
        ),
        *("5", "-", "microsoft.graph.importance'low'", "importance", "/", "$", "flag/flagStatus"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map(" ".join) | st.text(max_size=40))
def test_any_text(text: str) -> None:
    with suppress(ApiError):
        assert message_condition(text) == message_condition(f" ({text})")
