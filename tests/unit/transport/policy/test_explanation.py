"""What every rule compared: the same verdict as an evaluation, and why rules did not match."""

import pytest

from relay.base.message.envelope import Source
from relay.transport.policy.explanation import explain
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_tests import examined_message
from tests.unit.transport.policy.conftest import MAIL, rule

REJECT = '{ reject = "5.7.1 no" }'


@pytest.fixture
def explained(rules_of):
    def run(*texts, sender="a@in.test", to=("b@out.test",), content=MAIL, has_content=True):
        message = examined_message(
            sender, to, content, source=Source.SMTP, local_domains={"in.test"}
        )
        return explain(RuleBook(rules_of(*texts)), message, has_content=has_content)

    return run


def conditions(finding):
    return [(each.condition, each.value, each.holds) for each in finding.conditions]


ALL = """{ source = 'graph', direction = 'inbound', size_over = 10, sender = 'x@*',
 recipient = 'b@*', subject = 'hell?',
 header = [{ name = 'X-No', matches = '*' }, { name = 'X-Old', matches = '2' }],
 attachment_name = '*.exe' }""".replace("\n", "")


def test_every_condition_of_a_rule_that_did_not_match_has_its_value(explained):
    [finding] = explained(rule(REJECT, when=ALL)).rules
    assert finding.matched is False
    assert conditions(finding) == [
        ("source", "smtp", False),
        ("size_over", str(len(MAIL)), True),
        ("sender", "a@in.test", False),
        ("subject", "hello", True),
        ("header", "x-old: 1", False),
        ("attachment_name", "", False),
        ("direction", "outbound", False),
        ("recipient", "b@out.test", True),
    ]
    assert (finding.actions, finding.outcome) == (
        ({"reject": {"status": "5.7.1", "text": "no"}},),
        "reject",
    )
    assert (finding.file.rpartition("/")[2], finding.line) == ("00-rules.toml", 1)


def test_without_a_message_conditions_on_the_content_are_unknown(explained):
    matching = "{ sender = 'a@*', subject = 'hello' }"
    failing = "{ sender = 'x@*', subject = 'hello' }"
    found = explained(
        rule(REJECT, name="perhaps", when=matching),
        rule(REJECT, name="never", when=failing),
        rule(REJECT, name="exempt", unless="{ sender = 'a@*', subject = 'hello' }"),
        rule(REJECT, name="perhaps exempt", unless="{ subject = 'hello' }"),
        rule("{ subject_prefix = 'X' }", name="sure", when="{ sender = 'a@*' }"),
        content=b"",
        has_content=False,
    )
    assert [(each.rule, each.matched) for each in found.rules] == [
        ("perhaps", None),
        ("never", False),
        ("exempt", False),
        ("perhaps exempt", None),
        ("sure", True),
    ]
    assert conditions(found.rules[0]) == [("sender", "a@in.test", True), ("subject", "", None)]
    assert conditions(found.rules[2])[0] == ("unless sender", "a@in.test", True)
    assert found.verdict.recipients[0].action == "deliver"


def test_rules_that_were_not_evaluated_say_why(explained):
    found = explained(
        rule(REJECT, name="off", mode="'off'"),
        rule(REJECT, name="audit", mode="'audit'"),
        rule(REJECT, name="first"),
        rule(REJECT, name="second"),
    )
    assert [(each.rule, each.matched, each.skipped) for each in found.rules] == [
        ("off", False, "its mode is off"),
        ("audit", True, ""),
        ("first", True, ""),
        ("second", False, 'rule "first" was the last one'),
    ]


def test_of_several_recipients_the_first_that_matches_is_shown(explained):
    to = ("b@out.test", "c@out.test", "d@out.test")
    [finding] = explained(rule(REJECT, when="{ recipient = ['c@*', 'd@*'] }"), to=to).rules
    assert (finding.matched, finding.recipients) == (True, ("c@out.test", "d@out.test"))
    assert conditions(finding) == [("recipient", "c@out.test", True)]
