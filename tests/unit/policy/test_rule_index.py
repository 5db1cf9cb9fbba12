"""The index finds each rule that matches: an evaluation that asks every rule decides the same."""

import pytest
from hypothesis import given

from relay.message.envelope import Source
from relay.policy.engine import Evaluation
from relay.policy.globs import Globs
from relay.policy.rule_tests import examined_message
from tests.support.rule_sets import messages, rule_sets


class AsksEachRule(Evaluation):
    def __init__(self, index, message):
        super().__init__(index, message)
        self._candidates = bytearray(b"\1") * len(index.plans)


@given(rule_sets(), messages())
def test_the_index_leaves_no_rule_out_that_matches(rules, message):
    naive = AsksEachRule(rules.index, message)
    naive.run(in_thread=True)
    assert rules.evaluate(message) == naive.verdict()


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("*", "", True), ("*", "a", True), ("**", "a", True), ("a*", "A", True), ("a*", "ba", False),
        ("*a", "ba", True), ("*a", "ab", False), ("*a*", "bab", True), ("*a*", "b", False),
        ("a*b", "axb", True), ("a*b", "axbc", False), ("?", "a", True), ("?", "", False),
        ("[a]*", "[a] x", True), ("[a]*", "a", False), ("*ß", "xSS", True),
    ],
)  # fmt: skip
def test_globs(pattern, value, matches):
    assert Globs.of([pattern]).match(value) is matches


def test_a_rule_is_found_that_matches_only_after_an_edit(rules_of):
    rules = rules_of(
        "[[rule]]\nname = 'first'\nthen = [ { subject_prefix = '[X]' } ]\n"
        "[[rule]]\nname = 'second'\nwhen = { subject = '[X]*' }\nthen = [ { bcc = 'a@b.test' } ]\n"
    )
    message = examined_message(
        "a@in.test", ["b@in.test"], b"Subject: s\r\n\r\n", source=Source.SMTP, local_domains=()
    )
    assert [hit.rule for hit in rules.evaluate(message).hits] == ["first", "second"]
