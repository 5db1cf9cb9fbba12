"""The disclaimer as an action: its keys, whose copies have it, and the three fallbacks."""

import pytest

from relay.base.message.verdict import VerdictAction
from relay.transport.policy.content_actions import DISCLAIMER_HTML_MAX, DISCLAIMER_TEXT_MAX
from relay.transport.policy.rule_files import PolicyError
from tests.support.tables import each_row, rows_of
from tests.unit.transport.policy.conftest import MAIL, rule

SIGNED = MAIL.replace(b"\r\n\r\nbody", b"\r\nContent-Type: application/pkcs7-mime\r\n\r\nbody")
REASON = "it is signed or encrypted"


def action(text="Only for you", **keys):
    pairs = ", ".join(f"{key} = '{value}'" for key, value in {"text": text, **keys}.items())
    return f"{{ disclaimer = {{ {pairs} }} }}"


@each_row(
    "value, expected",
    [
        *rows_of(
            """
            'x' | expected a table { text = "For the addressee only" }; it may also have html, where
            { text = 'x', Where = 'end' } | Where: found an unknown key, expected one of fallback, html, text, where (did you mean "where"?)
            { html = 'x' } | it may also have html, where, fallback
            { text = 3 } | text: found 3, expected a text with a word
            { text = '' } | text: found "", expected a text with a word
            { text = '> --' } | text: found "> --", expected a text with a word
            { text = 'x', html = '' } | html: found "", expected a text with a word
            { text = 'x', html = '<b title=x' } | expected markup that does not end inside
            { text = 'x', html = 'x<!-- y' } | expected markup that does not end inside
            { text = 'x', html = '<style>x' } | expected markup that does not end inside
            { text = 'x', where = 'top' } | where: found "top", expected one of end, start
            { text = 'x', fallback = 'defer' } | fallback: found "defer", expected one of wrap, ignore, reject
            """
        ),
        ('{ text = "a\\u0000b" }', "without control characters"),
        (
            f"{{ text = '{'x' * (DISCLAIMER_TEXT_MAX + 1)}' }}",
            f"expected at most {DISCLAIMER_TEXT_MAX}",
        ),
        (
            f"{{ text = 'x', html = '{'x' * (DISCLAIMER_HTML_MAX + 1)}' }}",
            f"expected at most {DISCLAIMER_HTML_MAX}",
        ),
    ],
)
def test_a_fault_says_what_was_expected(rules_of, value, expected):
    with pytest.raises(PolicyError) as raised:
        rules_of(rule(f"{{ disclaimer = {value} }}"))
    [fault] = raised.value.faults
    assert fault.line == 3
    assert expected in str(fault).partition('rule "r": then.disclaimer')[2]


def test_other_edits_of_the_rule_are_made_in_their_order(evaluate):
    tag = '{ subject_prefix = "[X]" }'
    verdict = evaluate(rule(f"{tag}, {action()}, {{ remove_header = 'X-Old' }}"), content=SIGNED)
    head, _, rest = verdict.contents[1].partition(b"\r\n\r\n")
    assert b"Subject: [X] hello" in head
    assert b"X-Old" not in head
    assert b"X-Old: 1\r\n" in rest  # it was removed after the message was wrapped
    assert b"Subject: [X] hello" in rest


@pytest.mark.parametrize(
    ("fallback", "fate"),
    [
        ("wrap", VerdictAction.DELIVER),
        ("ignore", VerdictAction.DELIVER),
        ("reject", VerdictAction.REJECT),
    ],
)
def test_what_cannot_have_it_takes_the_fallback(evaluate, fallback, fate):
    verdict = evaluate(
        rule(
            f'{action(fallback=fallback)}, {{ bcc = "new@x.test" }}', when="{ recipient = 'b@*' }"
        ),
        content=SIGNED,
        to=["b@out.test", "c@out.test"],
    )
    first, second = verdict.recipients
    assert (first.action, second.action) == (fate, VerdictAction.DELIVER)
    assert (first.content, second.content) == (int(fallback == "wrap"), 0)
    assert verdict.contents[0] == SIGNED
    assert (SIGNED in verdict.contents[-1]) is True
    assert len(verdict.contents) == 1 + (fallback == "wrap")
    # a copy of a message that is rejected is not made
    assert len(verdict.additions) == (fallback != "reject")
    [hit] = verdict.hits
    assert hit.because[-1].condition == "disclaimer"
    assert hit.because[-1].value == f"{fallback}: {REASON}"
    if fallback == "reject":
        assert (first.rule, first.status) == ("r", "5.6.3")
        assert first.text == f"A disclaimer has to be added to this message, but {REASON}"
