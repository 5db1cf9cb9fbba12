"""The rule files of a tenant: names, places, and how far their actions reach."""

import os

import pytest

from relay.base.settings.tree import Tenant
from relay.base.settings.validation import ADDRESS_ACTIONS
from relay.transport.policy import rule_files
from relay.transport.policy.actions import ACTIONS
from relay.transport.policy.content_actions import SetSenderAction
from relay.transport.policy.recipient_actions import AddressesAction
from relay.transport.policy.rule_files import (
    PolicyError,
    load_rules,
    read_rules,
    unread_directories,
)
from tests.support.tables import each_row
from tests.unit.transport.policy.conftest import rule

OWN = ("acme.test", "other.test")
HOLD = '{ hold = "x" }'
CASE = """
[[test]]
name = "t"
from = "a@acme.test"
to = ["b@out.test"]
expect = { verdict = "hold", rules = ["r"] }
"""


@pytest.fixture
def home(tmp_path):
    made = tmp_path / "policies/acme"
    (made / "groups").mkdir(parents=True)
    return made


def load(home, *may):
    tenant = Tenant("acme", ("acme.test",), may)
    routes = {"archive": "smtp://h.test:25"}
    return load_rules(home, local_domains=OWN, routes=routes, tenant=tenant)


def faults(home, *may):
    with pytest.raises(PolicyError) as caught:
        load(home, *may)
    return caught.value.faults


def test_rules_have_the_name_of_their_tenant_and_tests_do_without(home):
    (home / "10.toml").write_text(rule(HOLD, when='{ direction = "outbound" }') + CASE)
    (home / "20.toml").write_text(
        rule(HOLD, name="s", mode='"off"')
        + CASE.replace('"t"', '"u"').replace("from", 'enforce = ["s"]\nfrom').replace('"r"', '"s"')
    )
    assert [one.name for one in load(home).rules] == ["acme/r", "acme/s"]


def test_an_operators_test_of_a_tenants_rule_fails_with_the_tenants_files(home):
    (home / "10.toml").write_text(rule(HOLD) + CASE.replace('["r"]', '["acme/r"]'))
    [fault] = faults(home)
    assert "expected the names of rules without acme/ in front" in fault.message


def test_a_directory_that_nothing_reads_is_a_fault(home):
    (home / "10.toml").write_text(rule(HOLD))
    (home / ".git").mkdir()
    (home / "lost+found").mkdir()
    assert load(home)
    (home / "more").mkdir()
    [fault] = faults(home)
    assert (fault.file, fault.message[:35]) == (
        home / "more",
        "found a directory, expected none bu",
    )
    assert unread_directories(home) == "not read: more (rules of tenants)"


def test_a_link_out_of_the_directory_is_a_fault_also_if_there_is_nothing(home):
    (home / "groups").rmdir()
    (home.parent / "empty").mkdir()
    (home / "groups").symlink_to("../empty")
    [fault] = faults(home)
    assert (fault.file, "found a link out of" in fault.message) == (home / "groups", True)


@each_row(
    "action, may",
    [
        ('{ redirect = "x@%s" }', "redirect"),
        ('{ cc = ["y@acme.test", "x@%s"] }', "cc"),
        ('{ bcc = "x@%s" }', "bcc"),
        ('{ quarantine = "x@%s" }', "quarantine"),
        ('{ journal = "x@%s" }', "journal"),
        ('{ notify = { to = "x@%s", text = "look" } }', "notify"),
        ('{ set_sender = "x@%s" }', "set_sender"),
    ],
)
def test_an_address_elsewhere_needs_its_word_in_may(home, action, may):
    file = home / "10.toml"
    file.write_text("\n" + rule(action % "acme.test"))
    assert load(home)
    file.write_text("\n" + rule(action % "other.test"))
    [fault] = faults(home, *(set(ADDRESS_ACTIONS) - {may}))
    assert (fault.file, fault.line) == (file, 2)
    assert 'found "x@other.test", expected an address in the tenant\'s domains' in fault.message
    assert f'"{may}" in the key may of [[tenant]] "acme"' in fault.message
    assert load(home, may)


