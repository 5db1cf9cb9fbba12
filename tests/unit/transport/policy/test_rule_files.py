"""Loading rule files: atomic, with all faults at once."""

import re
from contextlib import nullcontext

import pytest

from relay.base.settings.tree import Route, RouteAuth
from relay.base.settings.validation import senders_of
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.patterns import PATTERN_STEPS_MAX, SET_STEPS_MAX
from relay.transport.policy.rule_files import PolicyError, load_rules, read_rules
from tests.support.tables import each_row, rows_of
from tests.unit.transport.policy.conftest import rule

REJECT = '{ reject = "5.7.1 no" }'
SENDERS = (
    "expected an address of an own domain, or auth.user or sender of a [[route]]: "
    "*@contoso.test, in.test, printer@lan.test, relay@back.test, web7@provider.test"
)
CASE = "[[test]]\nname = 't'\nfrom = 'a@in.test'\nto = ['b@out.test']\n"


def fault_of(rules_of, *texts):
    with pytest.raises(PolicyError) as caught:
        rules_of(*texts)
    [fault] = caught.value.faults
    return fault


def test_an_empty_folder_is_a_valid_rule_set(tmp_path):
    assert load_rules(tmp_path) == RuleSet()


def test_only_rule_files_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "tenant").mkdir()
    for name in ("20-b.toml", "10-a.toml", ".30-hidden.toml", "40-c.toml.bak", "notes.md"):
        (tmp_path / name).write_text("# nothing")
    assert [each.name for each in read_rules(tmp_path).files] == ["10-a.toml", "20-b.toml"]


@each_row(
    "text, line, key, message",
    [
        ("[[rule]\n", 1, "", "found no valid TOML"),
        ("\n[[rules]]\n", 2, "rules", 'did you mean "rule"'),
        ("rule = 3\n", 1, "rule", "found 3, expected [[rule]]"),
        (f"[[rule]]\nthen = [{REJECT}]\n", 1, "rule 1: name", "this key is required"),
        (rule(), 3, 'rule "r": then', "found nothing to do"),
        (rule(REJECT, when="{}"), 4, 'rule "r": when', "found no condition"),
        (rule("'x'"), 3, 'rule "r": then', 'found "x", expected a table with one action'),
        (
            rule(f"{REJECT}, {{ bcc = 'b@x.test' }}"),
            3,
            'rule "r": then.reject',
            "expected no action after reject",
        ),
        (rule(REJECT) + rule(REJECT), 4, 'rule "r": name', "found the name of the rule at"),
        (
            rule(REJECT, when=f"{{ body = {{ matches = '{'?' * 200}' }} }}"),
            4,
            'rule "r": when.body.matches',
            "globs of at most 1000 steps",
        ),
        (
            rule(REJECT, when="{ any = [\n{ subject = 'x' },\n{} ] }"),
            6,
            'rule "r": when.any',
            "found no condition in this table",
        ),
        (
            rule(
                REJECT,
                when="{ any = [ { all = [ { any = [\n{ all = [ { subject = 'x' } ] } ] } ] } ] }",
            ),
            5,
            'rule "r": when.any.all.any.all',
            "at most 3",
        ),
        (
            rule(REJECT, **{"from": "2026-12-02", "until": "2026-12-01"}),
            5,
            'rule "r": until',
            "no day before from, which is 2026-12-02",
        ),
        (CASE, 1, 'test "t": expect', "found nothing, expected a table"),
    ],
)
def test_a_fault_names_its_position_what_was_found_and_expected(rules_of, text, line, key, message):
    fault = fault_of(rules_of, text)
    assert (fault.file.name, fault.line, fault.key) == ("00-rules.toml", line, key)
    assert message in fault.message


@each_row(
    "when, key, message",
    [
        *rows_of(
            """
            sender = 3 | .sender | found 3, expected a text or a list
            direction = 'out' | .direction | found "out", expected one of inbound, outbound, internal
            header = { name = 'X' } | .header | expected a table with a field's name
            header = { name = 'X', pattern = 'a(' } | .header.pattern | found "a(", expected a regular expression that RE2 accepts: it says "missing ): a("
            header = { name = 'X', pattern = '(a|bb){500}' } | .header.pattern | at most 1000 steps, not
            sender = 'group:staff' | .sender | found "group:staff", expected groups that there are (own), not "staff"
            recipients_over = -1 | .recipients_over | a number of recipients
            client = '10.0.0.1/8' | .client | no bit set after the prefix
            client = ['10.0.0.1', 'host'] | .client | found "host", expected networks such as
            header = { name = 'X:', matches = '*' } | .header.name | found "X:", expected a field's name
            body = { words = ['ok', '-x'] } | .body.words | found "-x", expected words
            attachment = { type = ['archive', 'zip'] } | .attachment.type | found "zip", expected types
            attachment = {} | .attachment | a table with name, type or both
            body = { words = 'a', matches = 'b' } | .body | expected a table with one of words
            message_type = 'automated' | .message_type | expected one of automatic, list, report, signed
            any = [] | .any | found an empty list, expected a list of tables of conditions
            """
        ),
        (
            "header = [{ name = 'A', pattern = 'a' }, { name = 'X', pattern = '(a+)\\1' }]",
            ".header.pattern",
            'found "(a+)\\1", expected a regular',
        ),
    ],
)
def test_the_fault_of_a_condition_names_it(rules_of, when, key, message):
    fault = fault_of(rules_of, rule(REJECT, when=f"{{ {when} }}"))
    assert (fault.line, fault.key) == (4, f'rule "r": when{key}')
    assert message in fault.message


