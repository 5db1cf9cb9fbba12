"""Loading rule files: atomic, with all faults at once."""

import pytest

from relay.policy.engine import RuleSet
from relay.policy.rule_files import PolicyError, load_rules, read_rules
from tests.unit.policy.conftest import rule

REJECT = '{ reject = "5.7.1 no" }'
CASE = "[[test]]\nname = 't'\nfrom = 'a@in.test'\nto = ['b@out.test']\n"


def fault_of(rules_of, *texts):
    with pytest.raises(PolicyError) as caught:
        rules_of(*texts)
    [fault] = caught.value.faults
    return fault


def test_an_empty_folder_is_a_valid_rule_set(tmp_path):
    assert load_rules(tmp_path) == RuleSet()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(PolicyError, match="found no folder of rules"):
        load_rules(tmp_path / "gone")


def test_only_rule_files_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "tenant").mkdir()
    for name in ("20-b.toml", "10-a.toml", ".30-hidden.toml", "40-c.toml.bak", "notes.md"):
        (tmp_path / name).write_text("# nothing")
    assert [each.name for each in read_rules(tmp_path).files] == ["10-a.toml", "20-b.toml"]


@pytest.mark.parametrize(
    ("text", "line", "key", "message"),
    [
        ("[[rule]\n", 1, "", "found no valid TOML"),
        ("\n[[rules]]\n", 2, "rules", 'did you mean "rule"'),
        ("rule = 3\n", 1, "rule", "found 3, expected [[rule]]"),
        ("rule = [3]\n", 1, "rule 1", "found 3, expected a table"),
        (f"[[rule]]\nthen = [{REJECT}]\n", 1, "rule 1: name", "this key is required"),
        (rule(), 3, 'rule "r": then', "found nothing to do"),
        (rule(REJECT, mode="'on'"), 4, 'rule "r": mode', 'found "on", expected one of enforce, audit, off'),
        (rule(REJECT, stop="'yes'"), 4, 'rule "r": stop', 'found "yes", expected true or false'),
        (rule(REJECT, wen="{}"), 4, 'rule "r": wen', 'did you mean "when"'),
        (rule(REJECT, when="{}"), 4, 'rule "r": when', "found no condition"),
        (rule(REJECT, when="'x'"), 4, 'rule "r": when', 'found "x", expected a table'),
        (rule(REJECT, when="{ sendr = 'x' }"), 4, 'rule "r": when.sendr', 'did you mean "sender"'),
        (rule(REJECT, when="{ sender = 3 }"), 4, 'rule "r": when.sender', "found 3, expected a text or a list"),
        (rule(REJECT, when="{ sender = [] }"), 4, 'rule "r": when.sender', "found a list, expected a text"),
        (rule(REJECT, unless="{ size_over = '9 bananas' }"), 4, 'rule "r": unless.size_over', "expected a size such as"),
        (rule(REJECT, when="{ size_over = true }"), 4, 'rule "r": when.size_over', "found true, expected a size"),
        (rule(REJECT, when="{ direction = 'out' }"), 4, 'rule "r": when.direction', "one or more of inbound, outbound, internal"),
        (rule(REJECT, when="{ source = ['http'] }"), 4, 'rule "r": when.source', "one or more of graph, smtp, sendmail, report"),
        (rule(REJECT, when="{ header = { name = 'X' } }"), 4, 'rule "r": when.header', "expected a table with a field's name"),
        (rule(REJECT, when="{ header = { name = 'X:', matches = '*' } }"), 4, 'rule "r": when.header', "not a field name"),
        (rule("'x'"), 3, 'rule "r": then', 'found "x", expected a table with one action'),
        (rule("{ reject = '5.7.1 a', bcc = 'b@x.test' }"), 3, 'rule "r": then', "one action"),
        (rule("{ holds = true }"), 3, 'rule "r": then.holds', "found an unknown key"),
        (rule("{ hold = '' }"), 3, 'rule "r": then.hold', 'found "", expected a reason'),
        (rule("{ defer = '5.7.1 x' }"), 3, 'rule "r": then.defer', "expected a code 4.y.z"),
        (rule("{ next_hop = 'smtp://u:p@h:25' }"), 3, 'rule "r": then.next_hop', "without a login"),
        (rule("{ next_hop = 'hold' }"), 3, 'rule "r": then.next_hop', 'expected "route:NAME" or'),
        (rule("{ rate_limit = { rate = '5', per = 'sender' } }"), 3, 'rule "r": then.rate_limit', "rate: a number"),
        (rule("{ rate_limit = { rate = '5/1h', per = 'all' } }"), 3, 'rule "r": then.rate_limit', "per: one of sender"),
        (rule("{ hold = 'x' }", expires="'soon'"), 4, 'rule "r": expires', "expected a duration"),
        (rule("{ hold = 'x' }", expires="'400d'"), 4, 'rule "r": expires', "at most 365 days"),
        (rule("{ hold = 'x' }", expired="'never'"), 4, 'rule "r": expired', "one of report, silent"),
        (rule("{ hold = 'x' }", notice="''"), 4, 'rule "r": notice', "a text of 1 to 2000"),
        (rule(REJECT, notice="'x'"), 4, 'rule "r": notice', "holds nothing, expected a hold"),
        (rule(REJECT, on_error="'ignore'"), 4, 'rule "r": on_error', 'beside reject, expected "defer"'),
        (rule("{ hold = 'x' }", on_error="'ignore'"), 4, 'rule "r": on_error', "beside hold"),
        (rule("{ bcc = 'a@b.test' }", on_error="'skip'"), 4, 'rule "r": on_error', "one of defer, ignore"),
        (rule("{ rejct = 'x' }"), 3, 'rule "r": then.rejct', 'did you mean "reject"'),
        (rule("{ reject = '4.7.1 later' }"), 3, 'rule "r": then.reject', "a reject is permanent"),
        (rule("{ reject = '' }"), 3, 'rule "r": then.reject', "a code and a text"),
        (rule('{ reject = "a\\r\\nb" }'), 3, 'rule "r": then.reject', "a code and a text"),
        (rule("{ discard = false }"), 3, 'rule "r": then.discard', "found false, expected true"),
        (rule("{ redirect = 'nobody' }"), 3, 'rule "r": then.redirect', "expected addresses:"),
        (rule("{ bcc = [] }"), 3, 'rule "r": then.bcc', "a list of 1 to 50 addresses"),
        (rule("{ cc = 'a@x.test\\r\\nX: y' }"), 3, 'rule "r": then.cc', "expected addresses:"),
        (rule("{ remove_header = 'Received' }"), 3, 'rule "r": then.remove_header', "a field that rules may change"),
        (rule("{ remove_header = ['A', 'x-relay-id'] }"), 3, 'rule "r": then.remove_header', "may change"),
        (rule("{ set_header = { name = 'DKIM-Signature', value = '' } }"), 3, 'rule "r": then.set_header', "may change"),
        (rule("{ set_header = { name = 'return-path', value = '' } }"), 3, 'rule "r": then.set_header', "may change"),
        (rule("{ set_header = { name = 'A b', value = '' } }"), 3, 'rule "r": then.set_header', "a field's name"),
        (rule('{ set_header = { name = "A", value = "x\\nB: y" } }'), 3, 'rule "r": then.set_header', "must not have CR"),
        (rule("{ subject_prefix = '' }"), 3, 'rule "r": then.subject_prefix', "one line of text"),
        (rule(f"{REJECT}, {{ bcc = 'b@x.test' }}"), 3, 'rule "r": then.reject', "expected no action after reject"),
        (rule(REJECT) + rule(REJECT), 4, 'rule "r": name', "found the name of the rule at"),
        (CASE, 1, 'test "t": expect', "found nothing, expected a table"),
        (CASE + "expect = { rules = [] }", 5, 'test "t": expect.verdict', "this key is required"),
        (CASE + "expect = { verdict = 'held' }", 5, 'test "t": expect.verdict', "one of accept, reject, discard, hold, defer"),
        (CASE + "expect = { verdict = 'accept', rule = [] }", 5, 'test "t": expect.rule', 'did you mean "rules"'),
        (CASE + "expect = { verdict = 'accept' }\nsubjct = ''", 6, 'test "t": subjct', 'did you mean "subject"'),
        (CASE + "expect = { verdict = 'accept' }\nmessage = 'no.eml'", 6, 'test "t": message', "a file of at most"),
        (CASE + "expect = { verdict = 'accept' }\nclient = 'x'", 6, 'test "t": client', 'found "x", expected an IP address'),
        (CASE + "expect = 'accept'", 5, 'test "t": expect', 'found "accept", expected a table'),
        (CASE + "expect = { verdict = 'accept', rules = 3 }", 5, 'test "t": expect.rules', "found 3, expected a list of texts"),
        (CASE + "expect = { verdict = 'accept', added = [3] }", 5, 'test "t": expect.added', "expected a list of texts"),
        (CASE + "expect = { verdict = 'accept' }\nsize = '1 TiB'", 6, 'test "t": size', "expected a size"),
        (CASE + "expect = { verdict = 'accept' }\nsize = '257 MiB'", 6, 'test "t": size', "at most 268435456 bytes"),
        (CASE + "expect = { verdict = 'accept' }\nattachments = 3", 6, 'test "t": attachments', "expected a list of texts"),
        (CASE + "expect = { verdict = 'accept' }\nlocal = [3]", 6, 'test "t": local', "expected a list of texts"),
        (CASE + "expect = { verdict = 'accept' }\nbody = 3", 6, 'test "t": body', "found 3, expected a text"),
        (CASE + "expect = { verdict = 'accept' }\nlogin = ''", 6, 'test "t": login', "a text that is not empty"),
        (CASE + "expect = { verdict = 'accept' }\nrecipients = 0", 6, 'test "t": recipients', "a number of at least 1"),
        (CASE + "expect = { verdict = 'accept' }\nenforce = ['r']", 1, 'test "t": enforce', 'found "r", expected the name of a rule'),
        (CASE + "expect = { verdict = 'accept' }\nheaders = { 'X:' = 'a' }", 6, 'test "t": headers', "found a table, expected a table of fields"),
        (CASE + "expect = { verdict = 'accept' }\nheaders = { X = true }", 6, 'test "t": headers', "a text"),
        (CASE + "expect = { verdict = 'accept', headers = { X = true } }", 5, 'test "t": expect.headers', "found a table, expected a table of fields"),
        (CASE + "expect = { verdict = 'accept', headers = { 'X:' = 'a' } }", 5, 'test "t": expect.headers', "expected a table of fields"),
        (CASE + "expect = { verdict = 'accept', headers = ['X'] }", 5, 'test "t": expect.headers', "found a list, expected a table"),
        (CASE + "expect = { verdict = 'accept', body = '' }", 5, 'test "t": expect.body', "expected a text that is not empty, or a list"),
        (CASE + "expect = { verdict = 'accept', reason = 3 }", 5, 'test "t": expect.reason', "found 3, expected a text"),
        (CASE + "expect = { verdict = 'accept', next_hop = 'hold' }", 5, 'test "t": expect.next_hop', 'expected "route:NAME" or'),
        (CASE + "expect = { verdict = 'accept' }\nsource = 'x'", 6, 'test "t": source', "one of graph, smtp"),
    ],
)  # fmt: skip
def test_a_fault_names_its_position_what_was_found_and_expected(rules_of, text, line, key, message):
    fault = fault_of(rules_of, text)
    assert (fault.file.name, fault.line, fault.key) == ("00-rules.toml", line, key)
    assert message in fault.message


