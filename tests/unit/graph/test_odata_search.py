"""$search: conditions, errors, and any input."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.graph.odata.expression import CHARACTERS_MAX
from relay.graph.odata.search import (
    DEPTH_MAX,
    PREFIXES_MAX,
    TERM_CHARACTERS_MAX,
    TERMS_MAX,
    search_condition,
)
from relay.http.errors import ApiError
from relay.mailbox.query import (
    AllOf,
    AnyOf,
    Compare,
    Condition,
    HasWords,
    Negation,
    Operator,
    Property,
    SearchIn,
)
from tests.support.conditions import trees

DAY_US = 86_400_000_000
NOVEMBER_20_US = 1_795_132_800_000_000


def word(text: str, where: SearchIn = SearchIn.ANYWHERE, *, prefix: bool = False) -> HasWords:
    return HasWords(where, text, prefix)


def received(operator: Operator, time_us: int) -> Compare:
    return Compare(Property.RECEIVED, operator, time_us)


def days(first: int, last: int) -> AllOf:
    begin, end = (NOVEMBER_20_US + day * DAY_US for day in (first, last + 1))
    return AllOf((received(Operator.GE, begin), received(Operator.LT, end)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("pizza", word("pizza")),
        ('"pizza"', word("pizza")),
        (' "pizza" ', word("pizza")),
        ('"fresh pizza"', AllOf((word("fresh"), word("pizza")))),
        ('"\\"fresh pizza\\""', word("fresh pizza")),
        ('"fresh" pizza', AllOf((word("fresh"), word("pizza")))),
        ('"fresh pizza" OR "new wine"', AnyOf((word("fresh pizza"), word("new wine")))),
        ('"subject:\\"new wine\\" OR a"', AnyOf((word("new wine", SearchIn.SUBJECT), word("a")))),
        ('"a\\\\b"', word("a\\b")),
        ("subject:has", word("has", SearchIn.SUBJECT)),
        ("Subject=has", word("has", SearchIn.SUBJECT)),
        ("from:alice@example.org", word("alice@example.org", SearchIn.FROM)),
        ("attachment:api-catalog.md", word("api-catalog.md", SearchIn.ATTACHMENT)),
        ("body:exc*", word("exc", SearchIn.BODY, prefix=True)),
        ("exc*", word("exc", prefix=True)),
        ('"\\"new wi*\\""', word("new wi", prefix=True)),
        ("a b c", AllOf((word("a"), word("b"), word("c")))),
        ("a AND b c", AllOf((word("a"), word("b"), word("c")))),
        ("a OR b AND c", AnyOf((word("a"), AllOf((word("b"), word("c")))))),
        ("(a OR b) c", AllOf((AnyOf((word("a"), word("b"))), word("c")))),
        ("a (b c)", AllOf((word("a"), AllOf((word("b"), word("c")))))),
        ("NOT a b", AllOf((Negation(word("a")), word("b")))),
        ("NOT (a b)", Negation(AllOf((word("a"), word("b"))))),
        ("a and or not", AllOf((word("a"), word("and"), word("or"), word("not")))),
        ('"\\"AND\\""', word("AND")),
        ("cc:a bcc:b participants:c",
         AllOf((word("a", SearchIn.CC), word("b", SearchIn.BCC),
                word("c", SearchIn.PARTICIPANTS)))),
        ("recipients:a", word("a", SearchIn.RECIPIENTS)),
        ("hasAttachments:true", Compare(Property.HAS_ATTACHMENTS, Operator.EQ, value=True)),
        ("hasattachment=FALSE", Compare(Property.HAS_ATTACHMENTS, Operator.EQ, value=False)),
        ("isread:false", Compare(Property.IS_READ, Operator.EQ, value=False)),
        ("importance:Medium", Compare(Property.IMPORTANCE, Operator.EQ, "normal")),
        ("received:2026-11-20", days(0, 0)),
        ("received=11/20/2026", days(0, 0)),
        ('received:"11/20/2026"', days(0, 0)),
        ("received<>2026-11-20", Negation(days(0, 0))),
        ("received:2026-11-20..2026-11-22", days(0, 2)),
        ("received<2026-11-20", received(Operator.LT, NOVEMBER_20_US)),
        ("received<=2026-11-20", received(Operator.LT, NOVEMBER_20_US + DAY_US)),
        ("received>2026-11-20", received(Operator.GE, NOVEMBER_20_US + DAY_US)),
        ("received>=2026-11-20", received(Operator.GE, NOVEMBER_20_US)),
        ("sent>=2026-11-20", Compare(Property.SENT, Operator.GE, NOVEMBER_20_US)),
        ("größe", word("größe")),
    ],
)  # fmt: skip
def test_a_search_selects_messages(value: str, expected: Condition) -> None:
    assert search_condition(value) == expected


def api_error(value: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        search_condition(value)
    assert (caught.value.status, caught.value.code) == (400, "BadRequest")
    return caught.value


@pytest.mark.parametrize(
    ("value", "position", "named"),
    [
        ("", 0, "found the end, expected a word"),
        ('""', 0, "found the end, expected a word"),
        ('"  "', 2, "found the end, expected a word"),
        ("a OR", 4, "found the end, expected a word"),
        ("AND a", 0, "found 'AND', expected a word"),
        ("a AND OR b", 6, "found 'OR', expected a word"),
        ("a NOT", 5, "found the end, expected a word"),
        ("(a", 2, "found the end, expected ')'"),
        ("a)", 1, "found ')', expected AND, OR or the end"),
        ("()", 1, "found ')', expected a word"),
        ('a "b', 2, "expected its closing quote"),
        ('"subject:"new wine""', 0, 'a quote within quotes is \\"'),
        ("title:x", 0, "expected one of subject, body"),
        ("see http://a.test", 4, "or the text in quotes"),
        ("size:1..5", 0, "expected one of subject, body"),
        ("subject>x", 0, "expected subject:word"),
        ("subject:", 0, "a word with a letter or a digit"),
        ("!!!", 0, "a word with a letter or a digit"),
        ("*", 0, "a word with a letter or a digit"),
        ("a*b", 0, "* at the end of a word only"),
        ("*b", 0, "* at the end of a word only"),
        ("a NEAR b", 2, "AND, OR, NOT, or the word in quotes"),
        ("hasAttachments:yes", 0, "hasattachments:true or hasattachments:false"),
        ("importance:urgent", 0, "importance:low"),
        ("received:yesterday", 0, "a day: 2026-11-20"),
        ("received:2026-02-30", 0, "a day: 2026-11-20"),
        ("received:2026-11-20..", 0, "a day: 2026-11-20"),
        ("received>2026-11-20..2026-11-21", 0, "one day after < and >"),
    ],
)
def test_an_invalid_search_gives_the_position(value: str, position: int, named: str) -> None:
    message = api_error(value).message
    assert message.startswith(f"Invalid search clause: position {position}: ")
    assert named in message


def test_the_limits_of_a_search() -> None:
    search_condition("(" * DEPTH_MAX + "a" + ")" * DEPTH_MAX)
    search_condition("a " * TERMS_MAX)
    search_condition("(a) " * (DEPTH_MAX + 1))
    search_condition("NOT a " * (DEPTH_MAX + 1))
    search_condition("a* " * PREFIXES_MAX + "a " * (TERMS_MAX - PREFIXES_MAX))
    search_condition("a" * TERM_CHARACTERS_MAX + " " * (CHARACTERS_MAX - TERM_CHARACTERS_MAX))
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


@pytest.mark.parametrize(
    "piece", ["(", ")", '"', '\\"', "\\", "NOT ", "a:", "a*", "<", "!", '"a" ']
)
def test_eight_kilobytes_of_anything_take_no_time(piece: str) -> None:
    api_error((piece * CHARACTERS_MAX)[:CHARACTERS_MAX])
    api_error(('"' + piece * CHARACTERS_MAX)[: CHARACTERS_MAX - 3] + ')*"')


# -- a tree, written down and read again, is the same tree

WORDS = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters='"*'), min_size=1, max_size=8
).filter(lambda text: any(one.isalnum() for one in text))
LEAVES = st.builds(HasWords, st.sampled_from(SearchIn), WORDS, st.booleans())


def written(condition: Condition, within: type | None = None) -> str:
    """Return the $search of a condition with the fewest parentheses."""
    match condition:
        case AllOf(parts):
            text = " ".join(written(part, AllOf) for part in parts)
            return f"({text})" if within in (AllOf, Negation) else text
        case AnyOf(parts):
            text = " OR ".join(written(part, AnyOf) for part in parts)
            return f"({text})" if within else text
        case Negation(part):
            return "NOT " + written(part, Negation)
        case HasWords(where, words, prefix):
            return f'{where}:"{words}{"*" * prefix}"'.removeprefix(":")
    raise AssertionError(condition)


@given(trees(LEAVES), st.booleans())
def test_a_tree_that_is_written_down_is_read_as_it_was(tree: Condition, quoted: bool) -> None:
    query = written(tree)
    only_a_phrase = query.startswith('"') and query.count('"') == 2
    if quoted or only_a_phrase or "\\" in query:
        query = '"' + query.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert search_condition(query) == tree


PIECES = st.sampled_from(
    [
        "AND",
        "OR",
        "NOT",
        "a",
        "b*",
        "(",
        ")",
        '"',
        '\\"',
        '"a b"',
        "subject:",
        "to:a",
        "received>",
        "x",
    ]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=14).map(" ".join) | st.text(max_size=40))
def test_any_text(value: str) -> None:
    with suppress(ApiError):
        assert search_condition(value) == search_condition(f" {value} ")
