"""Patterns: what is found, what is refused, and that no pattern ends the process."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.transport.policy.patterns import (
    PATTERN_STEPS_MAX,
    SET_STEPS_MAX,
    Pattern,
    PatternError,
    PatternSet,
)
from tests.support.tables import each_row


def set_of(*texts):
    return PatternSet(map(Pattern.parse, texts))


@each_row(
    "pattern, text, matches",
    [
        ("b+", "abbc", True),
        ("^b", "ab", False),
        ("straße", "STRAßE", True),
        ("ä", "Ä", True),
        ("(?-i)a", "A", False),
        ("a.c", "a\nc", False),
        ("(?s)a.c", "a\nc", True),
        ("a\0b", "xa\0bx", True),
        ("^$", "", True),
        (r"\bword\b", "a Word.", True),
        ("^a.b$", "a\N{GRINNING FACE}b", True),
        (r"a\?b", "a\ud800b", True),
        ("a{1,400}", "aaa", True),
    ],
)
def test_a_pattern_is_found_anywhere_without_regard_to_case(pattern, text, matches):
    assert bool(set_of(pattern).matching(text)) is matches


@each_row(
    "value, expected",
    [
        ("", "a regular expression"),
        (3, "a regular expression"),
        ("a(", 'RE2 accepts: it says "missing '),
        ("(?=a)", "RE2 accepts: it says"),
        (r"(a)\1", "RE2 accepts: it says"),
        ("a{1001}", "RE2 accepts: it says"),
        ("(" * 5000 + ")" * 5000, f"at most {PATTERN_STEPS_MAX} steps"),
        ("\ud800", "in Unicode"),
        ("a" * 1000, f"at most {PATTERN_STEPS_MAX} steps, not 100"),
        (r"\pL{9}", f"at most {PATTERN_STEPS_MAX} steps"),
        ("((a{100}){100}){100}", "RE2 accepts: it says"),
    ],
)
def test_a_pattern_that_re2_refuses_or_that_is_too_large_is_a_fault(capfd, value, expected):
    with pytest.raises(ValueError, match=expected):
        Pattern.parse(value)
    assert capfd.readouterr() == ("", "")  # re2 itself says nothing


def test_patterns_are_answered_in_their_order_and_each_once():
    texts = [f"{letter}|zz" for letter in "qwertyuiopasdfghjkl"]
    found = set_of(*texts, *texts).matching("zz")
    assert [each.text for each in found] == texts


@pytest.mark.parametrize(
    "texts",
    [["x{}.{{100}}", "[a-z]{{150}}{}"], ["{}" + "z" * 950], ["({}|a|aa|b){{90}}"]],
    ids=["classes", "words", "choices"],
)
def test_a_set_at_its_bound_can_be_compiled_and_matched(texts):
    patterns, steps = [], 0
    for number in range(10_000):
        pattern = Pattern.parse(texts[number % len(texts)].format(number))
        steps += pattern.steps
        if steps > SET_STEPS_MAX:
            break
        patterns.append(pattern)
    assert len(patterns) > 40
    assert PatternSet(patterns).matching("ab" * 2000) is not None


def test_a_set_that_cannot_be_compiled_is_an_error():
    patterns = [Pattern(f"{number}" + "z" * 950, 0) for number in range(1200)]
    with pytest.raises(PatternError, match="1200 patterns cannot be compiled"):
        PatternSet(patterns)
    with pytest.raises(PatternError, match="1 patterns cannot be compiled"):
        PatternSet([Pattern("(", 1)])


class Silent:
    """A compiled set that ran out of memory: it answers that nothing matches."""

    def Match(self, _):  # noqa: N802
        return None


def test_an_answer_without_the_pattern_that_always_matches_is_an_error():
    patterns = set_of("a")
    patterns._compiled = Silent()
    with pytest.raises(PatternError, match="ran out of memory"):
        patterns.matching("a")


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=8),
    st.text("abc", max_size=12),
)
@settings(max_examples=200)
def test_plain_words_are_found_as_python_finds_them(words, text):
    expected = [word for word in dict.fromkeys(words) if word in text]
    assert [each.text for each in set_of(*words).matching(text)] == expected
