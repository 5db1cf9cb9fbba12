"""Next hop to hosts, with a real DNS server on loopback."""

import asyncio
import contextlib
import random
import socket
import threading

import pytest
from msgspec import structs

from relay.base.message.nexthop import HopKind, NextHop
from relay.base.message.tls_policy import NO_TLSA, TlsaFinding, TlsaRecord
from relay.base.settings.tree import DnsSettings
from relay.base.socket_address import Address
from relay.transport.routing import dns_client
from relay.transport.routing import resolver as resolver_module
from relay.transport.routing.mx_hosts import (
    EXCHANGES_MAX,
    NO_MX,
    Host,
    Hosts,
    MailLoop,
    NoAddress,
    NoSuchDomain,
    NullMx,
    TemporaryFailure,
    outcome_of,
)
from relay.transport.routing.resolver import LoopbackResolver, Resolver
from tests.support.dns_server import DnsThread
from tests.support.manual_clock import ManualClock
from tests.support.tables import each_row

ZONE = {
    "three.test": {"MX": ["20 mx2.three.test", "10 mx1.three.test", "30 mx3.three.test"]},
    "mx1.three.test": {"A": ["127.0.0.11"], "AAAA": ["::1"]},
    "mx2.three.test": {"A": ["127.0.0.12"]},
    "mx3.three.test": {"AAAA": ["2001:db8::3"]},
    "null.test": {"MX": ["0 ."], "A": ["127.0.0.1"]},
    "mixed.test": {"MX": ["0 .", "5 mx1.three.test"]},
    "implicit.test": {"A": ["127.0.0.13"]},
    "servfail.test": "SERVFAIL",
    "refused.test": "REFUSED",
    "silent.test": "TIMEOUT",
    "mx-servfail.test": {"MX": "SERVFAIL", "A": ["127.0.0.14"]},
    "mx-silent.test": {"MX": "TIMEOUT", "A": ["127.0.0.14"]},
    "no-target.test": {"MX": ["10 gone.test", "20 nothing.test"]},
    "nothing.test": {},
    "target-servfail.test": {"MX": ["10 servfail.test", "20 nothing.test"]},
    "half.test": {"MX": ["10 servfail.test", "20 mx2.three.test"]},
    "v6-silent.test": {"A": ["127.0.0.15"], "AAAA": "SERVFAIL"},
    "alias.test": {"CNAME": ["three.test"]},
    "alias-target.test": {"MX": ["10 www.alias-target.test"]},
    "www.alias-target.test": {"CNAME": ["mx1.three.test"]},
    "backup.test": {"MX": ["10 mx1.three.test", "20 relay.example.test", "20 mx2.three.test"]},
    "loop.test": {"MX": ["10 Relay.Example.Test", "20 mx2.three.test"]},
    "loop-address.test": {"MX": ["10 other-name.test", "20 mx2.three.test"]},
    "other-name.test": {"A": ["127.0.0.1"]},
    "by-address.test": {"MX": ["10 127.0.0.16", "20 mx2.three.test", "30 127.0.0.1", "5 0.0.0.0"]},
    "unspecified.test": {"A": ["0.0.0.0"], "AAAA": ["::", "ff02::1"]},
    "relay.example.test": {"A": ["127.0.0.1"]},
}
PORT = 2525  # at 25, no MX host is on loopback
LISTENER = Address("127.0.0.1", PORT)
MX1 = Host("mx1.three.test", 10, ("127.0.0.11", "::1"), PORT)
MX2 = Host("mx2.three.test", 20, ("127.0.0.12",), PORT)


@pytest.fixture
def dns():
    with DnsThread(ZONE) as server:
        yield server


@pytest.fixture
def clock():
    return ManualClock()


@contextlib.asynccontextmanager
async def resolving(*servers, clock=None, timeout_s=60.0, own=LISTENER, port=PORT, **settings):
    addresses = tuple(server.address for server in servers)
    resolver = Resolver(
        DnsSettings(addresses, timeout=timeout_s, **settings),
        clock=clock or ManualClock(),
        rng=random.Random(7),
        hostname="relay.example.test",
        own_addresses=[own, Address(path="/run/pickup.sock")],
        port=port,
    )
    try:
        yield resolver
    finally:
        await resolver.close()


def mx(domain):
    return NextHop(HopKind.MX, domain)


