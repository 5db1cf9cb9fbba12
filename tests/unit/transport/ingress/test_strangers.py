"""Strangers that the DNS refuses: who is not asked for, silent name servers, DNSBLs that are broken.

tests/integration/test_strangers.py has what each key refuses.
"""

import asyncio
from ipaddress import ip_address
from random import Random

import pytest

from relay.base.message.nexthop import HopKind, NextHop
from relay.base.settings.tree import DnsBlocklist, DnsSettings
from relay.transport.ingress import strangers as strangers_module
from relay.transport.ingress.strangers import StrangerChecks, is_host_name, listing_in
from relay.transport.routing import client_questions
from relay.transport.routing.mx_hosts import Hosts, Records
from relay.transport.routing.resolver import Resolver
from tests.support.dns_server import DnsThread
from tests.support.events import until
from tests.support.ingress import Client
from tests.support.logs import capture_logs
from tests.support.tables import each_row

CLIENT, SENDER, BOB = "11.0.0.2", "ann@good.test", "bob@example.test"
GOOD = {"good.test": {"MX": ["10 mail.good.test."]}, "2.0.0.11.in-addr.arpa": {"PTR": ["x.test."]}}
ALL = {
    "trusted_networks": ("192.0.2.0/24",),
    "reject_unknown_sender_domain": True,
    "reject_helo": "unknown",
    "reject_no_ptr": True,
}
FAULTS = {
    "none.test": "it does not list 127.0.0.2",
    "expired.test": "it does not list 127.0.0.2",
    "every.test": "it lists 127.0.0.1",
    "error.test": "it answers 127.255.255.254, which is an error",
    "silent.test": "no answer within 0.3 s",
}


def listed(zone: str, record: str, *addresses: str) -> dict[str, dict[str, list[str]]]:
    return {f"{address}.{zone}": {"A": [record]} for address in ("2.0.0.11", *addresses)}


@pytest.fixture
def dns():
    with DnsThread(GOOD) as server:
        yield server


@pytest.fixture
async def resolver(relay, dns, monkeypatch):
    """The relay's resolver, whose own time-out is longer than clients wait."""
    for name in ("_WAIT_S", "_BLOCKLISTS_S"):
        monkeypatch.setattr(strangers_module, name, 0.3)
    monkeypatch.setattr(client_questions, "_QUERY_S", 0.3)
    settings, rng = DnsSettings((dns.address,), timeout=60.0), Random(1)
    made = Resolver(settings, clock=relay.clock, rng=rng, hostname="relay.test")
    relay.strangers = StrangerChecks(
        made.answers_for_clients, is_own=relay.router.is_local_domain, clock=relay.clock
    )
    yield made
    await made.close()


async def reply_to(
    relay, *, zones=(), sender: str = SENDER, helo: str = "[11.0.0.2]", ip: str = CLIENT
) -> str:
    """The reply to RCPT in a new session of the client, "" if the recipient is taken."""
    blocklists = tuple(DnsBlocklist(zone) for zone in zones)
    owner = relay.server(**ALL, dnsbl=blocklists)._owner(ip)
    return (await owner.check_recipient(BOB, sender, 0, helo=helo)).reply


async def test_no_question_for_a_trusted_client_a_login_or_an_unknown_user(relay, resolver, dns):
    server = relay.server(**ALL, dnsbl=(DnsBlocklist("none.test"),))
    trusted, login, other = (server._owner(ip) for ip in ("192.0.2.9", CLIENT, CLIENT))
    assert await login.log_in("alice@example.test", "alice", False)
    for sender in ("alice@shared.test", "alice@example.test"):
        assert await login.sender_rejection(sender) == ""
    for owner, address in ((trusted, BOB), (login, BOB), (other, "nobody@example.test")):
        await owner.check_recipient(address, "ann@nowhere.test", 0, helo="localhost")
    assert not dns.queries
    answer = await other.check_recipient(BOB, "ann@nowhere.test", 0, helo="localhost")
    assert (answer.reply[:3], answer.reason) == ("550", "client")
    assert dns.queries


