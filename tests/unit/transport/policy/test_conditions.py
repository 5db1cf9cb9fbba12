"""Conditions on fields by pattern and number, on the session, and on groups of addresses."""

import pytest
from msgspec.structs import replace

from relay.base.message.authentication_results import AuthResult
from relay.base.message.envelope import Source
from relay.base.message.verdict import Finding
from relay.base.settings.document import SettingsError
from relay.transport.policy.message_view import UndecidedError
from relay.transport.policy.rule_tests import examined_message
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

TAG = "{ subject_prefix = '[X]' }"


def mail(*fields):
    return "".join(f"{each}\r\n" for each in fields).encode() + b"\r\n"


def score(value):
    return mail("Subject: s", f"X-Spam-Score: {value}")


def matches(verdict):
    return bool(verdict.hits)


@each_row(
    "table, found",
    [
        ("{ dmarc = 'FAIL' }", True),
        ("{ dmarc = ['pass', 'f*'] }", True),
        ("{ dmarc = 'pass' }", False),
        ("{ dkim = 'pass', dmarc = 'fail' }", True),  # one of the signatures
        ("{ dkim = 'pass', dmarc = 'pass' }", False),
        ("{ aligned = '*' }", False),
        ("{ spf = '*' }", UndecidedError),
        ("{ spf = 'fail', dkim = 'pass' }", UndecidedError),
        ("{ spf = 'fail', dmarc = 'pass' }", False),
        ("{ arc = 'pass' }", ValueError),
        ("{}", ValueError),
        ("'fail'", ValueError),
    ],
)
def test_auth(rules_of, table, found):
    pairs = ("spf", "unable"), ("dkim", "unable"), ("dkim", "pass"), ("dmarc", "fail")
    results = [AuthResult(*pair) for pair in pairs]
    subject = examined_message("", ["b@x.test"], MAIL, source=Source.SMTP, local_domains=())
    text = rule(TAG, when=f"{{ auth = {table} }}")
    if found is ValueError:
        with pytest.raises(SettingsError, match="auth"):
            rules_of(text)
        return
    subject = replace(subject, results=results)
    if found is UndecidedError:
        with pytest.raises(UndecidedError, match="spf"):
            rules_of(text).evaluate(subject)
        verdict = rules_of(text + "on_error = 'ignore'\n").evaluate(subject)
        assert "spf of the sender" in verdict.hits[0].error
        return
    verdict = rules_of(text).evaluate(subject)
    assert matches(verdict) == found
    if found:
        assert "dmarc=fail" in verdict.hits[0].because[0].value


@each_row(
    "tables, content, found",
    [
        ("{ name = 'x-a', pattern = 'b+$' }", mail("X-A: aBB"), "x-a: aBB"),
        ("{ name = 'X-A', pattern = '^b' }", mail("X-A: ab"), None),
        ("{ name = 'X-A', pattern = '' }", mail("X-A: ab"), ValueError),
        ("{ name = 'X-A', pattern = '^$' }", mail("X-A:"), "x-a: "),
        ("{ name = 'X-A', pattern = 'b' }", mail("X-B: b"), None),
        ("{ name = 'X-A', pattern = 'b' }", mail("X-A: a", "X-A: c", "X-A: ab"), "x-a: ab"),
        ("{ name = 'X-A', pattern = 'über' }", mail("X-A: =?utf-8?Q?=C3=9CBER?="), "x-a: ÜBER"),
        ("{ name = 'X-A', pattern = 'a b' }", mail("X-A: a", " b"), "x-a: a b"),
        ("{ name = 'X-A', pattern = 'end$' }", mail("X-A: " + "word " * 500 + "end"), None),
        (
            "[{ name = 'A', matches = 'x' }, { name = 'A', pattern = 'y' }, { name = 'A', over = 1 }]",
            mail("A: 2"),
            "a: 2",
        ),
        ("[{ name = 'A', matches = 'x' }, { name = 'B', pattern = 'y' }]", mail("B: yy"), "b: yy"),
        ("[{ name = 'A', pattern = 'x' }, { name = 'A', pattern = 'y' }]", mail("A: y"), "a: y"),
    ],
)
def test_header_pattern(evaluate, tables, content, found):
    text = rule(TAG, when=f"{{ header = {tables} }}")
    if found is ValueError:
        with pytest.raises(Exception, match="expected a regular expression"):
            evaluate(text, content=content)
        return
    hits = evaluate(text, content=content).hits
    assert [each.because[0].value for each in hits] == ([found] if found is not None else [])