def test_set_sender_has_an_own_domain_even_with_its_word_in_may(home):
    (home / "10.toml").write_text(rule('{ set_sender = "x@out.test" }'))
    [fault] = faults(home, "set_sender")
    assert "expected an address of an own domain: acme.test, other.test" in fault.message


@pytest.mark.parametrize("way", ["route:archive", "smtp://h.test:25"])
def test_next_hop_needs_its_route_in_may_and_is_never_a_url(home, way):
    (home / "10.toml").write_text(rule(f'{{ next_hop = "{way}" }}'))
    [fault] = faults(home, *ADDRESS_ACTIONS)
    assert 'the key may of [[tenant]] "acme"' in fault.message
    if way.startswith("route:"):
        assert load(home, way)
    else:
        assert faults(home, "route:archive")


def test_all_actions_that_name_addresses_are_words_of_may():
    bases = (AddressesAction, SetSenderAction)
    named = {key for key, kind in ACTIONS.items() if issubclass(kind, bases)}
    assert named == {key for key in ADDRESS_ACTIONS if key in ACTIONS}


@pytest.mark.parametrize("what", ["file", "groups", "group", "message", "path", "circle", "itself"])
def test_what_leads_out_of_the_directory_is_a_fault(home, what):
    outside = home.parent / "other"
    (outside / "groups").mkdir(parents=True)
    (outside / "10.toml").write_text(rule(HOLD))
    (outside / "groups/g.txt").write_text("x@other.test\n")
    (outside / "m.eml").write_bytes(b"Subject: x\r\n\r\nx\r\n")
    asks = rule(HOLD) + CASE.replace("from", 'message = "m.eml"\nfrom')
    place = home / "10.toml"
    match what:
        case "file":
            place.symlink_to(outside / "10.toml")
        case "circle":
            place.symlink_to("10.toml")
        case "groups":
            (home / "groups").rmdir()
            (home / "groups").symlink_to(outside / "groups")
            place = home / "groups"
        case "group":
            place = home / "groups/g.txt"
            place.symlink_to(outside / "groups/g.txt")
        case "message":
            place.write_text(asks)
            (home / "m.eml").symlink_to(outside / "m.eml")
        case "path":
            place.write_text(asks.replace("m.eml", "../other/m.eml"))
        case "itself":
            (home / "groups").rmdir()
            home.rmdir()
            home.symlink_to(outside)
            place = home
    found = faults(home)
    assert found[0].file == place
    # Python before 3.13 cannot resolve a circle, which leads nowhere.
    assert what == "circle" or "link out of" in found[0].message


def test_a_link_to_a_file_in_the_directory_is_none(home):
    (home / "all.txt").write_text("x@acme.test\n")
    (home / "groups/g.txt").symlink_to("../all.txt")
    (home / "10.toml").write_text(rule(HOLD, when='{ sender = "group:g" }'))
    assert load(home).rules


@pytest.mark.parametrize("what", ["missing", "a file", "501 files"])
def test_a_directory_that_cannot_be_used_is_a_fault(home, what):
    if what == "501 files":
        for number in range(501):
            (home / f"{number}.toml").touch()
    else:
        (home / "groups").rmdir()
        home.rmdir()
        if what == "a file":
            home.touch()
    [fault] = faults(home)
    assert fault.file == home
    assert "found" in fault.message
    assert "expected" in fault.message


def test_a_kept_set_is_read_without_its_tests(home):
    (home / "10.toml").write_text(rule(HOLD) + CASE.replace("from", 'message = "gone.eml"\nfrom'))
    assert faults(home)
    rules = read_rules(home, tenant=Tenant("acme", ("acme.test",)), with_tests=False)
    assert ([one.name for one in rules.rules], rules.tests) == (["acme/r"], ())


