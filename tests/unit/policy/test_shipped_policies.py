"""The shipped rules: their tests pass, and plain mail is not parsed."""

import tracemalloc

import pytest

from relay.message.envelope import Source
from relay.policy import message_parts
from relay.policy.rule_files import load_rules
from relay.policy.rule_tests import examined_message, overall_verdict
from relay.policy.rules import OverallVerdict
from relay.settings.environment import shipped

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


def test_plain_mail_is_examined_without_reading_its_parts(rules, monkeypatch):
    def read(*_):
        raise AssertionError("its parts are read")

    monkeypatch.setattr(message_parts, "structure_of", read)
    verdict = rules.evaluate(plain("b@out.test"))
    assert overall_verdict(verdict) is OverallVerdict.ACCEPT
    with pytest.raises(AssertionError, match="its parts are read"):
        rules.evaluate(plain("b@out.test", PLAIN.replace(b"utf-8", b"utf-8; name=a.txt")))


def test_the_large_messages_of_rule_tests_are_never_in_memory():
    tracemalloc.start()
    try:
        load_rules(shipped("policies"))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20
