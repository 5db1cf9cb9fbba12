"""Scenarios as TOML: what is read, and how each fault is reported."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.base.settings.document import SettingsError
from relay.development.internet.scenario import wire_reply
from relay.development.internet.scenario_file import (
    DOMAINS_MAX,
    SCENARIO_BYTES_MAX,
    parse_scenario,
    read_scenarios,
    scenario_of,
)
from tests.support.tables import each_row, rows_of

CONTRACT = """\
seed = 1
[[domain]]
name = "Example.org"
mx = [{ host = "mx1.example.org", preference = 10 }]
mta_sts = "enforce"
dane = true
certificate = "other-name"
[[domain.reply]]
verb = "RCPT"
recipient = "x"
reply = "550 5.1.1 no such user here"
delay = "0s"
times = 2
"""
DOMAIN = '[[domain]]\nname = "example.org"\n'
REPLY = f"{DOMAIN}[[domain.reply]]\n"


def faults(text: str) -> list[str]:
    with pytest.raises(SettingsError) as raised:
        parse_scenario(text, Path("net.toml"))
    return [str(fault) for fault in raised.value.faults]


def test_the_keys_of_the_contract():
    scenario = parse_scenario(CONTRACT).scenario
    [domain] = scenario.domain
    [reply] = domain.reply
    assert (scenario.seed, domain.name) == (1, "example.org")
    assert (domain.mta_sts, domain.dane, domain.certificate) == ("enforce", True, "other-name")
    assert [(one.host, one.preference) for one in domain.hosts] == [("mx1.example.org", 10)]
    assert (reply.verb, reply.recipient, reply.times) == ("RCPT", "x", 2)
    assert reply.reply == "550 5.1.1 no such user here"


def test_the_hosts_of_a_domain():
    scenario = parse_scenario("""
