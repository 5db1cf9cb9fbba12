"""Changes of single keys of a configuration that Relay wrote."""

import tomllib

import tomlkit

from relay.development.options import overridden

TABLE = {
    "hostname": "relay.example.test",
    "http": {"listen": ["127.0.0.1:0"], "tls": {"certificate": "a", "key": "b"}},
    "smtp": [{"listen": "127.0.0.1:0", "max_recipients": 10}],
    "route": [{"domain": "*", "next_hop": "capture"}],
}


def changed(changes):
    return tomllib.loads(tomlkit.dumps(overridden(TABLE, changes)))


def test_tables_are_changed_key_by_key():
    found = changed({"http": {"tls": {"key": "c"}}, "spool": {"keep": "1d"}, "hostname": "x"})
    assert found["http"] == {"listen": ["127.0.0.1:0"], "tls": {"certificate": "a", "key": "c"}}
    assert (found["spool"], found["hostname"]) == ({"keep": "1d"}, "x")


def test_entries_of_arrays_are_changed_and_added():
    found = changed({"smtp": [{"max_recipients": 5}, {"listen": "127.0.0.1:1"}]})
    assert found["smtp"] == [
        {"listen": "127.0.0.1:0", "max_recipients": 5},
        {"listen": "127.0.0.1:1"},
    ]


def test_routes_go_first():
    routes = [{"domain": "a.test", "next_hop": "mx"}]
    assert changed({"route": routes})["route"][0] == routes[0]
    assert changed({"route": routes})["route"][1]["domain"] == "*"