@each_row(
    "then, key, message",
    [
        *rows_of(
            """
            rate_limit = { rate = '5/1h', per = 'login', text = '5.0.0 x' } | .rate_limit.text | found "5.0.0 x", expected a code 4
            journal = ['a@x.test'] | .journal | expected one address as a text
            notify = { to = 'a@x.test' } | .notify | text is missing
            hold = '' | .hold | found "", expected a reason
            defer = '5.7.1 x' | .defer | expected a code 4.y.z
            next_hop = 'smtp://u:p@h:25' | .next_hop | found "smtp://…@h:25", expected
            set_sender = 'root' | .set_sender | found "root", expected an address
            next_hop = 'hold' | .next_hop | expected "route:NAME" or
            rate_limit = { rate = '5', per = 'sender' } | .rate_limit.rate | found "5", expected a number
            quarantine = 'x' | .quarantine | found "x", expected an address
            rejct = 'x' | .rejct | did you mean "reject"
            reject = '4.7.1 later' | .reject | a reject is permanent
            discard = false | .discard | found false, expected true
            bcc = [] | .bcc | a list of 1 to 50 addresses
            remove_header = 'Received' | .remove_header | a field that rules may change
            set_header = { name = 'DKIM-Signature', value = '' } | .set_header.name | may change
            set_header = { name = 'A b', value = '' } | .set_header.name | a field's name
            subject_prefix = '' | .subject_prefix | one line of text
            """
        ),
        ('reject = "a\\r\\nb"', ".reject", "a code and a text"),
        ("cc = 'a@x.test\\r\\nX: y'", ".cc", "expected an address:"),
        (
            'set_header = { name = "A", value = "x\\nB: y" }',
            ".set_header.value",
            "must not have CR",
        ),
    ],
)
def test_the_fault_of_an_action_names_it(rules_of, then, key, message):
    fault = fault_of(rules_of, rule(f"{{ {then} }}"))
    assert (fault.line, fault.key) == (3, f'rule "r": then{key}')
    assert message in fault.message


@each_row(
    "action, key, value, message",
    [
        (REJECT, "mode", "'on'", 'found "on", expected one of enforce, audit, off'),
        ("{ hold = 'x' }", "expires", "'soon'", "expected a duration"),
        ("{ hold = 'x' }", "expires", "'400d'", "at most 365 days"),
        ("{ hold = 'x' }", "expired", "'never'", "one of report, silent"),
        ("{ hold = 'x' }", "notice", "''", "a text of 1 to 2000"),
        (REJECT, "notice", "'x'", "holds nothing, expected a hold"),
        (REJECT, "on_error", "'ignore'", 'beside reject, expected "defer"'),
        ("{ quarantine = true }", "on_error", "'ignore'", "beside quarantine"),
        ("{ quarantine = true }", "expires", "'2d'", "expected a hold"),
    ],
)
def test_the_fault_of_another_key_of_a_rule_names_it(rules_of, action, key, value, message):
    fault = fault_of(rules_of, rule(action, **{key: value}))
    assert (fault.line, fault.key) == (4, f'rule "r": {key}')
    assert message in fault.message


@each_row(
    "more, line, key, message",
    rows_of(
        """
        message = 'no.eml' | 6 | message | a file of at most
        client = 'x' | 6 | client | found "x", expected an IP address
        size = '257 MiB' | 6 | size | at most 268435456 bytes
        login = '' | 6 | login | a text that is not empty
        recipients = 0 | 6 | recipients | a number of at least 1
        enforce = ['r'] | 1 | enforce | found "r", expected the name of a rule
        headers = { 'X:' = 'a' } | 6 | headers | found a table, expected a table of fields
        """
    ),
)
def test_the_fault_of_a_rule_test_names_its_key(rules_of, more, line, key, message):
    fault = fault_of(rules_of, f"{CASE}expect = {{ verdict = 'accept' }}\n{more}")
    assert (str(fault.line), fault.key) == (line, f'test "t": {key}')
    assert message in fault.message


