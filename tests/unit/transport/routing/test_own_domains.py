"""Own domains of each kind: which addresses are valid there, and where their mail goes."""

import pytest

from relay.base.accounts.accounts_file import load_accounts
from relay.base.message.nexthop import LOCAL, HopKind, NextHop
from relay.base.settings.document import SettingsError
from relay.base.settings.tree import OwnDomain, Route
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routing_result import InvalidRecipient, LocalRecipient, RemoteRecipient
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ACCOUNTS = """
[[account]]
address = "alice@example.test"
aliases = ["info@acme.test"]
[[account]]
address = "carol@acme.test"
[[account]]
address = "moved@moved.test"
[[alias]]
address = "team@example.test"
to = ["alice@example.test", "x@twin.test"]
[[alias]]
address = "sales@any.test"
to = ["carol@acme.test"]
"""
LISTED = "# people\n\nAnn@Listed.test\nann+known@listed.test\n  b%c@listed.test \r\n"


@pytest.fixture
def domains(tmp_path):
    (tmp_path / "listed").write_text(LISTED)
    return [
        "example.test",
        OwnDomain("acme.test", catch_all="carol@acme.test", postmaster="info@acme.test"),
        OwnDomain("plain.test"),
        OwnDomain("moved.test", catch_all="moved@moved.test"),
        OwnDomain("any.test", "any"),
        OwnDomain("told.test", "any", postmaster="alice@example.test"),
        OwnDomain("listed.test", f"file:{tmp_path}/listed"),
        OwnDomain("twin.test", alias_of="example.test"),
        OwnDomain("any-twin.test", alias_of="any.test"),
    ]


@pytest.fixture
def table(tmp_path, domains):
    file = tmp_path / "accounts.toml"
    file.write_text(ACCOUNTS)
    file.chmod(0o600)
    accounts = load_accounts(file, domains, clock=ManualClock(), environ={})
    routes = [
        Route("any.test", "lmtp:unix:/run/lmtp", name="behind"),
        Route("moved.test", "smtp://hub.test:25", name="hub"),
        Route("*", "smtp://smart.test:25", name="smart"),
    ]
    yield RouteTable(routes, domains, accounts, catch_all="alice@example.test")
    accounts.close()


def behind(domain="any.test"):
    assert domain
    hop = NextHop.parse("lmtp:unix:/run/lmtp")._replace(route="behind")
    return RemoteRecipient(hop, "behind", is_local=True)


def own_mx(domain):
    return RemoteRecipient(NextHop(HopKind.MX, domain), is_local=True)


@each_row(
    "address, expected",
    [
        # accounts; a catch_all of [mailboxes] is for mailboxes.domains alone
        ("nobody@example.test", LocalRecipient("alice@example.test")),
        ("nobody@ACME.test", LocalRecipient("carol@acme.test")),
        ("info@acme.test", LocalRecipient("alice@example.test")),
        ("nobody@plain.test", "5.1.1"),
        ("postmaster@acme.test", LocalRecipient("alice@example.test")),
        ("postmaster@plain.test", LocalRecipient("dead-letter", is_answer=True)),
        # any: by its route, or the MX; never by the route for "*"
        ("who@any.test", behind()),
        ("who+tag@any.test", behind()),
        ("postmaster@any.test", behind()),
        ("who@told.test", own_mx("told.test")),
        ("postmaster@told.test", LocalRecipient("alice@example.test")),
        # the next hop trusts us, and may read a local part as a route
        ("who%elsewhere.test@any.test", "5.7.1"),
        ("elsewhere.test!who@any.test", "5.7.1"),
        ('"who@elsewhere.test"@any.test', "5.7.1"),
        # a file
        ("ANN@listed.test", own_mx("listed.test")),
        ("ann+other@listed.test", own_mx("listed.test")),
        ("ann+x%y@listed.test", "5.7.1"),
        ("b%c@listed.test", own_mx("listed.test")),
        ("bob@listed.test", "5.1.1"),
        ("postmaster@listed.test", own_mx("listed.test")),
        # alias_of: the address of the same name
        ("Alice@twin.test", LocalRecipient("alice@example.test")),
        ("nobody@twin.test", LocalRecipient("alice@example.test")),
        ("postmaster@twin.test", LocalRecipient("dead-letter", is_answer=True)),
        ("who@any-twin.test", behind()),
        # another one
        (
            "who@other.test",
            RemoteRecipient(NextHop.parse("smtp://smart.test:25")._replace(route="smart"), "smart"),
        ),
    ],
)
def test_each_kind_of_domain_has_its_recipients(table, address, expected):
    found = table.examine(address)
    if isinstance(expected, str):
        assert isinstance(found, InvalidRecipient)
        assert found.status == expected
    else:
        assert found == expected


@each_row(
    "hop, address, fits",
    [
        (LOCAL, "alice@example.test", True),
        (LOCAL, "nobody@acme.test", True),
        (LOCAL, "postmaster", True),
        (LOCAL, "nobody@plain.test", False),  # it fails now
        (LOCAL, "who@any.test", False),
        (LOCAL, "who@told.test", False),
        (LOCAL, "alice@was-own.test", False),
        (NextHop(HopKind.MX, "told.test"), "who@told.test", True),
        (NextHop(HopKind.MX, "any.test"), "who@any.test", False),  # there is a route now
        (NextHop(HopKind.MX, "acme.test"), "carol@acme.test", False),  # it is for a mailbox now
        (NextHop(HopKind.MX, "listed.test"), "ann@listed.test", True),
        (NextHop(HopKind.MX, "listed.test"), "gone@listed.test", False),
        (NextHop(HopKind.MX, "other.test"), "who@other.test", False),  # by the route for all
        (behind().next_hop, "who@any.test", True),
    ],
)
def test_mail_in_the_queue_is_rerouted_where_its_domain_has_changed(table, hop, address, fits):
    found = table.destination_of(address, "ann@a.test")
    assert (found is not None and found.next_hop == hop) is fits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann\n", 'listed:1: found "ann", expected an address @listed.test'),
        (
            "\nann@other.test\n",
            'listed:2: found "ann@other.test", expected an address @listed.test',
        ),
    ],
)
def test_a_faulty_file_is_told_with_its_line(tmp_path, text, expected):
    file = tmp_path / "listed"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        RouteTable([], [OwnDomain("listed.test", f"file:{file}")], None)
    assert expected in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_first_address(tmp_path):
    (tmp_path / "listed").write_bytes(b"\xef\xbb\xbfann@listed.test\n")
    file = load_accounts_of_nobody(tmp_path)
    table = RouteTable([], [OwnDomain("listed.test", f"file:{tmp_path}/listed")], file)
    assert table.examine("ann@listed.test") == own_mx("listed.test")


def load_accounts_of_nobody(folder):
    file = folder / "accounts.toml"
    file.write_text("")
    file.chmod(0o600)
    return load_accounts(file, [], clock=ManualClock(), environ={})


def test_the_next_hop_behind_a_hold_says_which_addresses_there_are():
    routes = [Route("gate.test", "hold"), Route("gate.test", "smtp://gate.host:25")]
    found = RouteTable(routes, [OwnDomain("gate.test", "verify")], Nobody())
    result = found.examine("x@gate.test", "ann@a.test")
    assert result.held == "route gate.test hold"
    assert result.is_asked
    assert result.next_hop.without_route == NextHop.parse("smtp://gate.host:25")


class Nobody:
    def by_address(self, _address):
        return None
