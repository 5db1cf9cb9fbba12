"""[[tenant]]: each fault of relay.toml has its line."""

import pytest

from relay.base.settings.document import SettingsError
from relay.base.settings.reader import load
from relay.base.settings.tree import Tenant
from tests.support.tables import each_row

HEAD = """\
hostname = "relay.example.test"
state_dir = "state"
[mailboxes]
domains = ["a.test", "b.test", "bücher.test"]
[[domain]]
name = "passed.test"
recipients = "any"
[[domain]]
name = "twin.test"
alias_of = "a.test"
[[route]]
domain = "x.test"
next_hop = "smtp://h.test:25"
name = "archive"
[[route]]
domain = "y.test"
next_hop = "reject:no"
name = "refused"
"""
LINE = HEAD.count("\n")  # of the last line before what a test adds


def tenant(name="acme", domains=("a.test",), may=()):
    return f'[[tenant]]\nname = "{name}"\ndomains = {list(domains)}\nmay = {list(may)}\n'


def loaded(tmp_path, text):
    (tmp_path / "relay.toml").write_text(HEAD + text)
    return load(tmp_path / "relay.toml", {})


def test_a_tenant_has_its_domains_with_a_labels(tmp_path):
    text = tenant(domains=["A.test", "bücher.test", "passed.test"], may=["cc", "route:archive"])
    assert loaded(tmp_path, text).tenant == (
        Tenant("acme", ("a.test", "xn--bcher-kva.test", "passed.test"), ("cc", "route:archive")),
    )


@each_row(
    "text, line, key, message",
    [
        (tenant("Acme"), 2, "tenant[0].name", "a-z, 0-9"),
        (tenant("-acme"), 2, "tenant[0].name", "a-z, 0-9"),
        (tenant("../etc"), 2, "tenant[0].name", "a-z, 0-9"),
        (tenant("a" * 33), 2, "tenant[0].name", "1 to 32"),
        (tenant("groups"), 2, "tenant[0].name", 'another name than "groups"'),
        (tenant() + tenant(domains=["b.test"]), 6, "tenant[1].name", "tenant[0] has it too"),
        (tenant() + tenant("other"), 7, "tenant[1].domains[0]", "tenant[0] does not have"),
        (tenant(domains=["c.test"]), 3, "tenant[0].domains[0]", "one of mailboxes.domains"),
        (tenant(domains=["twin.test"]), 3, "tenant[0].domains[0]", "no alias_of"),
        (tenant(domains=[]), 3, "tenant[0].domains", "own domain of the tenant acme"),
        (tenant(may=["reject"]), 4, "tenant[0].may[0]", "one of cc, bcc, redirect, journal"),
        (tenant(may=["cc", "route:x"]), 4, "tenant[0].may[1]", "set_sender, route:archive"),
        (tenant(may=["route:refused"]), 4, "tenant[0].may[0]", "set_sender, route:archive"),
        (tenant(may=["smtp://h.test:25"]), 4, "tenant[0].may[0]", "one of cc"),
    ],
)
def test_a_fault_has_its_line(tmp_path, text, line, key, message):
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    [fault] = caught.value.faults
    assert (fault.line, fault.key) == (LINE + line, key)
    assert message in fault.message


def test_more_tenants_than_allowed_are_a_fault(tmp_path):
    many = ", ".join(f'"d{number}.test"' for number in range(1001))
    text = HEAD.replace('"a.test", ', f'"a.test", {many}, ')
    for number in range(1001):
        text += tenant(f"t{number}", [f"d{number}.test"])
    (tmp_path / "relay.toml").write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path / "relay.toml", {})
    assert [str(one.message) for one in caught.value.faults] == [
        "found a list, expected at most 1000 tenants"
    ]
