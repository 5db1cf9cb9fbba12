"""What holds for any rules and any message."""

from collections.abc import Collection

import pytest
from hypothesis import given, settings

from relay.base.message.header import ParsedContent
from relay.base.message.verdict import ExaminedMessage, Verdict, VerdictAction
from relay.transport.policy.actions import ACTIONS, RuleAction
from relay.transport.policy.conditions import CONDITIONS
from relay.transport.policy.content_actions import (
    CcAction,
    DisclaimerAction,
    RemoveHeaderAction,
    SetHeaderAction,
    SubjectPrefixAction,
)
from relay.transport.policy.engine import RuleSet
from relay.transport.policy.explanation import explain
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rules import RuleMode
from tests.support.rule_sets import ACTION_VALUES, CONDITION_VALUES, messages, rule_sets

# Where a disclaimer goes into the body, these describe it.


def actions_for(rules: RuleSet, verdict: Verdict, recipient: str) -> list[RuleAction]:
    """The actions of the rules that matched a recipient."""
    matched = {hit.rule for hit in verdict.hits if recipient in hit.recipients}
    return [
        action
        for rule in rules.rules
        if rule.name in matched and rule.mode is RuleMode.ENFORCE
        for action in rule.actions
    ]


def named_by(actions: Collection[RuleAction]) -> set[bytes]:
    """The fields that actions change, in lower case."""
    names: set[str] = set()
    for action in actions:
        match action:
            case CcAction():
                names.add("cc")
            case SubjectPrefixAction():
                names.add("subject")
            case SetHeaderAction(name):
                names.add(name)
            case RemoveHeaderAction(removed):
                names |= set(removed)
    return {name.lower().encode() for name in names}


def without(content: ParsedContent, names: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """The other fields, octet by octet."""
    return [field for field in content.header.fields if field[0] not in names]


def check_partition(message: ExaminedMessage, verdict: Verdict) -> None:
    """Every recipient has exactly one action, and no address gets two copies."""
    assert tuple(one.address for one in verdict.recipients) == message.recipients
    served = [one.address for one in verdict.recipients if one.action is VerdictAction.DELIVER]
    served += [one.address for one in verdict.added]
    assert len({each.casefold() for each in served}) == len(served)
    for one in verdict.recipients:
        if one.successors:  # somebody gets what was redirected or quarantined
            assert set(one.successors) <= set(served) - {one.address}
        if one.action is not VerdictAction.DELIVER:  # what decided it was the last to apply
            matched = [hit.rule for hit in verdict.hits if one.address in hit.recipients]
            assert matched[-1] == one.rule


def check_mails(rules: RuleSet, verdict: Verdict) -> None:
    """They are about recipients that the rule matched; a journal, about none that is rejected."""
    fates = {one.address: one.action for one in verdict.recipients}
    matched = {hit.rule: set(hit.recipients) for hit in verdict.hits if hit.mode == "enforce"}
    for mail in verdict.mails:
        assert set(mail.recipients) <= matched[mail.rule]
        assert mail.recipients
        assert mail.text or VerdictAction.REJECT not in {fates[one] for one in mail.recipients}
    assert not verdict.mails or {*fates.values()} != {VerdictAction.REJECT}


def check_contents(rules: RuleSet, message: ExaminedMessage, verdict: Verdict) -> None:
    """The octets that no action names are the same in every copy."""
    original = verdict.contents[0]
    assert original is message.content
    copies = [one for one in verdict.recipients if one.action is VerdictAction.DELIVER]
    used = {one.content for one in verdict.recipients} | {one.content for one in verdict.additions}
    assert used | {0} == set(range(len(verdict.contents)))
    for one in copies:
        actions = actions_for(rules, verdict, one.address)
        copy, names = verdict.contents[one.content], named_by(actions)
        names |= {b"from"} if verdict.sender else set()  # of all recipients
        if any(isinstance(each, DisclaimerAction) for each in actions):
            continue  # tests/unit/formats/test_disclaimer.py
        assert without(copy, names) == without(original, names)
        assert copy.rest is original.rest
        assert names or one.content == 0
    for copy in verdict.contents:
        assert copy.header.values("To") == original.header.values("To")
        if not any(isinstance(each, CcAction) for rule in rules.rules for each in rule.actions):
            assert copy.header.values("Cc") == original.header.values("Cc")


def check_explanation(rules: RuleSet, message: ExaminedMessage, verdict: Verdict) -> None:
    """An explanation says what an evaluation decides."""
    explained = explain(RuleBook(rules), message)
    assert explained.verdict == verdict
    hits = {hit.rule: hit.recipients for hit in verdict.hits}
    assert {each.rule: each.recipients for each in explained.rules if each.matched} == hits


def check(rules: RuleSet, message: ExaminedMessage) -> None:
    """All of these; and a thread goes on where the event loop has stopped."""
    verdict = rules.evaluate(message)
    check_partition(message, verdict)
    check_contents(rules, message, verdict)
    check_mails(rules, verdict)
    check_explanation(rules, message, verdict)
    evaluation = rules.begin(message)
    evaluation.run(in_thread=False)
    evaluation.run(in_thread=True)
    assert evaluation.verdict() == verdict


test_any_rules_and_any_message = given(rule_sets(), messages())(check)
test_many_rules_and_messages = pytest.mark.long(
    settings(max_examples=10_000)(given(rule_sets(), messages())(check))
)


def test_the_rule_sets_have_every_condition_and_every_action() -> None:
    assert CONDITION_VALUES.keys() == CONDITIONS.keys()
    assert ACTION_VALUES.keys() == ACTIONS.keys()