@each_row(
    "domain, expected",
    [
        ("three.test", Hosts((MX1, MX2, Host("mx3.three.test", 30, ("2001:db8::3",), PORT)))),
        ("null.test", NullMx("null.test")),
        ("mixed.test", Hosts((Host("mx1.three.test", 5, ("127.0.0.11", "::1"), PORT),))),
        ("implicit.test", Hosts((Host("implicit.test", 0, ("127.0.0.13",), PORT),))),
        ("by-address.test", Hosts((Host("127.0.0.16", 10, ("127.0.0.16",), PORT), MX2))),
        ("gone.test", NoSuchDomain("gone.test")),
        ("nothing.test", NoAddress("nothing.test")),
        ("no-target.test", NoAddress("no-target.test")),
        ("unspecified.test", NoAddress("unspecified.test")),
        ("half.test", Hosts((MX2,))),
        ("v6-silent.test", Hosts((Host("v6-silent.test", 0, ("127.0.0.15",), PORT),))),
        ("alias.test", Hosts((MX1, MX2, Host("mx3.three.test", 30, ("2001:db8::3",), PORT)))),
        (
            "alias-target.test",
            Hosts((Host("www.alias-target.test", 10, ("127.0.0.11", "::1"), PORT),)),
        ),
        ("backup.test", Hosts((MX1,))),
        ("loop.test", MailLoop("loop.test")),
        ("loop-address.test", MailLoop("loop-address.test")),
        ("relay.example.test", MailLoop("relay.example.test")),
        ("[192.0.2.7]", Hosts((Host("[192.0.2.7]", 0, ("192.0.2.7",), PORT),))),
        ("[127.0.0.1]", MailLoop("[127.0.0.1]")),
        ("a..b", NoSuchDomain("a..b")),
        (f"{'a' * 64}.test", NoSuchDomain(f"{'a' * 64}.test")),
    ],
)
async def test_dns_answers_decide_the_hosts(dns, domain, expected):
    async with resolving(dns) as resolver:
        found = await resolver.resolve(mx(domain))
    if not isinstance(found, NullMx | NoSuchDomain):
        found = structs.replace(found, mx=NO_MX)
    assert found == expected


async def test_of_many_mx_hosts_the_best_sixteen_are_looked_up(dns):
    """An MX answer is bounded whatever its size; it comes by TCP."""
    names = [f"mx{number}.many.test" for number in range(100)]
    dns.zone["many.test"] = {"MX": [f"{number // 2} {name}" for number, name in enumerate(names)]}
    dns.zone |= {name: {"A": ["127.0.0.11"]} for name in names}
    async with resolving(dns) as resolver:
        found = await resolver.resolve(mx("many.test"))
    best = set(names[:EXCHANGES_MAX])
    assert dns.tcp_queries == 1
    assert {host.name for host in found.hosts} == best
    assert [host.preference for host in found.hosts] == [number // 2 for number in range(16)]
    assert {name for name, kind in dns.queries if kind == "A"} == best
    assert ({host.name for host in found.mx.hosts}, found.mx.more) == (best, 84)


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("servfail.test", "name server 127.0.0.1 port {port} answered SERVFAIL"),
        ("refused.test", "REFUSED"),
        ("mx-servfail.test", "SERVFAIL"),
        ("target-servfail.test", "SERVFAIL"),
        ("silent.test", "no answer within 0.3 s"),
        ("mx-silent.test", "no answer within 0.3 s"),
    ],
)
async def test_a_failing_name_server_is_temporary_and_never_an_implicit_mx(dns, domain, told):
    async with resolving(dns, timeout_s=0.3 if "silent" in domain else 60) as resolver:
        found = await resolver.resolve(mx(domain))
    assert isinstance(found, TemporaryFailure)
    assert told.format(port=dns.address.port) in found.text
    assert dns.asked(domain, "A") == 0 or domain == "target-servfail.test"


async def test_equal_preferences_are_shuffled_at_each_call_though_the_answer_is_remembered(dns):
    names = [f"mx{number}.equal.test" for number in range(4)]
    dns.zone["equal.test"] = {"MX": [f"10 {name}" for name in names]}
    dns.zone |= {name: {"A": ["127.0.0.20"]} for name in names}
    async with resolving(dns) as resolver:
        found = [await resolver.resolve(mx("equal.test")) for _ in range(40)]
    assert {hosts.hosts[0].name for hosts in found} == set(names)
    assert dns.asked("equal.test", "MX") == 1


