"""Rule tests, and the output of `relay policy check`, `test` and `try`."""

import json

import pytest

from relay.message.verdict import Source
from relay.policy.explanation import explain
from relay.policy.rule_files import PolicyError, load_rules
from relay.policy.rule_tests import (
    examined_message,
    format_check,
    format_test_results,
    format_verdict,
    run_tests,
)
from tests.unit.policy.conftest import MAIL, rule

CASE = "[[test]]\nname = 't'\nfrom = 'a@in.test'\nto = ['b@out.test']\n"
REJECT = '{ reject = "5.7.1 no" }'
RULES = (
    rule("{ subject_prefix = '[X]' }", name="tag", mode="'audit'")
    + rule("{ bcc = 'log@in.test' }", name="log")
    + rule("{ redirect = 'z@in.test' }", name="move", when="{ recipient = 'c@*' }")
    + rule("{ discard = true }", name="drop", when="{ recipient = 'd@*' }")
    + rule("{ reject = '5.7.1 no' }", name="never", mode="'off'")
    + rule("{ reject = '5.7.1 no' }", name="refuse", when="{ recipient = 'e@*' }")
    + rule("{ reject = '5.7.1 no' }", name="other", when="{ recipient = 'x@*' }")
)


def test_try_lists_each_rule_and_each_recipient(rules_of):
    rules = rules_of(RULES)
    to = [f"{name}@out.test" for name in "bcde"]
    message = examined_message("a@in.test", to, MAIL, source=Source.SMTP, local_domains={"in.test"})
    output = format_verdict(explain(rules, message))
    assert output.lines == (
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
    document = json.loads(json.dumps(output.document))
    assert document["verdict"] == "accept"
    assert [each["fate"] for each in document["recipients"]] == [
        "deliver", "redirect", "discard", "reject",
    ]  # fmt: skip
    assert document["subjects"] == ["hello"]
    assert [(each["rule"], each["matched"]) for each in document["rules"]] == [
        ("tag", True), ("log", True), ("move", True), ("drop", True), ("never", False),
        ("refuse", True), ("other", False),
    ]  # fmt: skip
    assert document["rules"][6]["conditions"] == [
        {"condition": "recipient", "value": "b@out.test", "holds": False}
    ]


def test_check_lists_the_rules(rules_of):
    output = format_check(rules_of(RULES))
    assert output.lines[0].split() == ["00-rules.toml", "audit", "tag:", "subject_prefix"]
    assert output.lines[-1] == "7 rules in 1 file, 0 tests passed"
    assert output.document["rules"][0]["line"] == 1


@pytest.mark.parametrize(
    ("then", "expect", "failure"),
    [
        (REJECT, "verdict = 'reject', rules = ['r'], rejected = ['b@out.test']", None),
        (REJECT, "verdict = 'reject', rules = []", 'found rules "r", expected none'),
        (REJECT, "verdict = 'reject', rejected = []", 'found rejected "b@out.test", expected none'),
        ("{ discard = true }", "verdict = 'discard'", None),
        ("{ discard = true }", "verdict = 'reject'", 'found verdict discard ("r"), expected reject'),
        ("{ bcc = 'L@x.test' }", "verdict = 'accept', added = ['l@x.test']", None),
        ("{ bcc = 'l@x.test' }", "verdict = 'accept', added = []", 'found added "l@x.test", expected none'),
        ("{ redirect = 'l@x.test' }",
         "verdict = 'accept', redirected = ['b@out.test'], added = ['l@x.test']", None),
        ("{ subject_prefix = '[X]' }", "verdict = 'accept', subject = '[X] test'", None),
        ("{ subject_prefix = '[X]' }", "verdict = 'accept', subject = 'test'",
         'found subject "[X] test", expected "test"'),
    ],
)  # fmt: skip
def test_a_rule_test_passes_or_reports_its_failures(rules_of, then, expect, failure):
    rules = rules_of(rule(then) + CASE + f"expect = {{ {expect} }}\n")
    [result] = run_tests(rules)
    assert result.failures == ((failure,) if failure else ())
    output = format_test_results([result])
    assert output.good is (failure is None)
    assert output.document["failed"] == (0 if output.good else 1)
    assert (failure or "ok") in output.lines[0]


def test_rules_of_other_files_do_not_break_a_rule_test(rules_of):
    accept = "expect = { verdict = 'accept', rules = [%s] }\n"
    rules = rules_of(
        rule("{ subject_prefix = '[X]' }", name="everywhere"),
        rule(REJECT, name="mine", when="{ subject = 'x' }") + CASE + accept % "",
        CASE + accept % "'everywhere'",
    )
    assert [each.failures for each in run_tests(rules)] == [(), ()]


@pytest.mark.parametrize(
    ("describing", "when"),
    [
        ("subject = 'Grüße'", "subject = 'grüße'"),
        ("headers = { X-A = 'ja' }", "header = { name = 'x-a', matches = 'ja' }"),
        ("attachments = ['ü \"1\".exe']", "attachment_name = '*.exe'"),
        ("size = '1 MiB'", "size_over = 1048575"),
        ("size = '1 MiB'\nattachments = ['a']", "size_over = 1048575"),
        ("size = '3 MiB'", "size_over = 3145727"),
        ("size = '3 MiB'\nattachments = ['a']", "size_over = 3145727, attachment_name = 'a'"),
        ("source = 'graph'", "source = 'graph'"),
        ("local = ['OUT.test']", "direction = 'inbound'"),
        ("message = 'some.eml'", "subject = 'from a file', attachment_name = 'a.exe'"),
    ],
)
def test_the_message_of_a_rule_test(rules_of, tmp_path, describing, when):
    (tmp_path / "some.eml").write_bytes(
        b"Subject: from\n a file\nContent-Type: multipart/mixed; boundary=b\n\n"
        b"--b\nContent-Disposition: attachment; filename=a.exe\n\n--b--\n"
    )
    expect = "\nexpect = { verdict = 'reject' }\n"
    rules_of(rule(REJECT, when=f"{{ {when} }}") + CASE + describing + expect)
    assert load_rules(tmp_path).tests


def test_a_rule_test_uses_the_configured_local_domains(rules_of, tmp_path):
    expect = "expect = { verdict = 'reject' }\n"
    rules_of(rule(REJECT, when="{ direction = 'inbound' }") + CASE + expect)
    assert load_rules(tmp_path, local_domains={"out.test"})
    with pytest.raises(PolicyError):
        load_rules(tmp_path)
