"""`all` and `any`: what they match, whom, why, and when that takes a thread.

tests/unit/transport/policy/test_rule_index.py compares any tree with one that is asked naively.
"""

from relay.base.message.envelope import Source
from relay.transport.policy.rule_tests import examined_message
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

TAG = "{ subject_prefix = '[X]' }"
HOLDS, FAILS = "{ subject = 'hello' }", "{ subject = 'x' }"
TO_B, TO_C = "{ recipient = 'b@*' }", "{ recipient = 'c@*' }"
BOTH = ("b@out.test", "c@out.test")


def message(content=MAIL, to=BOTH):
    return examined_message("a@in.test", to, content, source=Source.SMTP, local_domains={"in.test"})


@each_row(
    "key, conditions, recipients",
    [
        ("when", f"any = [{FAILS}, {HOLDS}]", BOTH),
        ("when", f"any = [{FAILS}, {FAILS}]", None),
        ("when", f"all = [{HOLDS}, {FAILS}]", None),
        ("when", f"all = [{HOLDS}, {HOLDS}]", BOTH),
        ("when", f"any = [{TO_B}, {FAILS}]", BOTH[:1]),
        ("when", f"any = [{TO_B}, {TO_C}]", BOTH),
        ("when", f"all = [{TO_B}, {TO_C}]", None),
        ("when", f"any = [{HOLDS}], all = [{TO_B}]", BOTH[:1]),
        ("when", f"any = [{HOLDS}], sender = 'x@*'", None),
        ("when", "any = [{ subject = 'hello', sender = 'x@*' }]", None),
        ("when", f"all = [{{ any = [{TO_B}, {FAILS}] }}, {{ any = [{TO_B}, {TO_C}] }}]", BOTH[:1]),
        ("when", f"any = [{{ all = [{{ any = [{TO_C}] }}, {HOLDS}] }}]", BOTH[1:]),
        ("unless", f"all = [{HOLDS}, {FAILS}]", BOTH),
        ("unless", f"all = [{HOLDS}, {HOLDS}]", None),
        ("unless", f"all = [{HOLDS}, {TO_B}]", BOTH[1:]),
        ("unless", f"any = [{FAILS}, {TO_C}]", BOTH[:1]),
        ("unless", f"any = [{FAILS}], sender = 'a@*'", None),
        ("unless", f"any = [{FAILS}], all = [{HOLDS}]", None),
        ("unless", "any = [{ subject = 'hello', sender = 'x@*' }]", BOTH),
    ],
)
def test_whom_a_rule_matches(evaluate, key, conditions, recipients):
    hits = evaluate(rule(TAG, **{key: f"{{ {conditions} }}"}), to=BOTH).hits
    assert [hit.recipients for hit in hits] == ([recipients] if recipients else [])


def test_only_the_tables_to_which_a_match_is_due_are_in_the_journey(evaluate):
    when = f"{{ sender = 'a@*', any = [{FAILS}, {{ subject = 'hello', recipient = 'b@*' }}, {HOLDS}] }}"
    [hit] = evaluate(rule(TAG, when=when), to=BOTH).hits
    assert [(each.condition, each.value) for each in hit.because] == [
        ("sender", "a@in.test"),
        ("any[1].subject", "hello"),
        ("any[1].recipient", "b@out.test"),
    ]


DEEP = "{ header = { name = 'X-Old', pattern = '1' } }"


@each_row(
    "conditions, needs_thread",
    [
        (f"any = [{DEEP}, {HOLDS}]", False),  # the quick table is asked first, and is enough
        (f"any = [{DEEP}, {FAILS}]", True),
        (f"all = [{DEEP}, {FAILS}]", False),
        (f"all = [{DEEP}, {HOLDS}]", True),
        (f"any = [{{ all = [{DEEP}, {FAILS}] }}]", False),
        (f"any = [{DEEP}], recipient = 'x@*'", False),
        ("any = [{ subject = 'x', header = { name = 'X-Old', pattern = '1' } }]", False),
    ],
)
def test_a_thread_is_needed_only_where_a_deep_condition_decides(rules_of, conditions, needs_thread):
    rules = rules_of(rule(TAG, when=f"{{ {conditions} }}"))
    evaluation = rules.begin(message())
    assert evaluation.run(in_thread=False) is not needs_thread
    evaluation.run(in_thread=True)
    assert evaluation.verdict() == rules.evaluate(message())
    assert rules.index.pattern_sets  # that of the nested condition