def test_the_tests_of_a_tenant_take_a_bounded_time(home, monkeypatch):
    (home / "10.toml").write_text(rule(HOLD) + "".join(CASE for _ in range(3)))
    assert load(home)
    monkeypatch.setattr(rule_files, "TENANT_TESTS_S_MAX", -1)
    [fault] = faults(home)
    assert (fault.line, fault.key) == (5, 'test "t"')
    assert "found tests that take more than -1 s up to here, expected fewer" in fault.message
    assert load_rules(home, routes={})  # those of the operator are not bounded


def test_the_messages_of_a_tenants_tests_have_a_bounded_size_together(home):
    sizes = [CASE.replace("from", f'size = "{mib} MiB"\nfrom') for mib in (60, 60, 30)]
    (home / "10.toml").write_text(rule(HOLD) + sizes[0] + sizes[2])
    assert load(home)
    (home / "20.toml").write_text(sizes[1])
    [fault] = faults(home)
    assert (fault.file, fault.line) == (home / "20.toml", 2)
    assert "found messages of more than 100 MiB up to here" in fault.message


def test_what_rules_may_do_is_checked_without_their_tests(home):
    (home / "10.toml").write_text(rule('{ bcc = "x@far.test" }'))
    with pytest.raises(PolicyError, match="expected an address in the tenant's domains"):
        read_rules(home, local_domains=OWN, routes={}, tenant=Tenant("acme", ("acme.test",)))


def journals(number, *, start=0, name="j"):
    return "".join(
        rule(f'{{ journal = "a{each}@acme.test" }}', name=f"{name}{each}")
        for each in range(start, start + number)
    )


def notices(number):
    to = ", ".join(f'"a{each}@acme.test"' for each in range(number))
    return rule(f'{{ notify = {{ to = [{to}], text = "x" }} }}', name=f"n{number}")


@pytest.mark.parametrize(
    ("good", "more", "expected"),
    [
        (
            lambda: "".join(rule(HOLD, name=f"r{n}") for n in range(1000)),
            lambda: rule(HOLD),
            "at most 1000 of a tenant",
        ),
        (lambda: f"#{'x' * 1048000}", lambda: f"#{'x' * 1048000}\n\n", "at most 2097152 together"),
        (
            lambda: journals(10) + journals(10, name="k"),
            lambda: journals(1, start=10),
            "at most 10 in all rules",
        ),
        (lambda: notices(30) + notices(20), lambda: notices(1), "at most 50 of these"),
        (
            lambda: rule(", ".join(['{ set_header = { name = "X-A", value = "b" } }'] * 100)),
            lambda: rule(
                ", ".join(['{ set_header = { name = "X-A", value = "b" } }'] * 101), name="s"
            ),
            "at most 100 actions",
        ),
    ],
    ids=["rules", "octets", "journals", "notices", "actions"],
)
def test_a_set_of_rules_has_a_bound(home, good, more, expected):
    (home / "10.toml").write_text(good())
    assert load(home)
    (home / "20.toml").write_text(more())
    (home / "groups/a.txt").write_text("x.test\n" * 1000)
    [fault] = faults(home)
    assert expected in str(fault)


def test_the_operators_rules_may_be_more(home):
    (home / "10.toml").write_text("".join(rule(HOLD, name=f"r{each}") for each in range(1001)))
    assert len(load_rules(home).rules) == 1001


@pytest.mark.parametrize("name", [b"\xff.toml", b"a\nb.toml", b"a\x1b[31m.toml"])
def test_a_file_with_a_name_that_cannot_be_shown_is_a_fault(home, name):
    (home / os.fsdecode(name)).write_text(rule(HOLD))
    [fault] = faults(home)
    assert str(fault).isprintable()
    assert "found a name" in str(fault)
