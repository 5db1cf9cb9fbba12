"""How rules change a message: verdict per recipient, edited copies, added recipients, order."""

import gc
import weakref

import pytest

from relay.base.message.envelope import Source
from relay.base.message.verdict import VerdictAction
from relay.transport.policy.engine import EvaluationStoppedError
from relay.transport.policy.rule_tests import examined_message, overall_verdict
from relay.transport.policy.rules import OverallVerdict
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

REJECT = '{ reject = "5.7.1 no" }'
TAG = '{ subject_prefix = "[X]" }'


def hits(verdict):
    return [hit.rule for hit in verdict.hits]


@each_row(
    "when, message, matches",
    [
        ("sender = 'A@IN.*'", {}, True),
        ("sender = ['x', '*@in.test']", {}, True),
        ("sender = '*@out.test'", {}, False),
        ("sender = '<>'", {"sender": ""}, True),
        ("sender = '<>'", {}, False),
        ("recipient = 'B@out.test'", {}, True),
        ("recipient = 'c@*'", {}, False),
        ("subject = 'HEL?O'", {}, True),
        ("subject = 'hel'", {}, False),
        ("subject = '[x]*'", {"content": b"Subject: [x] y\r\n\r\n"}, True),
        ("subject = '[x]*'", {"content": b"Subject: x y\r\n\r\n"}, False),
        ("subject = '*über*'", {"content": b"Subject: =?utf-8?Q?=C3=9Cber_uns?=\r\n\r\n"}, True),
        ("subject = ''", {}, None),
        ("header = { name = 'x-OLD', matches = '1' }", {}, True),
        ("header = { name = 'X-Old', matches = '2' }", {}, False),
        ("header = { name = 'X-None', matches = '*' }", {}, False),
        ("header = { name = 'X', matches = 'b' }", {"content": b"X: a\r\nX:\r\n b\r\n\r\n"}, True),
        ("header = [{ name = 'X', matches = '*' }, { name = 'X-Old', matches = '*' }]", {}, True),
        (f"size_over = {len(MAIL) - 1}", {}, True),
        (f"size_over = {len(MAIL)}", {}, False),
        ("size_over = '1 KiB'", {"content": MAIL + b"x" * 1024}, True),
        ("source = ['graph', 'sendmail']", {"source": Source.SENDMAIL}, True),
        ("source = ['graph', 'sendmail']", {}, False),
        ("direction = 'outbound'", {}, True),
        ("direction = 'inbound'", {"sender": "x@out.test", "to": ["b@in.test"]}, True),
        ("direction = 'inbound'", {"to": ["b@in.test"]}, False),
        ("direction = ['outbound', 'internal']", {"to": ["b@in.test"]}, True),
        ("sender = '*@in.test', subject = 'hello'", {}, True),
        ("sender = '*@in.test', subject = 'other'", {}, False),
    ],
)
def test_a_rule_matches_if_all_conditions_match(evaluate, when, message, matches):
    if matches is None:
        with pytest.raises(Exception, match="globs of 1 to"):
            evaluate(rule(REJECT, when=f"{{ {when} }}"), **message)
        return
    verdict = evaluate(rule(REJECT, when=f"{{ {when} }}"), **message)
    assert (hits(verdict) == ["r"]) is matches
    assert (verdict.recipients[0].action is VerdictAction.REJECT) is matches


def test_stop_ends_the_rules_only_for_the_matched_recipients(evaluate):
    first = rule(name="vip", when="{ recipient = 'b@*' }", stop="true")
    verdict = evaluate(first + rule(REJECT, name="rest"), to=["b@out.test", "c@out.test"])
    assert [each.action for each in verdict.recipients] == [
        VerdictAction.DELIVER,
        VerdictAction.REJECT,
    ]
    assert overall_verdict(verdict) is OverallVerdict.ACCEPT


def test_later_rules_see_the_edited_message_and_skip_decided_recipients(evaluate):
    verdict = evaluate(
        rule("{ discard = true }", name="drop", when="{ recipient = 'c@*' }")
        + rule('{ set_header = { name = "X-Seen", value = "ja" } }', name="mark")
        + rule(TAG, name="tag", when="{ header = { name = 'X-Seen', matches = 'ja' } }"),
        to=["b@out.test", "c@out.test"],
    )
    assert hits(verdict) == ["drop", "mark", "tag"]
    assert verdict.hits[2].recipients == ("b@out.test",)
    assert verdict.recipients[1].action is VerdictAction.DISCARD
    assert verdict.contents[1] == MAIL.replace(b"Subject: hello", b"Subject: [X] hello").replace(
        b"\r\n\r\n", b"\r\nX-Seen: ja\r\n\r\n"
    )


def test_an_edit_for_some_recipients_makes_a_second_content(evaluate):
    verdict = evaluate(
        rule(TAG, when="{ direction = 'outbound' }"), to=["b@out.test", "c@in.test", "d@out.test"]
    )
    assert [each.content for each in verdict.recipients] == [1, 0, 1]
    assert verdict.contents == (MAIL, MAIL.replace(b"hello", b"[X] hello"))


