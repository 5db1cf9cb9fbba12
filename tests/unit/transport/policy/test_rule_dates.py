"""`from` and `until`: the days on which a rule is used, in UTC, both included."""

from msgspec.structs import replace

from relay.base.clock import time_us_of
from relay.base.message.envelope import Source
from relay.transport.policy.explanation import explain
from relay.transport.policy.rule_book import RuleBook
from relay.transport.policy.rule_files import load_rules
from relay.transport.policy.rule_tests import examined_message, format_check
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import MAIL, rule

HOLD = "{ hold = 'x' }"
MESSAGE = examined_message("", ["b@x.test"], MAIL, source=Source.SMTP, local_domains=())
DATES = {"from": "'2026-12-01'", "until": "2026-12-24"}


@each_row(
    "keys, now, why",
    [
        (DATES, "2026-11-30T23:59:59.999999Z", "not before 2026-12-01"),
        (DATES, "2026-12-01T00:00:00Z", ""),
        (DATES, "2026-12-24T23:59:59.999999Z", ""),
        (DATES, "2026-12-25T00:00:00Z", "not after 2026-12-24"),
        (DATES, None, ""),
        ({"from": "2026-12-01"}, "2026-11-30T00:00:00Z", "not before 2026-12-01"),
        ({"from": "2026-12-01"}, "2030-11-30T00:00:00Z", ""),
        ({"until": "'2026-12-01'"}, "2026-12-02T00:00:00Z", "not after 2026-12-01"),
        ({"until": "2026-12-01"}, "1970-01-01T00:00:00Z", ""),
        ({"from": "2026-12-01", "until": "2026-12-01"}, "2026-12-01T12:00:00Z", ""),
        ({}, "2026-12-01T12:00:00Z", ""),
    ],
)
def test_a_rule_is_off_outside_of_its_dates(rules_of, keys, now, why):
    rules = rules_of(rule(HOLD, **keys), rule("{ subject_prefix = 'X' }", name="always"))
    time_us = now and time_us_of(now)
    message = replace(MESSAGE, time_us=time_us)
    expected = ["always"] if why else ["r", "always"]
    assert [hit.rule for hit in rules.evaluate(message).hits] == expected
    explained = explain(RuleBook(rules), message)
    assert [each.skipped for each in explained.rules] == [why, ""]
    assert [hit.rule for hit in explained.verdict.hits] == expected
    line = format_check([rules], time_us=time_us).lines[0]
    assert line.endswith(f"r: hold ({why})" if why else "r: hold")


def test_the_tests_of_rules_ignore_dates_and_a_check_says_them(tmp_path):
    case = (
        "[[test]]\nname = 't'\nfrom = 'a@in.test'\nto = ['b@out.test']\n"
        "expect = { verdict = 'hold', rules = ['r'] }\n"
    )
    (tmp_path / "10.toml").write_text(rule(HOLD, **DATES) + case)
    [entry] = format_check([load_rules(tmp_path)]).document["rules"]
    assert (entry["from"], entry["until"]) == ("2026-12-01", "2026-12-24")