@each_row(
    "value, over, matching",
    [
        ("5.1", 5, True),
        ("5", 5, False),
        ("5.0", "4.99", True),
        ("-2.5", -3, True),
        ("-2.5", "-2.5", False),
        ("-2.5", 0, False),
        ("+7 of 10", 6, True),
        ("score=-2.5 required=5.0", 0, False),
        ("Yes, score=7.3", 7, True),
        ("BAYES-50", 49, True),
        (".5", 0, True),
        ("none", -1000, False),
        ("", -1000, False),
        ("٣", -1000, False),
        ("9" * 400, 5, True),
        ("x" * 3000 + "9", -1000, False),
    ],
)
def test_header_over(evaluate, value, over, matching):
    text = rule(TAG, when=f"{{ header = {{ name = 'X-Spam-Score', over = {over} }} }}")
    assert matches(evaluate(text, content=score(value))) is matching


def test_of_several_fields_one_number_over_is_enough_and_no_field_is_not(evaluate):
    text = rule(TAG, when="{ header = { name = 'X-Spam-Score', over = -100 } }")
    assert not matches(evaluate(text))
    above = rule(TAG, when="{ header = { name = 'X-Spam-Score', over = 5 } }")
    assert matches(evaluate(above, content=score("1\r\nX-Spam-Score: 6")))


@each_row(
    "when, session, matching",
    [
        ("client = '10.0.0.0/8'", {"client": "10.1.2.3"}, True),
        ("client = '10.0.0.0/8'", {"client": "11.1.2.3"}, False),
        ("client = '10.0.0.0/8'", {"client": "::ffff:10.1.2.3"}, True),
        ("client = '::ffff:10.0.0.0/104'", {"client": "10.1.2.3"}, True),
        ("client = '::/0'", {"client": "10.1.2.3"}, False),
        ("client = '0.0.0.0/0'", {"client": "2001:db8::1"}, False),
        ("client = ['192.0.2.1', '2001:db8::/32']", {"client": "2001:db8::1"}, True),
        ("client = ['192.0.2.1', '2001:db8::/32']", {"client": "192.0.2.1"}, True),
        ("client = ['192.0.2.1', '2001:db8::/32']", {"client": "192.0.2.2"}, False),
        ("client = 'fe80::/10'", {"client": "fe80::1%eth0"}, True),
        ("client = ['0.0.0.0/0', '::/0']", {"client": ""}, False),
        ("login = '*@in.test'", {"login": "Bob@in.test"}, True),
        ("login = '*@in.test'", {"login": "bob@out.test"}, False),
        ("login = '*'", {"login": "bob@in.test"}, True),
        ("login = '*'", {"login": ""}, False),
        ("login = '<*'", {"login": ""}, False),
        ("login = ['<>', 'x']", {"login": ""}, True),
        ("login = '<>'", {"login": "bob@in.test"}, False),
        ("recipients_over = 2", {"to": ["a@x.test", "b@x.test"]}, False),
        ("recipients_over = 1", {"to": ["a@x.test", "b@x.test"]}, True),
        ("recipients_over = 0", {}, True),
    ],
)
def test_conditions_on_the_session(evaluate, when, session, matching):
    assert matches(evaluate(rule(TAG, when=f"{{ {when} }}"), **session)) is matching


def test_recipients_over_counts_what_the_client_named(rules_of):
    rules = rules_of(rule(TAG, when="{ recipients_over = 50 }"))
    message = examined_message(
        "a@in.test", ["b@out.test"], MAIL, source=Source.SMTP, local_domains=()
    )
    assert not rules.evaluate(message).hits
    [hit] = rules.evaluate(replace(message, recipient_count=51)).hits
    assert hit.because == (Finding("recipients_over", "51"),)


