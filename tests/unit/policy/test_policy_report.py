"""What `relay policy check` and `relay policy try` say."""

import json

from relay.policy import format_check, format_verdict
from tests.unit.policy.conftest import rule

RULES = (
    rule("{ subject_prefix = '[X]' }", name="tag", mode="'audit'")
    + rule("{ bcc = 'log@in.test' }", name="log")
    + rule("{ redirect = 'z@in.test' }", name="move", when="{ recipient = 'c@*' }")
    + rule("{ discard = true }", name="drop", when="{ recipient = 'd@*' }")
    + rule("{ reject = '5.7.1 no' }", name="never", mode="'off'")
    + rule("{ reject = '5.7.1 no' }", name="refuse", when="{ recipient = 'e@*' }")
    + rule("{ reject = '5.7.1 no' }", name="other", when="{ recipient = 'x@*' }")
)


def test_try_tells_each_rule_and_each_recipient(evaluate, rules_of):
    to = [f"{name}@out.test" for name in "bcde"]
    told = format_verdict(rules_of(RULES), evaluate(RULES, to=to))
    assert told.lines == (
        "tag: match for b@out.test, c@out.test, d@out.test, e@out.test -> would subject_prefix",
        "log: match for b@out.test, c@out.test, d@out.test, e@out.test -> bcc",
        "move: match for c@out.test -> redirect",
        "drop: match for d@out.test -> discard",
        "never: off",
        "refuse: match for e@out.test -> reject",
        "other: no match",
        "b@out.test: delivered",
        "c@out.test: redirected to z@in.test (move)",
        "d@out.test: discarded (drop)",
        "e@out.test: rejected: 5.7.1 no (refuse)",
        "log@in.test: gets a copy (log)",
        "z@in.test: gets a copy (move)",
        "verdict: accept",
    )
    document = json.loads(json.dumps(told.document))
    assert document["verdict"] == "accept"
    assert [each["fate"] for each in document["recipients"]] == [
        "deliver", "redirect", "discard", "reject",
    ]  # fmt: skip
    assert document["subjects"] == ["hello"]


def test_check_tells_what_is_in_force(rules_of):
    told = format_check(rules_of(RULES))
    assert told.lines[0].split() == ["00-rules.toml", "audit", "tag:", "subject_prefix"]
    assert told.lines[-1] == "7 rules in 1 file, 0 tests passed"
    assert told.document["rules"][0]["line"] == 1
