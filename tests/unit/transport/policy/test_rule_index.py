"""The index finds each rule that matches: an evaluation that asks everything decides the same."""

import pytest
from hypothesis import given, settings

from relay.base.message.envelope import Source
from relay.transport.policy.engine import Evaluation, places_of
from relay.transport.policy.globs import Globs
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_tests import examined_message
from tests.support.rule_sets import messages, rule_sets
from tests.support.tables import each_row


def results(conditions, view, recipient):
    """The answer of each key, as docs/policy-conditions.md defines it."""
    found = [each.matches(view) for each in conditions.on_message]
    found += [each.matches_recipient(view, recipient) for each in conditions.on_recipient]
    for nested in conditions.nested:
        tables = [all(results(table, view, recipient)) for _, table in nested.tables]
        found.append(all(tables) if nested.key == "all" else any(tables))
    return found


class AsksEverything(Evaluation):
    """Asks each condition of each rule for each recipient: no index, no numbers, no bits."""

    def __init__(self, rules, message):
        super().__init__(RuleBook(rules).scopes(message), message)
        self._candidates = bytearray(b"\1") * len(rules.index.plans)

    def matched(self, plan):
        found = 0
        for place in places_of(self._open):
            view = self._views[self._content_of(place)]
            recipient = self._message.recipients[place]
            if all(results(plan.rule.when, view, recipient)):
                found |= (not any(results(plan.rule.unless, view, recipient))) << place
        return found


def check(rules, message):
    naive = AsksEverything(rules, message)
    naive.run(in_thread=True)
    assert rules.evaluate(message) == naive.verdict()


test_an_evaluation_matches_what_asking_everything_does = given(rule_sets(), messages())(check)
test_many_evaluations_match_it = pytest.mark.long(
    settings(max_examples=10_000)(given(rule_sets(), messages())(check))
)


@each_row(
    "pattern, value, matches",
    [
        ("*", "", True),
        ("*", "a", True),
        ("**", "a", True),
        ("a*", "A", True),
        ("a*", "ba", False),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("*a*", "bab", True),
        ("*a*", "b", False),
        ("a*b", "axb", True),
        ("a*b", "axbc", False),
        ("?", "a", True),
        ("?", "", False),
        ("[a]*", "[a] x", True),
        ("[a]*", "a", False),
        ("*ß", "xSS", False),
        ("*ς*", "ΠΡΟΣΦΟΡΑ", True),
        ("*ΠΡΟΣ*", "προσφορά", True),
    ],
)
def test_globs(pattern, value, matches):
    assert Globs.of([pattern]).match(value) is matches


def test_a_rule_is_found_that_matches_only_after_an_edit(rules_of):
    rules = rules_of(
        "[[rule]]\nname = 'first'\nthen = [ { subject_prefix = '[X]' } ]\n"
        "[[rule]]\nname = 'second'\nwhen = { subject = '[X]*' }\nthen = [ { bcc = 'a@b.test' } ]\n"
    )
    message = examined_message(
        "a@in.test", ["b@in.test"], b"Subject: s\r\n\r\n", source=Source.SMTP, local_domains=()
    )
    assert [hit.rule for hit in rules.evaluate(message).hits] == ["first", "second"]
