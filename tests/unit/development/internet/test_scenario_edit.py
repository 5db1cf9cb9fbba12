"""Replies that are added to a scenario and removed from it, in its text too."""

import pytest

from relay.base.settings.document import SettingsError
from relay.development.internet.scenario_file import (
    EMPTY,
    parse_scenario,
    with_reply,
    without_reply,
)
from tests.support.tables import each_row

REPLY = {"verb": "RCPT", "recipient": "x", "reply": "550 5.1.1 no such user here", "times": 2}
TWO = """\
# the first line
[[domain]]
name = "one.test"  # a comment

[[domain]]
name = "two.test"
aliases = ["also.test"]

[[domain.reply]]
verb = "MAIL"
reply = "451 later"

[[domain.reply]]
verb = "DOT"
action = "drop"

[[graph]]
status = 503
"""
INLINE = 'domain = [{ name = "one.test", reply = [{ verb = "DOT", action = "drop" }] }]\n'


def replies(text, number):
    return [(one.verb, one.reply or one.action) for one in text.scenario.domain[number].reply]


@pytest.mark.parametrize("domain", ["two.test", "Also.Test"])
def test_a_reply_is_added_before_the_others_of_its_domain(domain):
    edited = with_reply(parse_scenario(TWO), domain, REPLY)
    assert replies(edited, 1) == [
        ("RCPT", "550 5.1.1 no such user here"),
        ("MAIL", "451 later"),
        ("DOT", "drop"),
    ]
    assert edited.scenario.domain[1].reply[0].times == 2
    assert parse_scenario(edited.toml).scenario == edited.scenario


@pytest.mark.parametrize("text", [EMPTY, parse_scenario(TWO), parse_scenario(INLINE)])
def test_a_domain_that_is_not_described_is_added_behind_the_others(text):
    edited = with_reply(text, "new.test", REPLY)
    assert edited.scenario.domain[:-1] == text.scenario.domain
    assert edited.scenario.domain[-1].name == "new.test"
    assert edited.scenario.graph == text.scenario.graph
    assert parse_scenario(edited.toml).scenario == edited.scenario


def test_a_reply_is_removed_by_its_number():
    edited = without_reply(parse_scenario(TWO), 1, 0)
    assert replies(edited, 1) == [("DOT", "drop")]
    last = without_reply(edited, 1, 0)
    assert replies(last, 1) == []
    assert last.scenario.graph


@each_row("domain, reply", [(0, 0), (1, 2), (2, 0), (-1, 0), (1, -1)])
def test_a_reply_that_does_not_exist_is_not_removed(domain, reply):
    with pytest.raises(IndexError):
        without_reply(parse_scenario(TWO), domain, reply)


@each_row(
    "domain, reply, expected",
    [
        ("two.test", {"verb": "RCPT", "reply": "hello"}, 'found "hello", expected a reply such as'),
        ("two.test", {"verb": "RCPT"}, "found neither reply and action, expected one of them"),
        ("two.test", {**REPLY, "times": 0}, "times: "),
        ("no domain", REPLY, "name: "),
        ("", REPLY, "name: "),
        ("two.test", {**REPLY, "delay": "2h"}, "found 7200 seconds, expected an hour at most"),
    ],
)
def test_a_faulty_reply_is_named(domain, reply, expected):
    with pytest.raises(SettingsError, match=expected.replace("(", r"\(")):
        with_reply(parse_scenario(TWO), domain, reply)