@each_row(
    "expect, key, message",
    rows_of(
        """
        rules = [] | expect.verdict | this key is required
        verdict = 'held' | expect.verdict | one of accept, reject, discard, hold, defer
        verdict = 'accept', rules = 3 | expect.rules | found 3, expected a list of texts
        verdict = 'accept', headers = { 'X:' = 'a' } | expect.headers | expected a table of fields
        verdict = 'accept', body = '' | expect.body | expected a text that is not empty, or a list
        """
    ),
)
def test_the_fault_of_what_a_rule_test_expects_names_it(rules_of, expect, key, message):
    fault = fault_of(rules_of, f"{CASE}expect = {{ {expect} }}")
    assert (fault.line, fault.key) == (5, f'test "t": {key}')
    assert message in fault.message


def test_a_failing_rule_test_rejects_the_rule_set(rules_of, tmp_path):
    rules_of(rule(REJECT), CASE + "expect = { verdict = 'accept', rules = [] }\n")
    with pytest.raises(PolicyError) as caught:
        load_rules(tmp_path)
    [fault] = caught.value.faults
    assert str(fault).endswith(
        '10-rules.toml:1: test "t": found verdict reject ("r"), expected accept'
    )


def header_rule(name, pattern, **keys):
    return rule(
        "{ bcc = 'a@b.test' }",
        name=name,
        when=f"{{ header = {{ name = 'X-Spam', pattern = '{pattern}' }} }}",
        **keys,
    )


def test_the_patterns_of_one_field_have_a_bound_together(rules_of):
    texts = [str(number) + "z" * 950 for number in range(SET_STEPS_MAX // PATTERN_STEPS_MAX + 4)]
    rules = "".join(header_rule(text[:3], text) for text in texts)
    other = header_rule("once more", texts[0]) + header_rule("other field", texts[1])
    fault = fault_of(rules_of, rules, other.replace("X-Spam", "X-Ham", 1))
    assert fault.file.name == "00-rules.toml"
    assert fault.message.startswith("found patterns for header x-spam of more than 50000 steps")
    [_, number, _] = fault.key.split('"')
    before = [len(each) + 5 for each in texts[: [text[:3] for text in texts].index(number)]]
    assert abs(sum(before) - SET_STEPS_MAX) < 2 * PATTERN_STEPS_MAX


@pytest.fixture
def groups(tmp_path):
    """Write files of groups."""

    def write(**texts):
        (tmp_path / "groups").mkdir()
        for name, text in texts.items():
            content = text.encode() if isinstance(text, str) else text
            (tmp_path / "groups" / f"{name}.txt").write_bytes(content)

    return write


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a@in.test\n\n# ok\nnobody@\n", 4, 'found "nobody@", expected an address or a domain'),
        ("in.test\n*@in.test x\n", 2, 'found "*@in.test x", expected an address or a domain'),
        ("in test", 1, 'found "in test", expected'),
        ("a@b.test\rc@d.test", 1, "expected an address"),
        (b"ok.test\nb\xff@in.test", 2, "found the byte 0xff, expected UTF-8"),
        ("x.test\n" * 10_000, 10_001, "found 10001 lines, expected at most 10000"),
        ("#" * 2_000_000, 0, "found more than"),
    ],
    ids=["no domain", "pattern", "blank", "carriage return", "bytes", "lines", "size"],
)
def test_a_fault_in_a_group_names_its_file_and_line(rules_of, groups, text, line, message):
    groups(staff=text)
    fault = fault_of(rules_of, rule(REJECT, when="{ sender = 'group:staff' }"))
    assert (fault.file.name, fault.line) == ("staff.txt", line)
    assert message in fault.message


def test_no_file_has_the_name_of_the_group_of_own_domains(rules_of, groups):
    groups(own="a@b.test")
    fault = fault_of(rules_of, rule(REJECT))
    assert fault.file.name == "own.txt"
    assert fault.message == "found the name of a built-in group, expected another one"


def test_all_faults_of_groups_and_rules_are_reported_together(rules_of, groups, tmp_path):
    groups(staff="nobody@\n@in.test\n", guests="a@b.test\n")
    (tmp_path / "groups" / "my team.txt").write_text("a@b.test")
    (tmp_path / "groups" / "notes.md").write_text("not a group")
    with pytest.raises(PolicyError) as caught:
        rules_of(rule(REJECT, when="{ sender = 'group:team', recipient = 'group:staff' }"))
    assert {str(each).removeprefix(str(tmp_path)) for each in caught.value.faults} == {
        '/groups/my team.txt: found the name "my team.txt", expected a-z, 0-9, dot, - and _ in it',
        '/groups/staff.txt:1: found "nobody@", expected an address or a domain',
        '/groups/staff.txt:2: found "@in.test", expected an address or a domain',
        (
            '/00-rules.toml:4: rule "r": when.sender: found "group:team", '
            'expected groups that there are (guests, own, staff), not "team"'
        ),
    }


