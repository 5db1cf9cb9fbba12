"""The route table: order of routes, local domains, postmaster, unknown users."""

from dataclasses import replace as replace_route
from functools import partial
from pathlib import Path

import pytest

from relay.base.accounts.account import Account
from relay.base.message.envelope import OWN_REPORT
from relay.base.message.nexthop import BY_RULE, CAPTURE, HopKind, NextHop
from relay.base.message.tls_policy import TlsPolicy
from relay.base.settings.tree import SENDER, OwnDomain, Route, RouteAuth
from relay.transport.routing.route_table import RouteTable
from relay.transport.routing.routes import Credentials, HopOptions
from relay.transport.routing.routing_result import InvalidRecipient, LocalRecipient, RemoteRecipient
from tests.support.tables import each_row

SMARTHOST = NextHop(HopKind.SMTP, "127.0.0.1", 2626)


PEOPLE = {
    "alice@example.test": Account("alice@example.test"),
    "al@example.test": Account("alice@example.test"),
    "carol@example.test": Account("carol@example.test"),
}


class Accounts:
    """alice (also as al) and carol."""

    def by_token(self, token):
        raise NotImplementedError

    def by_address(self, address):
        return PEOPLE.get(address.lower())

    async def by_password(self, user, password, *, client):
        raise NotImplementedError


def table(*routes, **options):
    return RouteTable(
        [Route(domain, hop) for domain, hop in routes], ["example.test"], Accounts(), **options
    )


chosen_by = partial(RouteTable.examine_chosen, reverse_path="s@x.test")


def mx(domain):
    return RemoteRecipient(NextHop(HopKind.MX, domain))


@each_row(
    "address, expected",
    [
        ("alice@example.test", LocalRecipient("alice@example.test")),
        ("AL@Example.TEST", LocalRecipient("alice@example.test")),
        ("bob@Other.Test", mx("other.test")),
        ("bob@bücher.test", mx("xn--bcher-kva.test")),
        ("postmaster", LocalRecipient("dead-letter", is_answer=True)),
        ("PostMaster@example.test", LocalRecipient("dead-letter", is_answer=True)),
        ("postmaster@other.test", mx("other.test")),
    ],
)
def test_without_routes_a_mailbox_or_the_domains_mx(address, expected):
    assert table().examine(address) == expected


@each_row(
    "address, status",
    [
        ("nobody@example.test", "5.1.1"),
        ("bob@[192.0.2.1]", "5.1.2"),
        ("bob@[IPv6:2001:db8::1]", "5.1.2"),
        ("bob@[no.address]", "5.1.3"),
        ("bob", "5.1.3"),
        (f"bob@{'ü' * 64}.test", "5.1.2"),
    ],
)
def test_an_invalid_recipient_carries_a_whole_reply_with_its_code(address, status):
    found = table().examine(address)
    assert isinstance(found, InvalidRecipient)
    assert found.status == status
    code = 553 if status == "5.1.3" else 550
    assert found.text.startswith(f"{code} {status} <{address.replace('ü', '?')}>: ")


@each_row(
    "routes, domain, expected",
    [
        ([("*.corp.test", "local"), ("a.corp.test", "capture")], "a.corp.test", None),
        ([("a.corp.test", "capture"), ("*.corp.test", "local")], "a.corp.test", CAPTURE),
        ([("*", "capture"), ("a.corp.test", "smtp://127.0.0.1:2626")], "a.corp.test", CAPTURE),
        ([("*.corp.test", "capture")], "deep.below.corp.test", CAPTURE),
        ([("*.corp.test", "capture")], "corp.test", NextHop(HopKind.MX, "corp.test")),
        ([("*.corp.test", "capture")], "evilcorp.test", NextHop(HopKind.MX, "evilcorp.test")),
        ([("x.test", "capture"), ("x.test", "mx")], "x.test", CAPTURE),
        ([("x.test", "mx"), ("*", "capture")], "x.test", NextHop(HopKind.MX, "x.test")),
        ([("*.test", "hold"), ("x.test", "reject:5.1.6 moved")], "x.test", None),
        (
            [("X.Test", "smtps://Mail.Corp.Test:465")],
            "x.test",
            NextHop(HopKind.SMTPS, "mail.corp.test", 465),
        ),
        ([("*", "smtp://[::1]:25")], "x.test", NextHop(HopKind.SMTP, "::1", 25)),
        ([("*", "capture")], "[192.0.2.1]", CAPTURE),
        ([("*", "mx")], "[192.0.2.1]", NextHop(HopKind.MX, "[192.0.2.1]")),
    ],
)
def test_the_first_matching_route_wins(routes, domain, expected):
    found = table(*routes).next_hop_for(f"bob@{domain}")
    assert (found and found.without_route) == expected