@pytest.fixture
def groups(tmp_path):
    folder = tmp_path / "groups"
    folder.mkdir()
    (folder / "staff.txt").write_text(
        "# all of us\r\n\r\n  Ann@In.test  \r\nlab.test\r\nb*b@x.test"
    )
    (folder / "vip.txt").write_text('"the boss"@in.test\nübung@bücher.test')
    (folder / ".hidden.txt").write_text("nothing like an address")


@pytest.mark.usefixtures("groups")
@pytest.mark.parametrize("key", ["sender", "recipient", "header_from", "to_or_cc"])
@each_row(
    "globs, address, matching",
    [
        ("'group:staff'", "ann@in.test", True),
        ("'group:staff'", "ANN@IN.TEST", True),
        ("'group:staff'", "joe@in.test", False),
        ("'group:staff'", "anyone@lab.test", True),
        ("'group:staff'", "anyone@sub.lab.test", False),
        ("'group:staff'", "anyone@notlab.test", False),
        ("'group:staff'", "b*b@x.test", True),
        ("'group:staff'", "bob@x.test", False),
        ("'group:vip'", "ann@in.test", False),
        ("'group:vip'", "übung@bücher.test", True),
        ("['group:staff', 'group:vip', 'joe@*']", "joe@in.test", True),
        ("['group:staff', 'group:vip', 'joe@*']", "anyone@lab.test", True),
        ("['group:staff', 'group:vip', 'joe@*']", "x@y.test", False),
        ("'group:own'", "anyone@IN.test", True),  # the local domain
        ("'group:own'", "anyone@sub.in.test", False),
        ("['group:own', 'x@*']", "x@y.test", True),
        ("['group:own', 'group:staff']", "anyone@lab.test", True),
        ("['group:own', 'group:staff']", "x@y.test", False),
    ],
)
def test_groups(evaluate, key, globs, address, matching):
    asked = {"sender": address} if key == "sender" else {"to": [address]}
    if key == "header_from":
        asked = {"content": mail(f"From: Somebody <{address}>", "Sender: ann@in.test")}
    if key == "to_or_cc":
        asked = {
            "content": mail("To: other@z.test", f"Cc: Somebody <{address}>", "Bcc: ann@in.test")
        }
    assert matches(evaluate(rule(TAG, when=f"{{ {key} = {globs} }}"), **asked)) is matching
    exempt = evaluate(rule(TAG, name="u", unless=f"{{ {key} = {globs} }}"), **asked)
    assert matches(exempt) is not matching


@each_row(
    "fields, value",
    [
        (["From: a@b.test, Ann <Ann@in.test>"], "Ann@in.test"),
        (["From: a@b.test", "From: c@in.test"], "c@in.test"),
        (["From: =?utf-8?Q?ann=40in.test?= <a@b.test>"], None),
        (["From: group: a@in.test;"], "a@in.test"),
        (["Subject: x"], None),
    ],
)
def test_each_address_in_from_counts(evaluate, fields, value):
    hits = evaluate(rule(TAG, when="{ header_from = 'group:own' }"), content=mail(*fields)).hits
    assert [each.because[0].value for each in hits] == ([value] if value else [])


@each_row(
    "fields, value",
    [
        (["To: x@b.test, Ann <ann@xn--bcher-kva.test>"], "ann@xn--bcher-kva.test"),
        (["To: x@b.test", "cc: ann@bücher.test"], "ann@xn--bcher-kva.test"),
        (["To: x@b.test", "To: group: y@b.test, ann@bücher.test;"], "ann@xn--bcher-kva.test"),
        (["To: ann@bücher.test.b.test", "Bcc: ann@bücher.test", "From: ann@bücher.test"], None),
        (["To: undisclosed-recipients:;"], None),
        (["To: =?utf-8?Q?ann=40b=C3=BCcher.test?= <a@b.test>"], None),
    ],
)
def test_each_address_in_to_and_cc_counts(evaluate, fields, value):
    hits = evaluate(rule(TAG, when="{ to_or_cc = '*@bücher.test' }"), content=mail(*fields)).hits
    assert [each.because[0].value for each in hits] == ([value] if value else [])