@each_row(
    "sender, reply",
    [
        ("a@null.test", "550 5.7.27 The sender domain null.test accepts no mail (null MX)"),
        ("a@both.test", ""),
        ("a@plain.test", ""),
        ("a@nowhere.test", ""),
        ("a@broken.test", ""),
        ("a@silent.test", ""),
        ("a@[192.0.2.1]", ""),
        ("alice@example.test", ""),
        ("", ""),
    ],
)
async def test_mail_from_a_domain_with_a_null_mx_is_refused(relay, resolver, dns, sender, reply):
    dns.zone |= {"null.test": {"MX": ["0 ."]}, "both.test": {"MX": ["0 .", "5 mx.test"]}}
    dns.zone |= {"plain.test": {"A": ["192.0.2.1"]}, "broken.test": "SERVFAIL"}
    dns.zone["silent.test"] = "TIMEOUT"
    assert await relay.server()._owner(CLIENT).sender_rejection(sender) == reply
    assert not dns.asked("example.test", "MX")


async def test_a_trusted_client_may_send_for_a_domain_with_a_null_mx(resolver, dns, listening):
    dns.zone["null.test"] = {"MX": ["0 ."]}
    server = await listening(trusted_networks=("127.0.0.1/32",))
    for address, code in (("127.0.0.1", "250"), ("127.0.0.2", "550")):
        client = await Client.connect(server.address, local_addr=(address, 0))
        await client.reply()
        assert await client.say("EHLO client.test")
        assert (await client.say("MAIL FROM:<a@null.test>"))[:3] == code
        assert dns.asked("null.test", "MX") == (code == "550")


async def test_what_a_session_has_asked_it_does_not_ask_again(relay, resolver, dns):
    server = relay.server(**ALL, dnsbl=(DnsBlocklist("list.test"),))
    dns.server.ttl_s = dns.server.negative_ttl_s = 0
    owner = server._owner(CLIENT)
    for sender in (SENDER, SENDER, "ann@nowhere.test", "ann@nowhere.test"):
        answer = await owner.check_recipient(BOB, sender, 0, helo="[11.0.0.2]")
    assert answer.reply[:9] == "550 5.1.8"
    asked = {"good.test": 1, "nowhere.test": 1, "2.0.0.127.list.test": 1}
    assert {name: dns.asked(name, "A" if "list" in name else "MX") for name in asked} == asked
    assert dns.asked("2.0.0.11.in-addr.arpa", "PTR") == 1


async def test_a_session_keeps_no_answer_beyond_a_message(relay, resolver, dns):
    """A stranger chooses how long an answer is, and how many there are in a session."""
    dns.server.ttl_s = 0
    owner = relay.server(**ALL)._owner(CLIENT)
    for number in (1, 2):
        assert await owner.sender_rejection(SENDER) == ""
        assert (await owner.check_recipient(BOB, SENDER, 0, helo="[11.0.0.2]")).reply == ""
        assert dns.asked("good.test", "MX") == number


async def test_silent_name_servers_refuse_nothing_but_a_sender_for_now(relay, resolver, dns):
    zones = [f"list{number}.test" for number in range(3)]
    dns.zone["null.test"] = {"MX": ["0 ."]}  # for which MAIL has got no answer in time
    assert (await reply_to(relay, sender="ann@null.test"))[:10] == "550 5.7.27"
    for name in ("2.0.0.11.in-addr.arpa", "silent.test", *(f"2.0.0.127.{zone}" for zone in zones)):
        dns.zone[name] = "TIMEOUT"
    async with asyncio.timeout(120):
        assert await reply_to(relay, zones=zones, helo="silent.test") == ""
        reply = await reply_to(relay, zones=zones, sender="ann@silent.test")
    assert reply[:9] == "450 4.1.8"
    assert not any(dns.asked(f"2.0.0.11.{zone}", "A") for zone in zones)


async def test_a_silent_domain_costs_a_session_one_wait(relay, resolver, dns):
    dns.zone["silent.test"] = "TIMEOUT"
    owner = relay.server(**ALL)._owner(CLIENT)
    for sender in ("ann@silent.test", "bob@silent.test"):
        assert await owner.sender_rejection(sender) == ""
        dns.zone["silent.test"] = {"MX": ["0 ."]}
        answer = await owner.check_recipient(BOB, sender, 0, helo="[11.0.0.2]")
        assert answer.reply[:9] == "450 4.1.8"
    assert (await relay.server(**ALL)._owner(CLIENT).sender_rejection(sender))[:3] == "550"