async def test_an_answer_is_cached_for_its_ttl(dns, clock):
    dns.server.ttl_s = 100
    async with resolving(dns, clock=clock) as resolver:
        await resolver.resolve(mx("implicit.test"))
        clock.advance(59)  # the negative answer to MX holds 60 s
        await resolver.resolve(mx("implicit.test"))
        assert (dns.asked("implicit.test", "MX"), dns.asked("implicit.test", "A")) == (1, 1)
        clock.advance(2)
        await resolver.resolve(mx("implicit.test"))
        assert (dns.asked("implicit.test", "MX"), dns.asked("implicit.test", "A")) == (2, 1)
        clock.advance(40)
        await resolver.resolve(mx("implicit.test"))
        assert dns.asked("implicit.test", "A") == 2


async def test_a_dns_failure_is_not_cached(dns):
    async with resolving(dns) as resolver:
        assert isinstance(await resolver.resolve(mx("servfail.test")), TemporaryFailure)
        dns.zone["servfail.test"] = {"A": ["127.0.0.16"]}
        assert isinstance(await resolver.resolve(mx("servfail.test")), Hosts)


async def test_equal_lookups_share_one_query_and_cancelling_one_keeps_the_other(dns, monkeypatch):
    monkeypatch.setattr(dns_client, "ONE_SERVER_TIMEOUT_S", 0.3)
    dns.zone["silent.test"] = "TIMEOUT"
    async with resolving(dns) as resolver:
        waiting = [asyncio.create_task(resolver.resolve(mx("silent.test"))) for _ in range(20)]
        await dns.until_asked("silent.test", "MX")
        waiting[0].cancel()
        dns.zone["silent.test"] = {"A": ["127.0.0.17"]}
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(each, Hosts) for each in found[1:])
    assert dns.asked("silent.test", "MX") == 2  # the lost one and its repetition, for all twenty
    assert dns.asked("silent.test", "A") == 1


async def test_closing_answers_lookups_in_progress(dns):
    async with resolving(dns) as resolver:
        waiting = asyncio.create_task(resolver.resolve(mx("silent.test")))
        await dns.until_asked("silent.test", "MX")
        await resolver.close()
        assert "shutting down" in (await waiting).text


async def test_the_next_name_server_is_asked_when_one_fails(dns):
    with DnsThread({"implicit.test": "SERVFAIL"}) as broken:
        async with resolving(broken, dns) as resolver:
            assert isinstance(await resolver.resolve(mx("implicit.test")), Hosts)


async def test_address_families_alternate_and_ipv4_is_first(dns):
    dns.zone["both.test"] = {
        "A": ["127.0.0.30", "127.0.0.31"],
        "AAAA": ["2001:db8::1", "2001:db8::2", "2001:db8::3"],
    }
    async with resolving(dns) as resolver:
        found = await resolver.resolve(mx("both.test"))
    assert [":" in each for each in found.hosts[0].addresses] == [False, True, False, True, True]
    async with resolving(dns, protocols=("ipv6", "ipv4")) as resolver:
        found = await resolver.resolve(mx("both.test"))
    assert [":" in each for each in found.hosts[0].addresses] == [True, False, True, False, True]


async def test_an_address_of_no_protocol_is_neither_asked_for_nor_used(dns):
    dns.zone["both.test"] = {"MX": ["10 a.test", "20 b.test", "30 127.0.0.40"]}
    dns.zone["a.test"] = {"A": ["127.0.0.30"], "AAAA": ["2001:db8::1"]}
    dns.zone["b.test"] = {"A": ["127.0.0.31"]}
    async with resolving(dns, protocols=("ipv6",)) as resolver:
        found = await resolver.resolve(mx("both.test"))
        assert [host.addresses for host in found.hosts] == [("2001:db8::1",)]
        assert [one.skipped for one in found.mx.hosts] == ["", *["no IPv6 address"] * 2]
        none = outcome_of(await resolver.resolve(mx("b.test")))
        assert none.evidence.reply == "no mail host of b.test has an IPv6 address"
        for host in ("b.test", "127.0.0.30"):
            found = await resolver.resolve(NextHop(HopKind.SMTP, host, 25))
            assert found.text.startswith(f"the next hop {host} has no IPv6 address")
    assert (dns.asked("a.test", "AAAA"), dns.asked("a.test", "A")) == (1, 0)