def test_a_route_that_names_a_local_domain_takes_its_mail_but_not_its_postmasters():
    routes = table(("example.test", "smtp://127.0.0.1:2626"))
    assert routes.next_hop_for("alice@example.test").without_route == SMARTHOST
    assert routes.examine("postmaster@example.test") == LocalRecipient(
        "dead-letter", is_answer=True
    )


@pytest.mark.parametrize("hop", ["smtp://127.0.0.1:2626", "mx", "capture", "lmtp:unix:/run/lmtp"])
def test_a_route_makes_no_address_of_a_local_domain_valid(hop):
    routes = table(("*.test", hop))
    for address in ("alice@example.test", "AL@example.test"):
        assert routes.examine(address).is_local
    assert routes.examine("nobody@example.test").status == "5.1.1"
    assert not routes.examine("alice@other.test").is_local


@each_row(
    "hop, limits",
    [
        ("mx:big.test", (5, "100/60.0")),
        ("mx:mx.big.test", (None, "")),  # the first route that matches decides, and has none
        ("mx:other.test", (None, "9/1.0")),
        ("smtp://127.0.0.1:2626", (7, "60/60.0")),  # of several to one host the first
        ("smtp://127.0.0.1:2626 b.test smtp://127.0.0.1:2626", (3, "2/1.0")),  # or the named one
        ("smtps://127.0.0.1:2626", (None, "")),
        ("smtp://127.0.0.1:25", (None, "")),
    ],
)
def test_limits_of_a_next_hop(hop, limits):
    smarthost = "smtp://127.0.0.1:2626"
    routes = [
        Route("big.test", "mx", max_connections=5, max_rate="100/60.0"),
        Route("*.big.test", "mx"),
        Route("a.test", smarthost, max_connections=7, max_rate="60/60.0"),
        Route("b.test", smarthost, max_connections=3, max_rate="2/1.0"),
        Route("c.test", smarthost),
        Route("*", "mx", max_rate="9/1.0"),
    ]
    found = RouteTable(routes, [], Accounts()).options_for(NextHop.parse(hop))
    assert (found.connections_max, found.rate) == limits


def with_auth(tmp_path, *logins, hop="smtp://127.0.0.1:2626", password="secret\n"):
    (tmp_path / "password").write_text(password)
    routes = [
        Route(f"{number}.test", hop, RouteAuth(user, tmp_path / "password") if user else None)
        for number, user in enumerate(logins)
    ]
    return RouteTable(routes, [], Accounts())


def test_credentials_are_read_once_and_belong_to_the_next_hop(tmp_path):
    routes = with_auth(tmp_path, "u", "u", password="secret\r\n# of the smarthost\n")
    (tmp_path / "password").unlink()
    assert routes.options_for(SMARTHOST).login == Credentials("u", "secret")
    assert routes.options_for(NextHop(HopKind.SMTP, "127.0.0.1", 25)).login is None


CA = Path("/etc/ca.pem")