@pytest.mark.parametrize(
    ("clients", "honest", "query_s", "turn_s"),
    [
        (["11.0.0.9"], CLIENT, 60.0, 0.5),  # no query of the others ends
        ([f"2a00:1:2:{number}::1" for number in range(40)], "2a00:1:3::1", 60.0, 0.5),
        ([f"11.0.0.{number}" for number in range(100, 110)], CLIENT, 1.0, 17.0),
    ],
)
async def test_clients_that_ask_much_delay_no_other_and_disable_no_check(
    relay, resolver, dns, monkeypatch, clients, honest, query_s, turn_s
):
    monkeypatch.setattr(client_questions, "_QUERY_S", query_s)
    monkeypatch.setattr(client_questions, "_TURN_S", turn_s)
    dns.zone |= {f"2.0.0.127.{zone}.test": {"A": ["127.0.0.2"]} for zone in ("list", "zone")}
    pointers = {ip: ip_address(ip).reverse_pointer for ip in (*clients, honest)}
    dns.zone |= {name: {"PTR": ["x.test."]} for name in pointers.values()}
    dns.zone[f"{pointers[honest].rsplit('.', 2)[0]}.list.test"] = {"A": ["127.0.0.2"]}
    flood = []
    for ip in clients:
        for number in range(300 // len(clients)):
            domain = f"s{number}.{ip.replace(':', '-')}.test"
            dns.zone |= {domain: "TIMEOUT", f"h.{domain}": "TIMEOUT"}
            asked = {"sender": f"x@{domain}", "helo": f"h.{domain}", "zones": ["zone.test"]}
            flood.append(asyncio.create_task(reply_to(relay, ip=ip, **asked)))
    await until(lambda: len(dns.queries) > 20)
    with capture_logs() as logged:
        for zones, sender, reply in (
            ((), SENDER, ""),
            (("zone.test",), SENDER, ""),
            (("zone.test",), "ann@nowhere.test", "550 5.1.8"),
            (("zone.test", "list.test"), SENDER, "554 5.7.1"),
        ):
            found = await reply_to(relay, ip=honest, sender=sender, zones=zones)
            assert found[:9] == reply
            assert {one["event"] for one in logged} <= {"bound is full"}
    dns.zone["plain.test"] = {"A": ["192.0.2.1"]}
    assert isinstance(await resolver.resolve(NextHop(HopKind.MX, "plain.test")), Hosts)
    replies = {reply[:9] for reply in await asyncio.gather(*flood)}
    assert {"450 4.7.1"} <= replies <= {"450 4.7.1", "450 4.1.8"}


async def test_a_dnsbl_that_is_broken_is_left_out_until_it_is_repaired(relay, resolver, dns):
    test_points = ("2.0.0.127", "1.0.0.127")
    dns.zone |= listed("none.test", "127.0.0.2")
    dns.zone |= listed("every.test", "127.0.0.2", *test_points)
    dns.zone |= listed("expired.test", "203.0.113.1", *test_points)
    dns.zone |= listed("error.test", "127.255.255.254", "2.0.0.127")
    dns.zone["2.0.0.127.silent.test"] = "TIMEOUT"
    with capture_logs() as logged:
        for _ in range(3):
            assert await reply_to(relay, zones=FAULTS) == ""
        assert {line["zone"]: line["error"] for line in logged} == FAULTS
        assert [line["log_level"] for line in logged] == ["warning"] * len(FAULTS)
        del dns.zone["1.0.0.127.every.test"]
        relay.clock.now_s += 301  # what is cached ends
        reply = "554 5.7.1 11.0.0.2 is listed by every.test (127.0.0.2)"
        for _ in range(2):
            assert await reply_to(relay, zones=FAULTS) == reply
        assert [line["event"] for line in logged[len(FAULTS) :]] == ["DNSBL is used"]


@each_row(
    "record, counted, is_listing",
    [
        ("127.0.0.2", (), True),
        ("127.255.255.254", (), False),
        ("127.255.255.254", ("127.255.255.254",), False),
        ("128.0.0.2", (), False),
        ("127.0.0.2", ("127.0.0.2-11",), True),
        ("127.0.0.11", ("127.0.0.1", "127.0.0.2-11"), True),
        ("127.0.0.12", ("127.0.0.2-11",), False),
        ("127.0.1.2", ("127.0.0.2-11",), False),
    ],
)
def test_which_records_of_a_dnsbl_are_listings(record, counted, is_listing) -> None:
    assert listing_in(Records(("192.0.2.1", record)), counted) == (record if is_listing else "")


@each_row(
    "name, is_valid",
    [
        ("a_b.test.", True),
        ("a.test", True),
        ("a", False),
        ("a..test", False),
        ("-a.test", False),
        ("192.0.2.1", False),
    ],
)
def test_which_names_are_host_names(name, is_valid) -> None:
    assert is_host_name(name) is is_valid