@each_row(
    "host, port, expected",
    [
        ("192.0.2.1", 2626, Hosts((Host("192.0.2.1", 0, ("192.0.2.1",), 2626),))),
        ("::1", 2626, Hosts((Host("::1", 0, ("::1",), 2626),))),
        ("mx2.three.test", 587, Hosts((Host("mx2.three.test", 0, ("127.0.0.12",), 587),))),
        ("three.test", 25, None),  # has MX only, which a smarthost's name is not asked for
        ("127.0.0.1", PORT, MailLoop("127.0.0.1")),
        ("::ffff:127.0.0.1", PORT, MailLoop("::ffff:127.0.0.1")),
        ("relay.example.test", 2626, Hosts((Host("relay.example.test", 0, ("127.0.0.1",), 2626),))),
    ],
)
async def test_a_smarthost_is_that_host_and_port(dns, host, port, expected):
    async with resolving(dns) as resolver:
        found = await resolver.resolve(NextHop(HopKind.SMTP, host, port))
    if expected is None:
        assert isinstance(found, TemporaryFailure)
        assert found.status == "4.4.4"
        assert "[[route]]" in found.text
    else:
        assert found == expected


async def test_a_proxy_looks_up_graph_beyond_this_machine(dns):
    async with resolving(dns) as resolver:
        resolver.use(DnsSettings((dns.address,)), port=PORT, proxy_host="mx2.three.test")
        for kind, host, place in (
            (HopKind.GRAPH, "graph.test", "127.0.0.12"),
            (HopKind.GRAPH, "::1", "::1"),
            (HopKind.SMTP, "192.0.2.1", "192.0.2.1"),
        ):
            found = await resolver.resolve(NextHop(kind, host, 443))
            assert found == Hosts((Host(host, 0, (place,), 443),))


@each_row(
    "listener, host, is_own",
    [
        (Address("0.0.0.0", PORT), "127.0.0.7", True),
        (Address("::", PORT), "::ffff:127.0.0.7", True),
        (Address("0.0.0.0", PORT), "192.0.2.77", False),
        (Address("0.0.0.0", 25), "127.0.0.7", False),
        (Address("127.0.0.1", PORT), "127.0.0.7", False),
        (Address("127.0.0.1", PORT, systemd="smtp"), "127.0.0.7", True),
        (Address("localhost", PORT), "127.0.0.1", True),
        (Address("localhost", PORT), "127.0.0.7", False),
        (Address(systemd="smtp"), "127.0.0.1", False),
    ],
)
async def test_a_listener_at_every_address_is_at_each_of_this_machine(dns, listener, host, is_own):
    async with resolving(dns, own=listener) as resolver:
        found = await resolver.resolve(NextHop(HopKind.SMTP, host, PORT))
    assert isinstance(found, MailLoop) == is_own


@each_row(
    "text, expected",
    [
        ("mx:implicit.test", MailLoop),
        ("mx:[127.0.0.9]", MailLoop),
        ("mx:[IPv6:::ffff:127.0.0.9]", MailLoop),
        ("smtp://127.0.0.9:25", Hosts),
        ("mx:[0.0.0.0]", NoAddress),
        ("mx:[IPv6:::ffff:0.0.0.0]", NoAddress),
    ],
)
async def test_no_mx_host_is_at_port_25_of_this_machine(dns, text, expected):
    """Another program may listen there, which trusts this machine; a route may lead there."""
    async with resolving(dns, port=25) as resolver:
        assert isinstance(await resolver.resolve(NextHop.parse(text)), expected)


async def test_an_lmtp_host_is_looked_up_and_a_unix_socket_is_not(dns):
    async with resolving(dns) as resolver:
        host = await resolver.resolve(NextHop(HopKind.LMTP, "mx2.three.test", 24))
        assert host == Hosts((Host("mx2.three.test", 0, ("127.0.0.12",), 24, lmtp=True),))
        asked = len(dns.queries)
        socket_ = await resolver.resolve(NextHop(HopKind.LMTP, "/run/lmtp"))
        name = "relay.example.test"  # of this machine, for reports
        assert socket_ == Hosts((Host(name, 0, ("/run/lmtp",), 0, lmtp=True),))
        assert len(dns.queries) == asked


