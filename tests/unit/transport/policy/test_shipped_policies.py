"""The shipped rules: their tests pass, and plain mail is not parsed."""

import dataclasses
import shutil
import tracemalloc

import pytest
from msgspec import structs

from relay.base.message.envelope import Source
from relay.base.settings.environment import shipped
from relay.transport.policy import archives
from relay.transport.policy.rule_files import load_rules, read_rules
from relay.transport.policy.rule_tests import examined_message, overall_verdict, run_tests, untested
from relay.transport.policy.rules import OverallVerdict, RuleMode
from tests.support.long_tests import sampled
from tests.support.tables import each_row

NAMES = tuple(each.name for each in read_rules(shipped("policies")).rules)
PLAIN = (
    b"From: a@in.test\r\nTo: b@out.test\r\nSubject: hello\r\nMIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n\r\nhello\r\n"
)


@pytest.fixture(scope="module")
def rules():
    return load_rules(shipped("policies"))


def plain(to, content=PLAIN):
    return examined_message(
        "a@in.test", [to], content, source=Source.SMTP, local_domains={"in.test"}
    )


@pytest.mark.parametrize("to", ["b@out.test", "b@in.test"])
def test_plain_mail_is_unchanged(rules, to):
    verdict = rules.evaluate(plain(to))
    assert ([each.joined() for each in verdict.contents], verdict.hits) == ([PLAIN], ())
    assert overall_verdict(verdict) is OverallVerdict.ACCEPT


def test_every_shipped_rule_has_a_test_that_it_matches_and_one_that_it_does_not(rules):
    for rule in rules.rules:
        own = [test.expect.rules or () for test in rules.tests if test.file == rule.file]
        assert any(rule.name in expected for expected in own)
        assert any(rule.name not in expected for expected in own)


@each_row("names", [NAMES, *sampled([[each] for each in NAMES])])
def test_the_tests_of_all_pass_whichever_rules_are_enforced(names):
    rules = read_rules(shipped("policies"))
    enforced = [
        structs.replace(each, mode=RuleMode.ENFORCE) if each.name in names else each
        for each in rules.rules
    ]
    tests = tuple(dataclasses.replace(each, is_alone=False) for each in rules.tests)
    results = run_tests(dataclasses.replace(rules, rules=tuple(enforced), tests=tests))
    assert [each.failures for each in results if each.failures] == []
    assert untested(rules) == ()


def test_no_rule_of_the_administrator_fails_their_tests(tmp_path):
    mine = '[[rule]]\nname = "mine"\nwhen = { sender = "*" }\nthen = [ { reject = "5.7.1 no" } ]\n'
    (tmp_path / "05-mine.toml").write_text(mine)
    rules = load_rules(tmp_path, shipped=shipped("policies"))
    assert [each.name for each in rules.rules] == ["mine", *NAMES]
    assert all(test.is_alone for test in rules.tests)


def test_a_file_of_the_administrator_replaces_the_shipped_one_and_an_empty_one_ends_it(tmp_path):
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups/outside.txt").write_text("ann@there.test\n")
    mine = "[[rule]]\nname = 'mine'\nwhen = { recipient = 'group:outside' }\nthen = [ { reject = '5.7.1 no' } ]\n"
    (tmp_path / "20-private-fields.toml").write_text(mine)
    (tmp_path / "70-staging.toml").touch()
    rules = load_rules(tmp_path, shipped=shipped("policies"))
    names = [rule.name for rule in rules.rules]
    assert names.index("mine") == NAMES.index("no private fields outside")
    assert {*NAMES}.difference(names) == {"no private fields outside", "staging"}
    verdict = rules.evaluate(plain("ann@there.test"))
    assert overall_verdict(verdict) is OverallVerdict.REJECT


def test_the_large_messages_of_rule_tests_are_never_in_memory():
    tracemalloc.start()
    try:
        load_rules(shipped("policies"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20
    assert archives.reader._idle == []  # nor is the process for the archives in them


def test_without_their_groups_the_shipped_rules_load_with_a_warning(tmp_path):
    for each in shipped("policies").glob("*.toml"):
        shutil.copy(each, tmp_path)
    [warning] = load_rules(tmp_path).warnings
    assert 'rule "staging": found no group "outside"' in warning