def test_an_edit_without_effect_makes_no_second_content(evaluate):
    assert evaluate(rule('{ remove_header = "X-None" }')).contents == (MAIL,)


@each_row(
    "content",
    [b"", b"\r\n", b"\r\nbody", b"no header\r\n\r\nat all", b"Subject: only\r\n", b" \r\n\r\n"],
)
def test_a_message_without_a_proper_header_can_be_edited(evaluate, content):
    verdict = evaluate(rule('{ set_header = { name = "X-A", value = "1" } }'), content=content)
    assert b"X-A: 1\r\n" in verdict.contents[1]
    assert verdict.contents[1].replace(b"X-A: 1\r\n", b"").endswith(content)


def test_two_recipients_redirected_to_each_other_both_get_the_message(evaluate):
    verdict = evaluate(
        rule('{ redirect = "c@out.test" }', name="1", when="{ recipient = 'b@*' }")
        + rule('{ redirect = "b@out.test" }', name="2", when="{ recipient = 'c@*' }"),
        to=["b@out.test", "c@out.test"],
    )
    assert {each.address for each in verdict.added} == {"b@out.test", "c@out.test"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"Cc: z@in.test\r\n", b"Cc: z@in.test,\r\n l@in.test\r\n"),
        (b"CC:\r\n", b"CC:\r\n l@in.test\r\n"),
        (
            b"cc: \xc3\xbc <z@in.test>,\r\n y@in.test\r\n",
            b"cc: \xc3\xbc <z@in.test>,\r\n y@in.test,\r\n l@in.test\r\n",
        ),
    ],
)
def test_cc_adds_only_the_new_recipient_to_the_header(evaluate, before, after):
    verdict = evaluate(rule('{ cc = ["l@in.test", "b@out.test"] }'), content=before + MAIL)
    assert verdict.contents[1] == after + MAIL
    assert [(each.address, each.content) for each in verdict.added] == [("l@in.test", 1)]


def test_a_new_cc_field_follows_the_trace_fields(evaluate):
    verdict = evaluate(rule('{ cc = "l@in.test" }'), content=b"Received: by x; today\r\n" + MAIL)
    head, _, body = verdict.contents[1].partition(b"\r\n\r\n")
    assert head.startswith(b"Received: by x; today\r\n")
    assert head.endswith(b"\r\nCc: l@in.test")
    assert body == MAIL.partition(b"\r\n\r\n")[2]


def test_a_stopped_evaluation_begins_no_further_rule(rules_of):
    names = ["a", "b", "c"]
    rules = rules_of(*(rule(TAG, name=name, mode="'audit'") for name in names))
    message = examined_message(
        "a@in.test", ["b@out.test"], MAIL, source=Source.SMTP, local_domains={"in.test"}
    )
    answers = iter([False, True])
    evaluation = rules.begin(message)
    with pytest.raises(EvaluationStoppedError):
        evaluation.run(in_thread=True, stopped=lambda: next(answers))
    assert hits(evaluation.verdict()) == ["a"]
    assert evaluation.run(in_thread=True)
    assert hits(evaluation.verdict()) == names


def test_an_evaluation_is_freed_at_once_and_its_content_with_it(rules_of):
    """Without a collection of garbage: there is one for every message."""
    evaluation = rules_of(rule(TAG)).begin(
        examined_message(
            "a@in.test", ["b@out.test"], MAIL, source=Source.SMTP, local_domains={"in.test"}
        )
    )
    gc.disable()
    try:
        assert evaluation.run(in_thread=True, stopped=lambda: False)
        left = weakref.ref(evaluation)
        del evaluation
        assert left() is None
    finally:
        gc.enable()


def test_a_message_has_one_sender_for_all_recipients(evaluate):
    printed = (
        b"From: Cron <root@box>, b@box\r\nsender: d@box\r\nSubject: x\r\nFrom: c@box\r\n"
        b"Sender: e@box\r\n\r\n"
    )
    text = rule("{ set_sender = 'ops@in.test' }", when="{ recipient = 'b@*' }")
    verdict = evaluate(text, to=["a@out.test", "b@out.test"], content=printed)
    assert verdict.sender == "ops@in.test"
    assert {one.content for one in verdict.recipients} == {verdict.recipients[0].content}
    content = verdict.contents[verdict.recipients[0].content]
    assert content == b"From: Cron <ops@in.test>\r\nSubject: x\r\n\r\n"


def test_the_last_rule_sets_the_sender_and_one_that_does_not_match_sets_none(evaluate):
    first = rule("{ set_sender = 'one@in.test' }", name="one")
    second = rule("{ set_sender = 'two@in.test' }", name="two")
    assert evaluate(first + second).sender == "two@in.test"
    assert evaluate(rule("{ set_sender = 'x@in.test' }", when="{ sender = 'x@*' }")).sender == ""
    assert evaluate(rule("{ set_sender = 'x@in.test' }", mode="'audit'")).sender == ""