async def test_localhost_comes_from_the_systems_host_table_not_from_the_dns(dns):
    async with resolving(dns) as resolver:
        found = await resolver.resolve(NextHop(HopKind.SMTPS, "localhost", 465))
    assert set(found.hosts[0].addresses) & {"127.0.0.1", "::1"}
    assert not dns.queries


@pytest.mark.parametrize(
    ("table", "addresses"), [(("192.0.2.1", "127.0.0.1"), ("127.0.0.1",)), (("192.0.2.1",), None)]
)
async def test_localhost_is_never_another_machine(dns, monkeypatch, table, addresses):
    monkeypatch.setattr(resolver_module, "_addresses_by_system", lambda _name: table)
    async with resolving(dns) as resolver:
        found = await resolver.resolve(NextHop(HopKind.SMTP, "localhost", 587))
    if addresses is None:
        assert isinstance(found, TemporaryFailure)
    else:
        assert found.hosts[0].addresses == addresses


@each_row(
    "text",
    [
        "mx:three.test",
        "smtp://127.0.0.9:25",
        "smtps://localhost:465",
        "lmtp://127.0.0.9:24",
        "lmtp:unix:/run/lmtp",
    ],
)
async def test_a_relay_of_loopback_finds_hosts_there(dns, text):
    dns.zone["mx3.three.test"] = {}  # the others are in loopback
    async with resolving(dns) as resolver:
        found = await LoopbackResolver(resolver).resolve(NextHop.parse(text))
    assert isinstance(found, Hosts)