[[domain]]
name = "a.test"
[[domain]]
name = "b.test"
mx = [{ host = "two.b.test", preference = 20 }, { host = "one.b.test" }]
[[domain]]
name = "c.test"
mx = []
[[domain]]
name = "d.test"
null_mx = true
[[domain]]
name = "e.test"
addresses = "none"
""").scenario
    hosts = {one.name: [each.host for each in one.hosts] for one in scenario.domain}
    assert hosts == {
        "a.test": ["mx1.a.test"],
        "b.test": ["one.b.test", "two.b.test"],
        "c.test": ["c.test"],
        "d.test": [],
        "e.test": ["mx1.e.test"],
    }
    assert {one.name for one in scenario.domain if one.has_mx} == {"a.test", "b.test", "e.test"}
    assert scenario.domain[4].hosts[0].addresses == "none"


RCPT = f'{REPLY}verb = "RCPT"\n'


@each_row(
    "text, expected",
    [
        *rows_of(
            """
            [[domain]] / nme = "x.test" | net.toml:2: domain[0].nme: found an unknown key
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCTP" / reply = "550 x" | net.toml:4: domain[0].reply[0].verb: found "RCTP", expected one of CONNECT, BANNER
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" | net.toml:3: domain[0].reply[0]: found neither reply and action, expected one
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / reply = "550 x" / action = "drop" | found both reply and action
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / reply = "no" | net.toml:5: domain[0].reply[0].reply: found "no", expected a reply such as
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / reply = "354 no" | expected a code of 2yz, 4yz or 5yz
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / action = "servfail" | net.toml:5: domain[0].reply[0].action: found "servfail", expected it only with the verb DNS
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "DNS" / reply = "550 x" | expected the action servfail, nxdomain or stall
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "DNS" / host = "example.org" / action = "stall" | expected a mail host
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "MAIL" / recipient = "x" / reply = "550 x" | domain[0].reply[0].recipient: found "x", expected it only with DATA, DOT, RCPT
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / recipient = "x@y.test" / reply = "550 x" | expected the part before the @ only
            [[domain]] / name = "example.org" / [[domain.reply]] / verb = "RCPT" / reply = "550 x" / delay = "2h" | found 7200 seconds, expected an hour at most
            [[domain]] / name = "example.org" / null_mx = true / mx = [{ host = "a.test" }] | net.toml:4: domain[0].mx: found 1 host and null_mx
            [[domain]] / name = "example.org" / certificate = "expird" | net.toml:3: domain[0].certificate: found "expird", expected one of good, expired, other-name (did you mean "expired"?)
            [[domain]] / name = "example.org" / [[domain]] / name = "example.org" | net.toml:3: domain[1]: found "example.org" a second time
            [[domain]] / name = "example.org" / [[domain.limit]] / reply = "450 x" | found 0 of connections, messages and recipients, expected one
            [[domain]] / name = "example.org" / [[domain.limit]] / reply = "450 x" / messages = "20000/1m" | found a limit of 20000, expected at most 10000
            [[graph]] / status = 500 | net.toml:2: graph[0].status: found 500, expected one of 401, 403, 404, 413, 429, 503, 504, expired-token
            """
        ),
        (f'{RCPT}reply = "550-a\\n551 b"\n', "expected the code 550 on every line"),
        (
            f'[[graph]]\nstatus = 429\npath = "{"*a" * 101}"\n',
            "net.toml:3: graph[0].path: found 202 characters",
        ),
        (
            "".join(f'[[domain]]\nname = "a{n}.test"\nmx = []\n' for n in range(DOMAINS_MAX + 1)),
            "found 101 domains, expected at most 100",
        ),
        (
            REPLY
            + 'verb = "RCPT"\nreply = "550 x"\n'
            + '[[domain.reply]]\nverb = "QUIT"\naction = "drop"\n' * 1000,
            "found 1001 replies, expected at most 1000",
        ),
        ("# " + "x" * SCENARIO_BYTES_MAX, "found more than 256 KiB"),
    ],
)
def test_a_fault_says_where_what_was_found_and_what_was_expected(text, expected):
    found = faults(text.replace(" / ", "\n"))
    assert any(expected in one for one in found), found
    assert all(one.startswith("net.toml") for one in found)


def test_all_faults_are_reported_in_the_order_of_lines():
    text = f'{REPLY}verb = "X"\nreply = "550 x"\n[[graph]]\nstatus = 1\nx = 2\n'
    assert [one.split(":")[1] for one in faults(text)] == ["4", "7", "8"]


def test_references_to_files_and_the_environment_are_plain_text(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    text = f'{REPLY}verb = "RCPT"\nreply = "550 ${{file:{secret}}} ${{env:PATH}}"\n'
    [reply] = parse_scenario(text).scenario.domain[0].reply
    assert reply.reply == f"550 ${{file:{secret}}} ${{env:PATH}}"


@each_row("table", [{"seed": None}, {"domain": [1]}, {"domain": {"a": 1}}, {"x": 1}])
def test_a_faulty_table_names_the_key(table):
    with pytest.raises(SettingsError) as raised:
        scenario_of(table)
    [fault] = raised.value.faults
    assert fault.key.startswith(next(iter(table)))


def test_several_scenarios_are_put_together(tmp_path):
    (tmp_path / "mine.toml").write_text(CONTRACT)
    found = read_scenarios(["gmail", f"{tmp_path}/mine.toml"])
    assert [one.name for one in found.scenario.domain] == ["gmail.com", "example.org"]
    assert found.scenario.seed == 1
    assert parse_scenario(found.toml).scenario == found.scenario


@each_row(
    "names, expected",
    [
        (
            ["gmial"],
            "gmial: found no scenario of this name, expected PATH.toml or gmail, outlook, tls, yahoo",
        ),
        (["gmail:9.9.9"], 'found no reply "9.9.9", expected one of 5.1.1, 5.2.1'),
        (["tls:5.1.1"], 'found no reply "5.1.1", expected tls alone'),
        (["gmail", "gmail:5.1.1"], 'found "gmail.com" a second time'),
        (["./nothing.toml"], "nothing.toml: found no such file"),
    ],
)
def test_a_name_that_is_not_found(names, expected):
    with pytest.raises(SettingsError) as raised:
        read_scenarios(names)
    assert expected in str(raised.value)


@given(st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=60))
def test_a_reply_is_valid_on_the_wire_or_refused(text):
    try:
        reply = wire_reply(f"550 {text}")
    except ValueError:
        return
    *others, last = reply.split("\n")
    assert last.startswith("550 ")
    assert all(one.startswith("550-") for one in others)
    assert wire_reply(reply) == reply
    assert reply.isascii()


KEYS = st.sampled_from(
    [
        *("seed", "domain", "graph", "name", "aliases", "mx", "host", "reply", "verb", "action"),
        *("limit", "messages", "status", "times", "chance", "delay", "recipient", "null_mx", "tls"),
        "addresses",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["RCPT", "DNS", "drop", "550 5.1.1 no", "a.test", "b.test", "1/1m", 429])
)
TABLES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(["seed", "domain", "graph"]), TABLES, max_size=3))
def test_any_table_is_a_scenario_or_faulty(table):
    try:
        found = scenario_of(table)
    except SettingsError:
        return
    assert parse_scenario(found.toml).scenario == found.scenario