def test_all_faults_of_a_rule_test_are_reported_together(rules_of):
    case = "[[test]]\nname = ''\nfrom = 'a'\nto = []\nclient = 'x'\nexpect = { verdict = 'no', body = 3 }\n"
    with pytest.raises(PolicyError) as caught:
        rules_of(case)
    found = [(each.line, each.key.rpartition(": ")[2]) for each in caught.value.faults]
    assert sorted(found) == [
        (2, "name"), (3, "from"), (4, "to"), (5, "client"), (6, "expect.body"), (6, "expect.verdict"),
    ]  # fmt: skip


def test_all_faults_of_all_files_are_reported_together(rules_of):
    with pytest.raises(PolicyError) as caught:
        rules_of(rule(REJECT, wen="{}", mode="'on'"), "x = 1\n", "[[rule\n")
    assert [(each.file.name[:1], each.line) for each in caught.value.faults] == [
        ("0", 4), ("0", 5), ("1", 1), ("2", 1),
    ]  # fmt: skip


def test_a_failing_rule_test_rejects_the_rule_set(rules_of, tmp_path):
    rules_of(rule(REJECT), CASE + "expect = { verdict = 'accept', rules = [] }\n")
    with pytest.raises(PolicyError) as caught:
        load_rules(tmp_path)
    [fault] = caught.value.faults
    assert str(fault).endswith(
        '10-rules.toml:1: test "t": found verdict reject ("r"), expected accept'
    )