def test_a_next_hop_has_the_tls_of_its_route(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    login = RouteAuth("u", tmp_path / "password")
    routes = [
        Route("a.test", "smtp://h.test:587", login, ca=CA),
        Route("b.test", "smtp://h.test:25", login, tls="required"),
        Route("c.test", "smtp://127.0.0.1:25", login),
        Route("d.test", "smtp://h.test:26"),
        Route("e.test", "smtps://h.test:465", tls="verify"),
        Route("f.test", "mx", tls="verify", ca=CA),
        Route("g.test", "lmtp://h.test:24", login),
        Route("h.test", "lmtp:unix:/run/lmtp"),
    ]
    made = RouteTable(routes, [], Accounts(), tls="none")

    def tls(hop):
        return made.options_for(NextHop.parse(hop)).tls

    assert tls("smtp://h.test:587") == TlsPolicy("verify", ca=CA)
    assert tls("smtp://h.test:25") == TlsPolicy("required")
    assert tls("smtps://h.test:465") == TlsPolicy("verify", implicit=True)
    assert tls("mx:f.test") == TlsPolicy("verify", ca=CA)
    assert tls("lmtp://h.test:24") == TlsPolicy("verify")
    assert tls("smtps://z:1") == TlsPolicy("none", implicit=True)  # the client requires TLS
    for hop in ("smtp://127.0.0.1:25", "smtp://h.test:26", "mx:a.test", "mx:z.test", "smtp://z:1"):
        assert tls(hop) == TlsPolicy("none"), hop


@pytest.mark.parametrize("hop", ["lmtp:unix:/run/lmtp", "lmtp:unix:/run/other"])
def test_a_unix_socket_has_no_tls_whatever_the_default_is(hop):
    routes = [Route("a.test", "lmtp:unix:/run/lmtp")]
    made = RouteTable(routes, [], Accounts(), tls="required")
    assert made.options_for(NextHop.parse(hop)).tls == TlsPolicy("none")


def test_two_routes_to_one_host_may_differ_in_everything(tmp_path):
    (tmp_path / "password").write_text("secret\n")
    login, host = RouteAuth("u", tmp_path / "password"), "smtp://h.test:25"
    routes = [
        Route("a.test", host, login, tls="verify", name="paid"),
        Route("b.test", host, source_address="192.0.2.1", max_rate="1/1.0"),
    ]
    made = RouteTable(routes, [], Accounts())
    hops = [made.next_hop_for(f"x@{domain}") for domain in ("a.test", "b.test")]
    assert [hop.key for hop in hops] == [f"{host} paid", f"{host} b.test {host}"]
    assert [NextHop.parse(hop.key) for hop in hops] == hops
    paid, other = (made.options_for(hop) for hop in hops)
    assert paid == HopOptions(TlsPolicy("verify"), Credentials("u", "secret"))
    assert other == HopOptions(TlsPolicy("opportunistic"), rate="1/1.0", source_address="192.0.2.1")
    assert made.options_for(NextHop.parse(f"{host} gone")).login is None


@each_row(
    "sender, hop",
    [
        ("me@a.test", "of-a"),
        ("ME@A.Test", "of-a"),
        ("me@sub.b.test", "below-b"),
        ("me@b.test", "others"),
        ("one@c.test", "one"),
        ("two@c.test", "others"),
        ("", "null"),
    ],
)
def test_a_route_may_be_for_one_reverse_path(sender, hop):
    patterns = {"*@a.test": "of-a", "*@*.b.test": "below-b", "one@c.test": "one", "<>": "null"}
    routes = [
        Route("*", "smtp://h.test:25", name=name, sender=pattern)
        for pattern, name in patterns.items()
    ]
    made = RouteTable([*routes, Route("*", "mx", name="others")], [], Accounts())
    assert made.next_hop_for("x@y.test", sender).route == hop


def test_a_route_may_be_for_one_address():
    hop = "smtp://h.test:25"
    routes = [Route("", hop, name=one, recipient=f"{one}@a.test") for one in ("bob+x", "bob")]
    made = RouteTable([*routes, Route("a.test", hop, name="others")], [], Accounts())
    for route, *local_parts in (["bob", "Bob", "bob+y"], ["bob+x", "bob+X"], ["others", "bobby"]):
        for one in local_parts:
            assert made.next_hop_for(f"{one}@A.test", "me@a.test").route == route


DOMAINS = (
    *("a.test", "A.Test", "sub.a.test", "bücher.test", "x\ufffd.test", "[192.0.2.1]", "[x]", ""),
    *("example.test", "alias.test", "passed.test", "relay.test"),  # this host and its domains
)
LOCAL_PARTS = ("alice", "bob+x", "postmaster", "mailer-daemon", "vip")
ADDRESSES = [f"{local_part}@{domain}" for local_part in LOCAL_PARTS for domain in DOMAINS]


@each_row(
    "domain, hop, options",
    [
        ("b.test", "mx", {}),
        ("*.a.test", "smtp://h.test:25", {}),
        ("*", "smtp://h.test:25", {}),
        ("a.test", "hold", {}),
        ("a.test", "reject:5.7.1 no", {}),
        ("a.test", "local", {}),
        ("", "smtp://h.test:25", {"recipient": "vip@a.test"}),
        ("*", "smtp://h.test:25", {"sender": "*@s.test"}),
        ("*", "graph://g.test:443", {"auth": RouteAuth("p@a.test", oauth="m365")}),
        ("*", "smtp://h.test:25", {"auth": RouteAuth(SENDER, oauth="m365"), "sender": "*@s.test"}),
    ],
)
def test_an_address_is_examined_by_itself_where_it_is_not_as_others_of_its_domain(
    domain, hop, options
):
    route = Route(domain, hop, name="first", **options)
    own = [OwnDomain("alias.test", alias_of="example.test"), OwnDomain("passed.test", "any")]
    known, single = (
        RouteTable([route], ["example.test", *own], Accounts(), hostname="relay.test")
        for _ in range(2)
    )
    single.leaving = lambda _address: None
    for sender in ("first@t.test", "me@s.test", ""):
        for address in [*ADDRESSES, "postmaster"]:
            expected = single.examine(address, sender)
            assert known.examine(address, sender) == expected, (address, sender)


def test_the_one_address_of_a_route_is_valid_in_an_own_domain():
    route = Route("", "smtp://h.test:25", name="vip", recipient="vip@example.test")
    for options in ({}, {"catch_all": "alice@example.test"}):
        made = RouteTable([route], ["example.test"], Accounts(), **options)
        for one in ("vip@example.test", "VIP+x@Example.test"):
            found = made.examine(one)
            assert (found.route, found.is_local) == ("vip", True)
        assert made.examine("vip+a%b.test@example.test").status == "5.7.1"
        assert not isinstance(made.examine("other@example.test"), RemoteRecipient)


@pytest.mark.parametrize("address", ["MAILER-DAEMON@relay.test", "mailer-daemon@RELAY.test"])
def test_who_answers_a_report_writes_to_the_postmaster(address):
    routes = table(("*", "smtp://h.test:25"), hostname="relay.test")
    assert routes.examine(address) == LocalRecipient("dead-letter", is_answer=True)
    assert routes.mailbox_for(address) == "dead-letter"
    assert isinstance(routes.examine("x@relay.test", "alice@example.test"), RemoteRecipient)
    own = table(hostname="relay.test", postmaster="carol@example.test")
    assert own.examine(address) == LocalRecipient("carol@example.test", is_answer=True)
    assert own.examine("postmaster@example.test") == LocalRecipient("carol@example.test")


@pytest.mark.parametrize("address", ["games@relay.test", "postmaster@Relay.test"])
@each_row(
    "routes, is_here",
    [
        ([("*", "smtp://h.test:25")], True),
        ([("*", "hold"), ("*", "mx")], True),
        ([("*", "capture")], False),  # which stays here
        ([("other.test", "capture")], False),  # the domain's MX, or a loop and then the postmaster
        ([("relay.test", "smtp://h.test:25"), ("*", "smtp://h.test:26")], False),
        ([("*", "smtp://h.test:26"), ("*.test", "smtp://h.test:25")], False),
    ],
)
def test_no_smarthost_gets_reports_to_the_name_of_this_host(routes, is_here, address):
    found = table(*routes, hostname="Relay.test", postmaster="carol@example.test")
    here = LocalRecipient("carol@example.test", is_answer=True, is_local=False)
    assert (found.examine(address) == here) is is_here
    assert (found.mailbox_for(address) == "carol@example.test") is is_here
    assert isinstance(found.examine(address, "alice@example.test"), RemoteRecipient)
    assert isinstance(found.examine("x@other.test"), RemoteRecipient)


CHOOSABLE = [
    Route("c.test", "hold", name="brake"),
    Route("none.test", "smtp://hub.test:587", name="hub"),
    Route("none.test", "mx", name="direct"),
    Route("none.test", "capture", name="kept"),
    Route("none.test", "local", name="here"),
    Route("none.test", "reject:5.7.1 No", name="closed"),
]
HUB, ELSEWHERE = NextHop.parse("smtp://hub.test:587 hub"), "smtp://h.test:25"
BY_RULE_THERE = NextHop.parse(f"{ELSEWHERE} {BY_RULE}")


@each_row(
    "address, way, found",
    [
        ("x@b.test", "route:hub", RemoteRecipient(HUB, "hub", chosen=True)),
        ("alice@example.test", "route:hub", RemoteRecipient(HUB, "hub", chosen=True)),
        ("x@b.test", ELSEWHERE, RemoteRecipient(BY_RULE_THERE, BY_RULE, chosen=True)),
        ("alice@example.test", ELSEWHERE, RemoteRecipient(BY_RULE_THERE, BY_RULE, chosen=True)),
        (
            "x@b.test",
            "route:direct",
            RemoteRecipient(NextHop.parse("mx:b.test direct"), "direct", chosen=True),
        ),
        (
            "x@b\u00fccher.test",
            "route:direct",
            RemoteRecipient(NextHop.parse("mx:xn--bcher-kva.test direct"), "direct", chosen=True),
        ),
        ("postmaster", ELSEWHERE, LocalRecipient("dead-letter", is_answer=True)),
        ("x@b.test", "route:kept", RemoteRecipient(CAPTURE, "kept", chosen=True)),
        (
            "x@b.test",
            "route:brake",
            RemoteRecipient(NextHop.parse("mx:b.test"), held="route brake"),
        ),
        (
            "alice@example.test",
            "route:brake",
            LocalRecipient("alice@example.test", held="route brake"),
        ),
        # a route that holds the mail holds it still
        ("x@c.test", "route:hub", RemoteRecipient(HUB, "hub", held="route brake", chosen=True)),
        (
            "x@c.test",
            ELSEWHERE,
            RemoteRecipient(BY_RULE_THERE, BY_RULE, held="route brake", chosen=True),
        ),
    ],
)
def test_a_rule_chooses_the_next_hop(address, way, found):
    made = RouteTable(CHOOSABLE, ["example.test"], Accounts())
    assert chosen_by(made, address, way, made.examine(address)) == found


@pytest.mark.parametrize("name", ["here", "closed", "gone"])
def test_a_rule_cannot_choose_a_route_without_a_next_hop(name):
    made = RouteTable(CHOOSABLE, ["example.test"], Accounts())
    with pytest.raises(LookupError, match=name):
        chosen_by(made, "x@b.test", f"route:{name}", made.examine("x@b.test"))


CLOUD, AS_SENDER = (RouteAuth(user, oauth="m365") for user in ("p@a.test", "sender"))
GRAPH, OWN, REST = "graph://g.test:443 cloud", "graph://g.test:443 own\tann+x@a.test", "mx:c.test"
GRAPH_ROUTES = [
    Route("b.test", "graph://g.test:443", CLOUD, name="cloud"),
    Route("*", "graph://g.test:443", AS_SENDER, sender="*@a.test", name="own"),
]


WITH_REPORTS = [replace_route(route, reports=True) for route in GRAPH_ROUTES]


@each_row(
    "address, way, routes, key",
    [
        ("x@b.test", "", WITH_REPORTS, GRAPH),
        ("x@b.test", "", GRAPH_ROUTES, "mx:b.test"),
        ("x@b.test", "own", WITH_REPORTS, GRAPH),  # its sender is who gets the report
        ("ann+x@a.test", "", WITH_REPORTS, OWN.replace("+x", "")),  # its mailbox has no tag
        ("ann@a.test", "", GRAPH_ROUTES, "mx:a.test"),
        ("x@c.test", "", WITH_REPORTS, REST),
        ("x@c.test", "cloud", WITH_REPORTS, GRAPH),
        ("x@c.test", "cloud", GRAPH_ROUTES, REST),
        ("ann+x@a.test", "own", WITH_REPORTS, OWN.replace("+x", "")),
    ],
)
def test_a_route_with_reports_takes_a_report_to_its_sender(address, way, routes, key):
    made = RouteTable(routes, [], Accounts())
    found = made.examine(address, OWN_REPORT)
    if way:
        found = made.examine_chosen(address, f"route:{way}", found, reverse_path=OWN_REPORT)
        there = made.lookup_by_route(way)(address, OWN_REPORT)
        assert (there and there.next_hop) == (found.next_hop if found.route == way else None)
    assert found.next_hop.key == key
    domain = address.partition("@")[2]
    assert made.examine(address).next_hop.key == f"mx:{domain}", "no other null sender"
    mailbox = made.graph_mailbox(found.next_hop)
    assert mailbox == {GRAPH: "p@a.test", OWN.replace("+x", ""): "ann@a.test"}.get(key, "")


@each_row(
    "address, way, sender, key",
    [
        ("x@b.test", "", "s@c.test", GRAPH),
        ("x@b.test", "", "", "mx:b.test"),  # a report
        ("x@c.test", "", "Ann+x@A.test", OWN),
        ("x@c.test", "", "s@c.test", REST),
        ("x@c.test", "cloud", "s@c.test", GRAPH),
        ("x@c.test", "cloud", "", REST),
        ("x@b.test", "own", "ann+x@a.test", OWN),
        ("x@b.test", "own", "s@c.test", GRAPH),
    ],
)
def test_what_graph_gets_and_who_logs_in(address, way, sender, key):
    made = RouteTable(GRAPH_ROUTES, [], Accounts())
    found = made.examine(address, sender)
    if way:
        found = made.examine_chosen(address, f"route:{way}", found, reverse_path=sender)
        there = made.lookup_by_route(way)(address, sender)
        assert (there and there.next_hop) == (found.next_hop if found.route == way else None)
    assert found.next_hop.key == key


def test_each_mailbox_has_its_login_until_its_route_changes():
    made = RouteTable(GRAPH_ROUTES, [], Accounts())
    own, fixed = map(NextHop.parse, (OWN, GRAPH))
    options = made.options_for(own)
    assert options.login == Credentials("ann+x@a.test", oauth="m365")
    assert (options.connections_max, options.rate) == (4, "30/60.0")
    assert options.graph.mime_max == 2_200_000
    assert made.options_for(fixed).login.user == "p@a.test"
    assert made.must_stay(own, chosen=True)
    for hop in (
        own._replace(mailbox="s@c.test"),
        own._replace(mailbox=""),
        fixed._replace(mailbox="a"),
    ):
        assert not made.must_stay(hop, chosen=True), hop
    for routes in ([], [Route("*", "graph://g.test:443", CLOUD, sender="*@a.test", name="own")]):
        now = RouteTable(routes, [], Accounts())
        assert RouteTable(GRAPH_ROUTES, [], Accounts()).use(now).ends(options)
        assert (now.options_for(own).login, bool(now.options_for(own).graph)) == (None, True)
    assert not made.use(RouteTable(GRAPH_ROUTES, [], Accounts())).ends(options)


def test_a_sender_logs_in_at_the_fallback_too():
    cloud = replace_route(GRAPH_ROUTES[1], fallback="smtp://h.test:587", fallback_auth=AS_SENDER)
    made, own = RouteTable([cloud], [], Accounts()), NextHop.parse(OWN)
    there = made.fallback_for(own).to
    assert there.key == "smtp://h.test:587 own\tann+x@a.test"
    options = made.options_for(there)
    assert (options.login, options.tls.level) == (made.options_for(own).login, "verify")
    assert (made.fallback_for(there).to, made.must_stay(there, chosen=True)) == (None, True)
    assert not made.must_stay(there._replace(mailbox=""), chosen=True)
    other = replace_route(cloud, fallback_auth=RouteAuth("q@d.test", oauth="o"))
    made = RouteTable([other], [], Accounts())
    assert made.options_for(made.fallback_for(own).to).login == Credentials("q@d.test", oauth="o")
    names = made.names_of_login(own, whole_domain=False)
    assert names == ("ann@a.test", "*@a.test", "q@d.test")
