"""Rule tests, and the output of `relay policy check`, `test` and `try`."""

import pytest

from relay.transport.policy.rule_files import PolicyError, load_rules
from relay.transport.policy.rule_tests import format_test_results, run_tests
from tests.support.tables import each_row, rows_of
from tests.unit.transport.policy.conftest import rule

CASE = "[[test]]\nname = 't'\nfrom = 'a@in.test'\nto = ['b@out.test']\n"
REJECT = '{ reject = "5.7.1 no" }'
BODY = 'body = "a first\\nline"\n'


@each_row(
    "then, expect, failure",
    rows_of(
        """
        { reject = "5.7.1 no" } | verdict = 'reject', rules = ['r'], rejected = ['b@out.test'] | ok
        { reject = "5.7.1 no" } | verdict = 'reject', rules = [] | found rules "r", expected none
        { reject = "5.7.1 no" } | verdict = 'reject', rejected = [] | found rejected "b@out.test", expected none
        { discard = true } | verdict = 'discard' | ok
        { discard = true } | verdict = 'reject' | found verdict discard ("r"), expected reject
        { bcc = 'L@x.test' } | verdict = 'accept', added = ['l@x.test'] | ok
        { bcc = 'l@x.test' } | verdict = 'accept', added = [] | found added "l@x.test", expected none
        { journal = 'J@x.test' } | verdict = 'accept', journaled = ['j@x.test'], notified = [] | ok
        { journal = 'j@x.test' }, { reject = 'no' } | verdict = 'reject', journaled = [] | ok
        { notify = { to = 'n@x.test', text = 'x' } } | verdict = 'accept', notified = [] | found notified "n@x.test", expected none
        { redirect = 'l@x.test' } | verdict = 'accept', redirected = ['b@out.test'], added = ['l@x.test'] | ok
        { subject_prefix = '[X]' } | verdict = 'accept', subject = '[X] test' | ok
        { subject_prefix = '[X]' } | verdict = 'accept', subject = 'test' | found subject "[X] test", expected "test"
        { hold = 'a look' } | verdict = 'hold', reason = 'a look', subject = 'test' | ok
        { hold = 'a look' } | verdict = 'accept' | found verdict hold ("r"), expected accept
        { hold = 'a look' } | verdict = 'hold', reason = 'x' | found reason "a look", expected "x"
        { bcc = 'l@x.test' } | verdict = 'accept', reason = 'x' | found reason none, expected "x"
        { hold = 'x' }, { redirect = 'l@x.test' } | verdict = 'hold', reason = 'x' | ok
        { defer = '4.7.1 later' } | verdict = 'defer', rules = ['r'], rejected = [] | ok
        { bcc = 'l@x.test' }, { defer = '4.7.1 later' } | verdict = 'defer', added = [] | ok
        { defer = '4.7.1 later' } | verdict = 'reject' | found verdict defer ("r"), expected reject
        { next_hop = 'smtp://Relay.test:587' } | verdict = 'accept', next_hop = 'smtp://relay.test:587' | ok
        { next_hop = 'smtp://Relay.test:587' } | verdict = 'accept', next_hop = '' | found next_hop "smtp://relay.test:587", expected ""
        { next_hop = 'route:x' } | verdict = 'accept', next_hop = 'route:y' | found next_hop "route:x", expected "route:y"
        { quarantine = true } | verdict = 'hold', reason = 'quarantine', quarantined = ['B@out.test'] | ok
        { quarantine = true } | verdict = 'hold', quarantined = [] | found quarantined "b@out.test", expected none
        { quarantine = 'z@in.test' } | verdict = 'accept', redirected = [], quarantined = ['b@out.test'] | ok
        { quarantine = 'z@in.test' } | verdict = 'accept', added = ['z@in.test'] | ok
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', headers = { X-Tag = 'für', X-No = false } | ok
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', headers = { X-Tag = 'x' } | found X-Tag "für", expected "x"
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', headers = { X-Tag = false } | found X-Tag "für", expected none
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', headers = { X-No = 'x' } | found X-No none, expected "x"
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', body = ['a  first', 'line'] | ok
        { set_header = { name = 'X-Tag', value = 'für' } } | verdict = 'accept', body = 'third' | found body "a first line", expected "third" in it
        """
    ),
)
def test_a_rule_test_passes_or_reports_its_failures(rules_of, then, expect, failure):
    rules = rules_of(rule(then) + CASE + BODY + f"expect = {{ {expect} }}\n")
    [result] = run_tests(rules)
    assert result.failures == ((failure,) if failure != "ok" else ())
    output = format_test_results([rules], [result])
    assert output.good is (failure == "ok")
    assert output.document["failed"] == (0 if output.good else 1)
    assert failure in output.lines[0]


def test_rules_of_other_files_do_not_break_a_rule_test(rules_of):
    accept = "expect = { verdict = 'accept', rules = [%s] }\n"
    rules = rules_of(
        rule("{ subject_prefix = '[X]' }", name="everywhere"),
        rule(REJECT, name="mine", when="{ subject = 'x' }") + CASE + accept % "",
        CASE + accept % "'everywhere'",
    )
    assert [each.failures for each in run_tests(rules)] == [(), ()]


@each_row(
    "describing, when",
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


@each_row(
    "keys, when, verdict",
    [
        ("login = 'Ann'", "{ login = 'ann' }", "reject"),
        ("client = '192.0.2.9'", "{ client = '192.0.2.0/24' }", "reject"),
        ("recipients = 3", "{ recipients_over = 2 }", "reject"),
        ("local = ['in.test', 'out.test']", "{ direction = 'internal' }", "reject"),
        (
            "local = ['in.test', 'out.test']\nclient = '192.0.2.9'",
            "{ direction = 'inbound' }",
            "reject",
        ),
        (
            "local = ['in.test', 'out.test']\nclient = '192.0.2.9'\nlogin = 'x'",
            "{ direction = 'internal' }",
            "reject",
        ),
        ("body = 'Grüße'", "{ header = { name = 'Content-Type', matches = '*utf-8' } }", "reject"),
        ("body = 'Gr'", "{ header = { name = 'Content-Type', matches = '*' } }", "accept"),
    ],
)
def test_who_sends_the_message_of_a_rule_test(rules_of, tmp_path, keys, when, verdict):
    expect = f"\nexpect = {{ verdict = '{verdict}' }}\n"
    rules_of(rule(REJECT, when=when) + CASE + keys + expect)
    assert load_rules(tmp_path).tests


@pytest.mark.parametrize("mode", ["off", "audit", "enforce"])
def test_a_rule_test_can_enforce_a_rule_whatever_its_mode(rules_of, tmp_path, mode):
    case = CASE + "enforce = ['r']\nexpect = { verdict = 'reject', rules = ['r'] }\n"
    given = "accept" if mode != "enforce" else "reject"
    case += CASE.replace("'t'", "'as it is'") + f"expect = {{ verdict = '{given}' }}\n"
    rules_of(rule(REJECT, mode=f"'{mode}'") + case)
    assert len(load_rules(tmp_path).tests) == 2
    assert str(load_rules(tmp_path).rules[0].mode) == mode
