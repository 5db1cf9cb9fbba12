"""Patterns: what is found, what is refused, and that no pattern ends the process."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.transport.policy import patterns as patterns_module
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


@each_row("value, expected", [
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
    ])  # fmt: skip
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
    [
        ["x{}.{{100}}", "[a-z]{{150}}{}"],
        ["{}" + "z" * 950],
        ["({}|a|aa|b){{90}}"],
    ],
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


@pytest.mark.parametrize(
    ("texts", "slow"),
    [
        ([f"{one}[ab {one}]{{40}}{two}" for one in "abcd" for two in "wxyz"], "[ab "),
        (["invoice", "a.{60}b", "spam"], "a.{60}b"),
        ([f"word{number}" for number in range(1000)], None),
        (["viagra|cialis|v[i1]agra", r"(?:https?://)?[\w.-]+\.(?:ru|cn)/"], None),
    ],
    ids=["together", "alone", "words", "usual"],
)
def test_a_set_that_is_slow_on_its_own_letters_names_its_dearest_pattern(texts, slow):
    found = set_of(*texts).slow_pattern(time.thread_time)
    assert found is None if slow is None else slow in found.text


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_re2_itself_ends_the_process_at_a_match_after_a_set_that_does_not_compile():
    code, _, _ = run(
        "import re2\ns = re2.Set.SearchSet()\n"
        "for n in range(2000): s.Add(f'{n}' + 'z' * 990)\n"
        "try: s.Compile()\nexcept re2.error: s.Match('a')"
    )
    assert code < 0


RANDOM_SETS = """
import random
from relay.transport.policy.patterns import Pattern, PatternError, PatternSet
rng, counts = random.Random(1), [0, 0, 0]
PIECES = ["a", "b", ".", "[ab ]", "[^a]", "(", ")", "|", "*", "+", "?", "{3}", "{200}", "{1001}",
    "^", "$", "\\\\b", "\\\\pL", "\\\\C", "\\\\", "[", "]", "(?i)", "(?s:", "\\0", "é", "\\ud800", "x" * 300]
for number in range(300):
    patterns = []
    for _ in range(rng.choice([1, 5, 20])):
        text = "".join(rng.choices(PIECES, k=rng.randrange(1, 9)))
        try:
            patterns.append(Pattern.parse(text))
        except ValueError:
            counts[0] += 1
    if number % 150 == 0:  # beyond the memory of a set
        patterns += [Pattern(f"{each}" + "z" * 990, 0) for each in range(1100)]
    try:
        compiled = PatternSet(patterns)
    except PatternError:
        counts[1] += 1
        continue
    for text in ("", "ab a\\0b" * 20, "".join(rng.choices("ab é\\ud800", k=500))):
        assert set(compiled.matching(text)) <= set(patterns)
    counts[2] += 1
print(*counts)
"""


def test_the_process_lives_through_random_sets():
    code, out, err = run(RANDOM_SETS)
    assert (code, err) == (0, "")
    refused, failed, matched = map(int, out.split())
    assert refused > 150
    assert failed == 2
    assert matched == 298


def test_a_set_holds_what_it_says_about_memory():
    assert patterns_module._options().max_mem == 16 * 1024 * 1024
