"""The index finds each rule that matches: an evaluation that asks every rule decides the same."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.message.envelope import Source
from relay.policy.actions import BccAction, SubjectPrefixAction
from relay.policy.conditions import (
    HeaderCondition,
    RecipientAddressCondition,
    SenderCondition,
    SizeOverCondition,
    SubjectCondition,
)
from relay.policy.engine import Evaluation, RuleSet
from relay.policy.globs import Globs
from relay.policy.rule_tests import examined_message
from relay.policy.rules import ConditionSet, OnError, Rule, RuleMode

TEXT = st.text("ab", min_size=0, max_size=3)
GLOB = st.one_of(
    TEXT, TEXT.map("*{}".format), TEXT.map("{}*".format), TEXT.map("*{}*".format),
    st.text("ab?*", min_size=1, max_size=4),
).filter(bool)  # fmt: skip
GLOBS = st.lists(GLOB, min_size=1, max_size=2).map(Globs.of)
CONDITION = st.one_of(
    GLOBS.map(SenderCondition),
    GLOBS.map(RecipientAddressCondition),
    GLOBS.map(SubjectCondition),
    st.lists(st.tuples(st.sampled_from(["x", "y"]), GLOBS), min_size=1, max_size=2).map(
        lambda fields: HeaderCondition(tuple(fields))
    ),
    st.sampled_from([0, 60, 10_000]).map(SizeOverCondition),
)
ACTION = st.one_of(
    st.sampled_from(["b", "a b"]).map(SubjectPrefixAction),
    TEXT.filter(bool).map(lambda name: BccAction((f"{name}@copy.test",))),
)


@st.composite
def rule_sets(draw):
    rules = [
        Rule(
            f"r{number}",
            RuleMode.ENFORCE,
            when=ConditionSet.of(draw(st.lists(CONDITION, max_size=3))),
            unless=ConditionSet.of(draw(st.lists(CONDITION, max_size=1))),
            actions=(draw(ACTION),),
            outcome="",
            stop=draw(st.booleans()),
            on_error=OnError.DEFER,
            file=Path("x"),
            line=1,
        )
        for number in range(draw(st.integers(1, 6)))
    ]
    return RuleSet(tuple(rules))


class AsksEachRule(Evaluation):
    def __init__(self, index, message):
        super().__init__(index, message)
        self._candidates = bytearray(b"\1") * len(index.plans)


@given(rule_sets(), TEXT, st.lists(TEXT, min_size=1, max_size=4), TEXT, TEXT)
@settings(max_examples=400)
def test_the_index_leaves_no_rule_out_that_matches(rules, sender, recipients, subject, value):
    content = f"Subject: {subject}\r\nX: {value}\r\nX: b\r\n\r\nbody".encode()
    message = examined_message(
        sender, dict.fromkeys(recipients), content, source=Source.SMTP, local_domains=()
    )
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
