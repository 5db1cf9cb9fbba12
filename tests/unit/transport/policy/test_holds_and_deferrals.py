"""What rules decide beside reject, discard and redirect: holds, deferrals, next hops, rates."""

import pytest

from relay.base.message.verdict import Deferral, Hold, VerdictAction
from relay.transport.policy.engine import SKIPPED
from relay.transport.policy.message_parts import TooManyPartsError
from relay.transport.policy.rule_files import PolicyError, read_rules
from relay.transport.policy.rule_tests import examined_message
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

HOLD = rule("{ hold = 'a look' }", name="h", when="{ recipient = 'b@*' }")
TAG = "{ set_header = { name = 'X-Tag', value = 'yes' } }"
BOTH = ("b@out.test", "c@out.test")


def test_a_hold_keeps_the_reason_and_the_keys_of_the_first_rule_that_holds(evaluate):
    first = rule(
        "{ hold = 'a look' }", name="h", expires="'2d'", expired="'silent'", notice="'Wait.\\n'"
    )
    verdict = evaluate(first, rule("{ hold = 'later' }", name="l"))
    hold = Hold("a look", "h", expires_s=172800, silent=True, notice="Wait.\\n")
    assert [(one.action, one.rule, one.hold) for one in verdict.recipients] == [
        (VerdictAction.DELIVER, "h", hold)
    ]
    assert [hit.rule for hit in verdict.hits] == ["h", "l"]


@each_row(
    "later, expected",
    [
        (rule("{ reject = '5.7.1 no' }"), [("reject", False), ("reject", False)]),
        (rule("{ discard = true }"), [("discard", False), ("discard", False)]),
        (rule("{ redirect = 'x@out.test' }"), [("redirect", True), ("redirect", False)]),
        (rule("{ subject_prefix = '[X]' }"), [("deliver", True), ("deliver", False)]),
    ],
)
def test_later_rules_still_apply_to_what_is_held(evaluate, later, expected):
    verdict = evaluate(HOLD, later, to=BOTH)
    assert [(str(one.action), bool(one.hold)) for one in verdict.recipients] == expected


LATER = rule("{ reject = '5.7.1 no' }", name="later")
JUNK = Hold("quarantine", "r", silent=True)


@each_row(
    "before, to, held",
    [
        ("", "b@in.test", None),
        ("", "b@out.test", JUNK),
        ("{ hold = 'a look' }", "b@in.test", Hold("a look", "h")),
        ("{ hold = 'a look' }", "b@out.test", JUNK),  # in silence
    ],
)
def test_quarantine_decides_a_recipient_and_holds_what_leaves(evaluate, before, to, held):
    first = [rule(before, name="h")] if before else []
    verdict = evaluate(*first, rule(TAG, name="t"), rule("{ quarantine = true }"), LATER, to=(to,))
    (one,) = verdict.recipients
    assert (one.action, one.rule, one.junk, one.hold) == (VerdictAction.DELIVER, "r", JUNK, held)
    assert one.quarantined == "Junk Email"
    assert b"X-Tag: yes" in verdict.contents[one.content]
    assert verdict.hits[-1].outcome == "quarantine"


def test_quarantine_at_an_address_is_a_redirect_of_its_own(evaluate):
    hold = rule("{ hold = 'a look' }", name="h", when="{ recipient = 'c@*' }")
    verdict = evaluate(hold, rule("{ quarantine = 'b@out.test' }"), LATER, to=BOTH)
    assert [(one.action, one.successors) for one in verdict.recipients] == [
        (VerdictAction.REJECT, ()),  # it is that address
        (VerdictAction.QUARANTINE, ("b@out.test",)),
    ]
    assert [(one.address, one.hold) for one in verdict.additions] == [
        ("b@out.test", Hold("a look", "h"))
    ]


@pytest.mark.parametrize(("action", "is_held"), [("redirect", True), ("bcc", False), ("cc", False)])
def test_only_the_copy_of_a_redirect_is_held_with_its_recipient(evaluate, action, is_held):
    verdict = evaluate(HOLD, rule(f"{{ {action} = 'x@out.test' }}"))
    (added,) = verdict.additions
    assert (added.address, bool(added.hold)) == ("x@out.test", is_held)


