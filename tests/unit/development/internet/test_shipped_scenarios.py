"""Each scenario that Relay ships: it parses, names its sources, and each reply can be had."""

import re
import tomllib
from pathlib import Path

from relay.development.internet.behaviour import Moment
from relay.development.internet.scenario_file import (
    parse_scenario,
    read_scenarios,
    shipped_scenarios,
)
from relay.development.internet.scenario_state import ScenarioState
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

PAGE = (Path(__file__).parents[4] / "docs/internet.md").read_text()
NAMES = ("gmail", "outlook", "yahoo")  # those with replies
REPLIES = [
    (name, domain.names, reply)
    for name in NAMES
    for domain in read_scenarios([name]).scenario.domain
    for reply in domain.reply
]


def at(state, verb, address):
    return state.at(
        Moment(
            verb,
            "mx.test",
            sender="alice@example.test",
            recipient=address if verb == "RCPT" else "",
            recipients=() if verb == "RCPT" else (address,),
        )
    )


@each_row("name, domains, reply", REPLIES)
def test_a_reply_is_chosen_by_the_recipient(name, domains, reply):
    for domain in domains:
        state = ScenarioState(read_scenarios([name]).scenario, ManualClock())
        action = at(state, reply.verb, f"anna+{reply.name}@{domain}".lower())
        assert action.reply.split("\n")[0][:15] == reply.reply.split("\n")[0][:15]
        assert "{" not in action.reply
        other = "DOT" if reply.verb == "RCPT" else "RCPT"
        assert at(state, other, f"anna+{reply.name}@{domain}").reply == ""
        assert at(state, reply.verb, f"anna@{domain}").reply == ""


@each_row("name, domains, reply", REPLIES)
def test_a_reply_is_chosen_by_its_name_for_all_recipients(name, domains, reply):
    state = ScenarioState(read_scenarios([f"{name}:{reply.name}"]).scenario, ManualClock())
    assert at(state, reply.verb, f"anyone@{domains[0]}").reply[:3] == reply.reply[:3]


@each_row("name, domains, reply", REPLIES)
def test_a_reply_has_a_source_and_a_date(name, domains, reply):
    assert reply.source.startswith("https://") or reply.source in ("page", "bounce", "sisimai")
    assert re.fullmatch(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]", reply.date)
    if not reply.source.startswith("https://"):
        assert f'"{reply.source}"' in shipped_scenarios()[name].read_text()


@each_row("name", NAMES)
def test_names_are_unique_and_the_enhanced_status_fits_the_code(name):
    table = tomllib.loads(shipped_scenarios()[name].read_text())
    replies = [one for domain in table["domain"] for one in domain["reply"]]
    assert len({one["name"].lower() for one in replies}) == len(replies)
    for one in replies:
        found = re.match(r"([245])[0-9]{2}[ -](?:([245])\.)?", one["reply"].strip())
        assert found[2] in (None, found[1])


@each_row("name", NAMES)
def test_the_page_lists_the_replies_of_a_scenario(name):
    [row] = re.findall(rf"^\| `{name}` \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    [domain] = read_scenarios([name]).scenario.domain
    assert row[0] == ", ".join(domain.names)
    assert re.findall("`(.*?)`", row[1]) == [one.name for one in domain.reply]


def test_the_page_shows_a_scenario():
    [text] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert parse_scenario(text).scenario.domain
