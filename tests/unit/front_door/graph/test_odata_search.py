"""$search: conditions, errors, and any input."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.front_door.graph.odata.expression import CHARACTERS_MAX
from relay.front_door.graph.odata.search import (
    DEPTH_MAX,
    PREFIXES_MAX,
    TERM_CHARACTERS_MAX,
    TERMS_MAX,
    search_condition,
)
from relay.front_door.http.errors import ApiError
from relay.store.mailbox.query import (
    AllOf,
    AnyItem,
    AnyOf,
    Collection,
    Compare,
    CompareItem,
    Condition,
    HasWords,
    ItemProperty,
    Negation,
    Operator,
    Property,
    SearchIn,
)
from tests.support.tables import each_row

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
NOVEMBER_20_US = 1_795_132_800_000_000


NOW_US = NOVEMBER_20_US + 5 * DAY_US + 12 * 3_600_000_000  # a Wednesday


def search(value: str) -> Condition:
    return search_condition(value, now_us=NOW_US)


def word(text: str, where: SearchIn = SearchIn.ANYWHERE, *, prefix: bool = False) -> HasWords:
    return HasWords(where, text, prefix)


def received(operator: Operator, time_us: int) -> Compare:
    return Compare(Property.RECEIVED, operator, time_us)


def size(operator: Operator, number: int) -> Compare:
    return Compare(Property.SIZE, operator, number)


def category(operator: Operator, name: str) -> AnyItem:
    return AnyItem(Collection.CATEGORIES, CompareItem(ItemProperty.ITSELF, operator, name))


def days(first: int, last: int) -> AllOf:
    begin, end = (NOVEMBER_20_US + day * DAY_US for day in (first, last + 1))
    return AllOf((received(Operator.GE, begin), received(Operator.LT, end)))


@each_row(
    "value, expected",
    [
        ("pizza", word("pizza")),
        ('"fresh pizza"', AllOf((word("fresh"), word("pizza")))),
        ('"\\"fresh pizza\\""', word("fresh pizza")),
        ('"fresh pizza" OR "new wine"', AnyOf((word("fresh pizza"), word("new wine")))),
        ('"subject:\\"new wine\\" OR a"', AnyOf((word("new wine", SearchIn.SUBJECT), word("a")))),
        ('"a\\\\b"', word("a\\b")),
        ("subject:has", word("has", SearchIn.SUBJECT)),
        ("attachment:api-catalog.md", word("api-catalog.md", SearchIn.ATTACHMENT)),
        ("body:exc*", word("exc", SearchIn.BODY, prefix=True)),
        ('"\\"new wi*\\""', word("new wi", prefix=True)),
        ("a b c", AllOf((word("a"), word("b"), word("c")))),
        ("a OR b AND c", AnyOf((word("a"), AllOf((word("b"), word("c")))))),
        ("(a OR b) c", AllOf((AnyOf((word("a"), word("b"))), word("c")))),
        ("NOT (a b)", Negation(AllOf((word("a"), word("b"))))),
        ("a and or not", AllOf((word("a"), word("and"), word("or"), word("not")))),
        ('"\\"AND\\""', word("AND")),
        (
            "cc:a bcc:b participants:c",
            AllOf(
                (word("a", SearchIn.CC), word("b", SearchIn.BCC), word("c", SearchIn.PARTICIPANTS))
            ),
        ),
        ("hasAttachments:true", Compare(Property.HAS_ATTACHMENTS, Operator.EQ, value=True)),
        ("isread:false", Compare(Property.IS_READ, Operator.EQ, value=False)),
        ("received:2026-11-20", days(0, 0)),
        ('received:"11/20/2026"', days(0, 0)),
        ("received<>2026-11-20", Negation(days(0, 0))),
        ("received:2026-11-20..2026-11-22", days(0, 2)),
        ("received>=2026-11-20", received(Operator.GE, NOVEMBER_20_US)),
        ("größe", word("größe")),
        ("received:today", days(5, 5)),
        ('"received:\\"this week\\""', days(2, 8)),
        ("received:this month", days(-19, 10)),
        ("received:this year", days(-323, 41)),
        ("received=last year", days(-688, -324)),
        ('received:"last week..today"', days(-5, 5)),
        ("received>=2026-11-20T08:00:00Z", received(Operator.GE, NOVEMBER_20_US + 8 * HOUR_US)),
        (
            "received<=2026-11-20t09:00+01:00",
            received(Operator.LT, NOVEMBER_20_US + 8 * HOUR_US + 60_000_000),
        ),
        (
            "sent:2026-11-20T00:00:01..2026-11-20T00:00:01.5",
            AllOf(
                (
                    Compare(Property.SENT, Operator.GE, NOVEMBER_20_US + 1_000_000),
                    Compare(Property.SENT, Operator.LT, NOVEMBER_20_US + 2_500_000),
                )
            ),
        ),
        ("size:1..500", AllOf((size(Operator.GE, 1), size(Operator.LE, 500)))),
        ("kind:Email", AllOf(())),
        ("kind:meetings", AnyOf(())),
        ('category="Red category"', category(Operator.EQ, "Red category")),
        ("from:(a OR b)", AnyOf((word("a", SearchIn.FROM), word("b", SearchIn.FROM)))),
        (
            'subject:("a b" c* to:d) e',
            AllOf(
                (
                    AllOf(
                        (
                            word("a b", SearchIn.SUBJECT),
                            word("c", SearchIn.SUBJECT, prefix=True),
                            word("d", SearchIn.TO),
                        )
                    ),
                    word("e"),
                )
            ),
        ),
        (
            "(from:a OR subject:(b OR (c NOT d)))",
            AnyOf(
                (
                    word("a", SearchIn.FROM),
                    AnyOf(
                        (
                            word("b", SearchIn.SUBJECT),
                            AllOf(
                                (word("c", SearchIn.SUBJECT), Negation(word("d", SearchIn.SUBJECT)))
                            ),
                        )
                    ),
                )
            ),
        ),
        ("received:(today OR yesterday)", AnyOf((days(5, 5), days(4, 4)))),
        ('a "NEAR" b', AllOf((word("a"), word("NEAR"), word("b")))),
    ],
)
def test_a_search_selects_messages(value: str, expected: Condition) -> None:
    assert search(value) == expected


def test_a_week_begins_on_sunday() -> None:
    sunday_us = NOVEMBER_20_US + 2 * DAY_US
    for now_us in (sunday_us, sunday_us + 7 * DAY_US - 1):
        assert search_condition("received:this week", now_us=now_us) == days(2, 8)


def api_error(value: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        search(value)
    assert (caught.value.status, caught.value.code) == (400, "BadRequest")
    return caught.value


@each_row(
    "value, position, named",
    [
        ("", 0, "found the end, expected a word"),
        ('"  "', 2, "found the end, expected a word"),
        ("AND a", 0, "found 'AND', expected a word"),
        ("(a", 2, "found the end, expected ')'"),
        ('a "b', 2, "expected its closing quote"),
        ('"subject:"new wine""', 0, 'a quote within quotes is \\"'),
        ("title:x", 0, "expected one of subject, body"),
        *(
            (f"size{one}", 0, "size:1..500000")
            for one in (":", ":x", ":1..", ":..1", "<1..2", ":-1", ":1" + "0" * 15)
        ),
        ("kind:mail", 0, "expected one of email, contacts"),
        ("category:", 0, "the name of a category"),
        ("subject>(a)", 0, "expected subject:word"),
        ("subject: (a)", 0, "a word with a letter or a digit"),
        ("NEAR a", 0, "AND, OR, NOT, or the word in quotes"),
        ("received:next week", 0, "one of today, yesterday, this week"),
        ("a (b OR c AND ) d", 14, "found ')', expected a word; it is in 'a (b OR c AND ) d'"),
        ("a*b", 0, "* at the end of a word only"),
        ("a XRANK b", 2, "AND, OR, NOT, or the word in quotes"),
        ("hasAttachments:maybe", 0, "hasattachments:true or hasattachments:false"),
        ("received:tomorrow", 0, "a day: 2026-11-20"),
        ("received>2026-11-20..2026-11-21", 0, "one day after < and >"),
    ],
)
def test_an_invalid_search_gives_the_position(value: str, position: int, named: str) -> None:
    message = api_error(value).message
    assert message.startswith(f"Syntax error: position {position}: ")
    assert named in message


def test_the_limits_of_a_search() -> None:
    search("(" * DEPTH_MAX + "a" + ")" * DEPTH_MAX)
    search("a " * TERMS_MAX)
    search("(a) " * (DEPTH_MAX + 1))
    search("NOT a " * (DEPTH_MAX + 1))
    search("a* " * PREFIXES_MAX + "a " * (TERMS_MAX - PREFIXES_MAX))
    search("a" * TERM_CHARACTERS_MAX + " " * (CHARACTERS_MAX - TERM_CHARACTERS_MAX))
    assert "at most 32 levels" in api_error("(" * (DEPTH_MAX + 1) + "a").message
    assert "at most 32 levels" in api_error("NOT " * (DEPTH_MAX + 1) + "a").message
    message = "Invalid search clause: found 51 words and phrases, expected at most 50."
    assert api_error("a " * (TERMS_MAX + 1)).message == message
    message = api_error("cc:a* OR " * PREFIXES_MAX + '"b c*"').message
    assert "found 11 words and phrases that end in *, expected at most 10." in message
    for term in ("a" * 256, '"' + "a " * 127 + 'aa"', "subject:" + "a" * 256, "a" * 255 + "*"):
        message = api_error(f"b {term}").message
        assert (
            "position 2: found a word or phrase of 256 characters, expected at most 255." in message
        )
    assert "at most 8192" in api_error("a" * (CHARACTERS_MAX + 1)).message


@each_row("piece", ["(", ")", '"', '\\"', "\\", "NOT ", "a:", "a*", "<", "!", '"a" '])
def test_eight_kilobytes_of_anything_take_no_time(piece: str) -> None:
    api_error((piece * CHARACTERS_MAX)[:CHARACTERS_MAX])
    api_error(('"' + piece * CHARACTERS_MAX)[: CHARACTERS_MAX - 3] + ')*"')


# -- a tree, written down and read again, is the same tree


PIECES = st.sampled_from(
    [
        *("AND", "OR", "NOT", "a", "b*", "(", ")", '"', '\\"', '"a b"', "subject:", "to:a"),
        *("received>", "x", "this week", "size:1..", "kind:email"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map(" ".join) | st.text(max_size=40))
def test_any_text(value: str) -> None:
    with suppress(ApiError):
        assert search(value) == search(f" {value} ")