def test_a_changed_group_is_another_set(rules_of, groups, tmp_path):
    groups(staff="a@b.test")
    text = rule(REJECT, when="{ sender = 'group:staff' }")
    before = rules_of(text).digest
    (tmp_path / "groups" / "staff.txt").write_text("c@b.test")
    assert rules_of(text).digest != before


OFF = rule(REJECT, when="{ sender = 'group:staff' }").replace("[[rule]]", '[[rule]]\nmode = "off"')
ITS_TEST = """
[[test]]
name = "t"
enforce = ["r"]
from = "a@in.test"
to = ["b@out.test"]
expect = { verdict = "reject" }
"""


def test_a_rule_that_is_off_may_lack_its_group(rules_of, tmp_path):
    rules_of(OFF + ITS_TEST)
    rules = load_rules(tmp_path)
    assert [each.mode for each in rules.rules] == ["off"]
    assert rules.tests == ()
    [warning] = rules.warnings
    assert warning.removeprefix(str(tmp_path)) == (
        '/00-rules.toml:1: rule "r": found no group "staff", expected a file in groups; '
        "the rule is off, and tests that enforce it are not run"
    )


@each_row(
    "action, more, is_warned",
    [
        (REJECT, {}, True),
        ('{ redirect = ["a@b.test"] }', {"when": "{ recipient = '*', sender = ['*'] }"}, True),
        (REJECT, {"when": "{ recipient = '*', subject = '*' }"}, False),
        (REJECT, {"when": "{ recipient = '*' }", "unless": "{ sender = 'x' }"}, False),
        (REJECT, {"mode": "'audit'"}, False),
        ('{ bcc = ["a@b.test"] }', {}, False),
    ],
)
def test_a_rule_that_takes_all_mail_causes_a_warning(action, more, is_warned, rules_of, tmp_path):
    some = rule(action, name="some", when="{ sender = 'x.test' }")
    rules_of(rule(action, **more), some)
    expected = f"no condition leaves out any mail, found {action.split()[1]} of all mail"
    warning = f'{tmp_path}/00-rules.toml:1: rule "r": {expected}'
    assert load_rules(tmp_path).warnings == (warning,) * is_warned


def test_a_rule_that_is_off_and_has_its_group_is_tested(rules_of, groups, tmp_path):
    groups(staff="in.test\n")
    rules_of(OFF + ITS_TEST)
    rules = load_rules(tmp_path)
    assert (len(rules.tests), rules.warnings) == (1, ())


def test_a_rule_sets_a_sender_of_an_own_domain_only(tmp_path):
    file = tmp_path / "10-a.toml"
    file.write_text("# cron\n" + rule("{ set_sender = 'ops@out.test' }"))
    load_rules(tmp_path, local_domains=["in.test"])  # without a configuration nobody knows
    with pytest.raises(PolicyError) as raised:
        load_rules(tmp_path, local_domains=["in.test"], routes={})
    assert str(raised.value) == (
        f'{file}:2: rule "r": set_sender: found "ops@out.test", expected an address of an own'
        " domain: in.test"
    )
    file.write_text(rule("{ set_sender = 'ops@IN.test' }"))
    load_rules(tmp_path, local_domains=["in.test"], routes={})


def test_a_rule_sets_a_sender_that_a_route_names(tmp_path):
    host = "smtp://smtp.provider.test:587"
    senders = senders_of(
        [
            Route("*", host, RouteAuth("Web7@provider.test"), sender="*@contoso.test"),
            Route("*", host, RouteAuth("apikey"), sender="printer@lan.test"),
            Route("*", host, RouteAuth("sender", oauth="m365"), sender="*@*.wide.test"),
            Route("*", "graph://h.test", fallback=host, fallback_auth=RouteAuth("relay@back.test")),
            Route("*", "", RouteAuth("left@out.test"), sender="<>"),
        ]
    )
    for address, is_named in {
        "web7@PROVIDER.test": True,
        "root@provider.test": False,
        "any@contoso.test": True,
        "any@host.contoso.test": False,
        "printer@lan.test": True,
        "scanner@lan.test": False,
        "ann@x.wide.test": False,
        "relay@back.test": True,
        "left@out.test": False,
        "ops@in.test": True,
    }.items():
        (tmp_path / "10.toml").write_text(rule(f"{{ set_sender = '{address}' }}"))
        with nullcontext() if is_named else pytest.raises(PolicyError, match=re.escape(SENDERS)):
            load_rules(tmp_path, local_domains=["in.test"], routes={}, senders=senders)