@each_row(
    "text",
    [
        "mx:three.test",
        "mx:[192.0.2.1]",
        "smtp://192.0.2.1:25",
        "smtps://three.test:465",
        "smtp://[2001:db8::1]:25",
        "smtp://smarthost:25",
        "lmtp://192.0.2.1:24",
        "graph://graph.microsoft.com:443",
    ],
)
async def test_a_relay_of_loopback_goes_nowhere_else(dns, text, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked the system"))
    dns.queries.clear()
    async with resolving(dns) as resolver:
        found = await LoopbackResolver(resolver).resolve(NextHop.parse(text))
    assert isinstance(found, TemporaryFailure)
    assert "connects to loopback only" in found.text
    assert text.startswith("mx:") or not dns.queries


ZEROS, ONES = "3 1 1 " + "00" * 32, "3 1 1 " + "11" * 32
RECORDS = {"TLSA": [ZEROS]}


def tlsa(name):
    return TlsaFinding(1, (TlsaRecord(3, 1, 1, bytes(32)),), (name,))


@pytest.mark.parametrize(
    ("zone", "insecure", "expected"),
    [
        ({}, (), NO_TLSA),
        ({"_25._tcp.h.test": RECORDS}, (), tlsa("h.test")),
        ({"_25._tcp.h.test": RECORDS}, ("h.test",), NO_TLSA),
        ({"_25._tcp.h.test": RECORDS}, ("_25._tcp.h.test",), NO_TLSA),
        ({"_25._tcp.h.test": "NXDOMAIN"}, (), NO_TLSA),
        ({"_25._tcp.h.test": {"A": ["127.0.0.1"]}}, (), NO_TLSA),
        (
            {"_25._tcp.h.test": {"TLSA": ["0 1 1 " + "00" * 32, "3 1 1 00", "3 1 9 00"]}},
            (),
            TlsaFinding(3, (), ("h.test",)),
        ),
        # an alias: the name that it leads to goes first
        (
            {
                "h.test": {"CNAME": ["w.test."]},
                "_25._tcp.h.test": {"TLSA": [ONES]},
                "_25._tcp.w.test": RECORDS,
            },
            (),
            tlsa("w.test"),
        ),
        ({"h.test": {"CNAME": ["w.test."]}, "_25._tcp.h.test": RECORDS}, (), tlsa("h.test")),
        ({"h.test": {"CNAME": ["w.test."]}, "_25._tcp.h.test": RECORDS}, ("h.test",), NO_TLSA),
        (
            {
                "h.test": {"CNAME": ["w.test."]},
                "_25._tcp.h.test": RECORDS,
                "_25._tcp.w.test": {"TLSA": "SERVFAIL"},
            },
            (),
            None,
        ),
        (
            {"h.test": {"A": ["127.0.0.9"], "AAAA": "SERVFAIL"}, "_25._tcp.h.test": RECORDS},
            (),
            tlsa("h.test"),
        ),
        ({"_25._tcp.h.test": "SERVFAIL"}, (), None),
        ({"_25._tcp.h.test": "REFUSED"}, (), None),
        ({"_25._tcp.h.test": "SERVFAIL"}, ("h.test",), NO_TLSA),
        # the addresses were there a moment ago
        ({"h.test": "SERVFAIL", "_25._tcp.h.test": RECORDS}, (), None),
        ({"h.test": {"A": ["127.0.0.9"], "AAAA": "SERVFAIL"}}, ("h.test",), NO_TLSA),
    ],
)
async def test_tlsa_records_count_where_all_was_validated(dns, zone, insecure, expected):
    dns.zone |= {"h.test": {"A": ["127.0.0.9"]}, "w.test": {"A": ["127.0.0.9"]}} | zone
    dns.insecure, counted = set(insecure), []
    async with resolving(dns, validating=True) as resolver:
        resolver.count_tlsa = counted.append
        found = await resolver.tlsa("h.test", 25)
        if expected is None:
            assert "are not known: name server 127.0.0.1" in found.trouble
        else:
            assert found == expected
        await resolver.tlsa("h.test", 25, must=True)
        assert counted == (
            ["dnssec-invalid"] * 2
            if expected is None
            else ["dane-required"] * (expected == NO_TLSA)
        )
    if "h.test" in insecure:
        assert not dns.asked("_25._tcp.h.test", "TLSA")


async def test_a_fresh_look_up_asks_again_and_others_do_not(dns):
    dns.zone |= {"h.test": {"A": ["127.0.0.9"]}, "_26._tcp.h.test": RECORDS}
    dns.insecure = set()
    async with resolving(dns, validating=True) as resolver:
        for fresh, asked in ((False, 1), (False, 1), (True, 2), (False, 2)):
            assert await resolver.tlsa("h.test", 26, fresh=fresh) == tlsa("h.test")
            assert dns.asked("_26._tcp.h.test", "TLSA") == asked
        assert dns.asked("h.test", "A") == 1


@pytest.mark.parametrize("validating", [True, False])
async def test_only_a_validating_name_server_makes_an_answer_secure(dns, validating):
    """Without it no question goes out that had not before, and none asks for AD."""
    dns.insecure = {"backup.test"}
    async with resolving(dns, validating=validating) as resolver:
        for domain, secure in (
            ("three.test", True),
            ("implicit.test", True),
            ("backup.test", False),
        ):
            found = await resolver.resolve(mx(domain))
            assert (found.mx.domains == (domain,), found.find_tlsa is not None) == (
                secure and validating,
                validating,
            )
        found = await resolver.resolve(NextHop(HopKind.SMTP, "mx2.three.test", 26))
        assert (found.find_tlsa is not None) is validating
    assert {kind for _, kind in dns.queries} <= {"MX", "A", "AAAA"}


async def test_ttls_are_capped_at_a_day_and_a_quarter_of_an_hour(dns, clock):
    dns.server.ttl_s = dns.server.negative_ttl_s = 10_000_000
    async with resolving(dns, clock=clock) as resolver:
        for domain in ("three.test", "gone.test"):
            await resolver.resolve(mx(domain))
        clock.advance(899)
        await resolver.resolve(mx("gone.test"))
        clock.advance(2)
        await resolver.resolve(mx("gone.test"))
        clock.advance(86_400)
        await resolver.resolve(mx("three.test"))
    assert dns.asked("gone.test", "MX") == 2
    assert dns.asked("three.test", "MX") == 2


async def test_a_system_lookup_that_hangs_does_not_delay_others(dns, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(10) and [])
    async with resolving(dns, timeout_s=0.1) as resolver:
        hops = [NextHop(HopKind.SMTP, f"host{number}", 25) for number in range(40)]
        found = await asyncio.gather(*map(resolver.resolve, hops))
        assert {type(each) for each in found} == {TemporaryFailure}
        async with asyncio.timeout(120):
            await asyncio.to_thread(release.set)  # the loop's own threads are free
