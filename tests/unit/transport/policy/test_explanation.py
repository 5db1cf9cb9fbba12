"""What every rule compared: the same verdict as an evaluation, and why rules did not match."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.base.message.envelope import Source
from relay.base.message.header import ParsedContent
from relay.transport.policy.explanation import explain
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import read_rules
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


def test_a_rule_sees_what_earlier_rules_changed(explained):
    tag = rule("{ subject_prefix = '[X]' }", name="tag")
    found = explained(tag, rule(REJECT, when="{ subject = '[x]*' }"))
    assert conditions(found.rules[1]) == [("subject", "[X] hello", True)]


def test_of_several_recipients_the_first_that_matches_is_shown(explained):
    to = ("b@out.test", "c@out.test", "d@out.test")
    [finding] = explained(rule(REJECT, when="{ recipient = ['c@*', 'd@*'] }"), to=to).rules
    assert (finding.matched, finding.recipients) == (True, ("c@out.test", "d@out.test"))
    assert conditions(finding) == [("recipient", "c@out.test", True)]


def test_a_long_value_is_cut(explained):
    content = b"Subject: %s\r\n\r\n" % (b"x" * 200)
    [finding] = explained(rule(REJECT, when="{ subject = 'y' }"), content=content).rules
    assert finding.conditions[0].value == "x" * 120 + "…"


CONDITIONS = st.sampled_from(
    ["sender = 'a@*'", "sender = 'x@*'", "recipient = 'b@*'", "recipient = 'c@*'", "subject = 'h*'",
     "subject = '[T]*'", "size_over = 40", "direction = 'outbound'", "source = 'graph'",
     "header = { name = 'X-Old', matches = '1' }"]
)  # fmt: skip
ACTIONS = st.sampled_from(
    ["", REJECT, "{ discard = true }", "{ redirect = 'z@out.test' }", "{ bcc = 'y@out.test' }",
     "{ subject_prefix = '[T]' }", "{ remove_header = 'X-Old' }"]
)  # fmt: skip
KEYS = st.fixed_dictionaries(
    {},
    optional={
        "when": st.lists(CONDITIONS, min_size=1, max_size=2, unique_by=lambda one: one.split()[0]),
        "unless": st.lists(
            CONDITIONS, min_size=1, max_size=2, unique_by=lambda one: one.split()[0]
        ),
        "mode": st.sampled_from(["'enforce'", "'enforce'", "'audit'", "'off'"]),
    },
)


@settings(max_examples=60, deadline=None)
@given(rules=st.lists(st.tuples(ACTIONS, KEYS, st.booleans()), max_size=5))
def test_the_verdict_is_that_of_an_evaluation(tmp_path_factory, rules):
    text = ""
    for number, (then, keys, stop) in enumerate(rules):
        values = {
            key: value if key == "mode" else "{ " + ", ".join(value) + " }"
            for key, value in keys.items()
        }
        stops = "true" if stop or not then else "false"
        text += rule(then, name=f"r{number}", **values, stop=stops)
    folder = tmp_path_factory.mktemp("rules")
    (folder / "10.toml").write_text(text, encoding="utf-8")
    message = examined_message(
        "a@in.test", ["b@out.test", "c@in.test"], MAIL, source=Source.SMTP, local_domains={"in.test"}
    )  # fmt: skip
    read = read_rules(folder)
    evaluated, explained = read.evaluate(message), explain(RuleBook(read), message)
    assert explained.verdict == evaluated
    hits = {hit.rule: hit.recipients for hit in evaluated.hits}
    assert {each.rule: each.recipients for each in explained.rules if each.matched} == hits


def test_an_empty_content_is_enough_where_there_is_no_message(explained):
    assert explained(content=b"", has_content=False).verdict.contents == (ParsedContent.of(b""),)