def test_a_deferral_beats_a_reject_before_it_and_ends_the_evaluation(evaluate):
    verdict = evaluate(
        rule("{ reject = '5.7.1 no' }", name="no", when="{ recipient = 'b@*' }"),
        rule("{ defer = 'later' }", name="wait", when="{ recipient = 'c@*' }"),
        rule("{ bcc = 'x@out.test' }", name="copy"),
        to=BOTH,
    )
    assert verdict.deferred == Deferral("4.7.1", "later", "wait")
    assert [hit.rule for hit in verdict.hits] == ["no", "wait"]


@each_row(
    "next_hop, found",
    [
        ("route:partner", "route:partner"),
        ("smtps://mx.example:465", "smtps://mx.example:465"),
        ("smtp://[::1]:26", "smtp://[::1]:26"),
        ("lmtp:unix:/run/lmtp", "lmtp:unix:/run/lmtp"),
    ],
)
def test_the_last_next_hop_counts_for_the_recipients_that_matched(evaluate, next_hop, found):
    verdict = evaluate(
        rule("{ next_hop = 'smtp://first.example:25' }", name="first"),
        rule(f"{{ next_hop = '{next_hop}' }}", when="{ recipient = 'c@*' }"),
        to=BOTH,
    )
    assert [one.next_hop for one in verdict.recipients] == ["smtp://first.example:25", found]


@each_row(
    "routes, found",
    [
        ({}, 'found "partner", expected the name of a route: none is usable'),
        (
            {"partner": "local", "other": "mx"},
            'found "partner", whose next_hop is "local", expected the name of a route: "other"',
        ),
    ],
)
def test_a_route_by_which_no_mail_leaves_is_a_fault(tmp_path, routes, found):
    (tmp_path / "10.toml").write_text(rule("{ next_hop = 'route:partner' }"))
    with pytest.raises(PolicyError) as caught:
        read_rules(tmp_path, routes=routes)
    (fault,) = caught.value.faults
    assert (fault.line, fault.message) == (3, found)


@each_row(
    "per, message, key",
    [
        ("sender", {}, "a@in.test"),
        ("sender", {"sender": ""}, "<>"),
        ("login", {"login": "Ann@in.test"}, "ann@in.test"),
        ("login", {}, None),
        ("client", {"client": "192.0.2.1"}, "192.0.2.1"),
        ("client", {}, None),
    ],
)
def test_a_rate_counts_the_recipients_that_are_not_rejected(rules_of, per, message, key):
    rules = rules_of(
        rule(f"{{ rate_limit = {{ rate = '5/1h', per = '{per}' }} }}", name="rate"),
        rule("{ reject = '5.7.1 no' }", when="{ recipient = 'b@*' }"),
    )
    sender = message.pop("sender", "a@in.test")
    verdict = rules.evaluate(
        examined_message(sender, BOTH, MAIL, source="smtp", local_domains=(), **message)
    )
    found = [
        (one.rule, one.key, one.recipients, one.allowed, one.period_s) for one in verdict.charges
    ]
    assert found == ([("rate", key, 1, 5, 3600.0)] if key else [])


MANY_PARTS = (
    b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    + b"--b\r\n\r\n" * 1100
    + b"--b--\r\n"
)


@pytest.mark.parametrize(
    ("keys", "skipped"),
    [({}, False), ({"on_error": "'ignore'"}, True), ({"mode": "'audit'"}, True)],
    ids=["defer", "ignore", "audit"],
)
def test_a_rule_that_fails_is_skipped_and_counted_only_where_that_is_safe(evaluate, keys, skipped):
    broken = rule("{ bcc = 'x@out.test' }", name="b", when="{ attachment_name = '*.exe' }", **keys)
    rules = (broken, rule("{ bcc = 'y@out.test' }", name="next"))
    if not skipped:
        with pytest.raises(TooManyPartsError):
            evaluate(*rules, content=MANY_PARTS)
        return
    verdict = evaluate(*rules, content=MANY_PARTS)
    first, second = verdict.hits
    assert (first.rule, first.outcome, first.recipients, second.rule) == ("b", SKIPPED, (), "next")
    assert "TooManyPartsError" in first.error
    assert [one.address for one in verdict.additions] == ["y@out.test"]
