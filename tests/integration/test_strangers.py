"""docs/strangers.md: the settings of the page, and what they refuse; the sessions are in the gate, behind a proxy."""

import re
import smtplib
import tomllib

import pytest

from tests.support.dns_server import DnsThread
from tests.support.relay_config import OPERATOR, account
from tests.support.relay_process import ROOT, WAIT_S, RelayProcess, until
from tests.support.tables import each_row
from tests.unit.transport.policy.test_policy_page import matches

GATE = True
PAGE = (ROOT / "docs/strangers.md").read_text()
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ relay (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
LISTED, FINE, NAMELESS = "11.0.0.2", "11.0.0.3", "11.0.0.4"
COUNTED_BY_ONE, LISTED_6 = "11.0.0.6", "2a00::5"
PRIVATE = "10.0.0.9"  # no zone is asked for it
NIBBLES = ".".join(reversed(f"2a00{'0' * 27}5"))
ZEN, COP = "zen.spamhaus.org", "bl.spamcop.net"
POINTER = {"PTR": ["mail.good.test."]}
ZONE = {
    "good.test": {"MX": ["10 mail.good.test."]},
    "plain.test": {"A": ["192.0.2.1"]},
    "six.test": {"AAAA": ["2001:db8::1"]},
    "text.test": {"TXT": ["x"]},
    "null.test": {"MX": ["0 ."]},
    "broken.test": "SERVFAIL",
    "silent.test": "TIMEOUT",
    "mail.good.test": {"A": ["192.0.2.1"]},
    f"2.0.0.127.{ZEN}": {"A": ["127.0.0.2", "127.0.0.10"]},
    f"2.0.0.11.{ZEN}": {"A": ["127.0.0.4"]},
    f"6.0.0.11.{ZEN}": {"A": ["127.0.0.20"]},  # not of the page's answers
    f"9.0.0.10.{ZEN}": {"A": ["127.0.0.4"]},
    f"{NIBBLES}.{ZEN}": {"A": ["127.0.0.3"]},
    f"2.0.0.127.{COP}": {"A": ["127.0.0.2"]},
    f"3.0.0.11.{COP}": {"A": ["127.255.255.254"]},  # an error
    f"4.0.0.11.{COP}": {"A": ["192.0.2.1"]},  # of a domain that has expired
    f"6.0.0.11.{COP}": {"A": ["127.0.0.2"]},
    **{f"{number}.0.0.11.in-addr.arpa": POINTER for number in (2, 3, 6)},
    f"{NIBBLES}.ip6.arpa": POINTER,
    "9.0.0.10.in-addr.arpa": POINTER,
}


@pytest.fixture(scope="module")
def dns():
    with DnsThread(ZONE) as server:
        yield server


@pytest.fixture(scope="module")
def relay(dns, serve_module) -> RelayProcess:
    """As the page says, after a reload. Before it all are taken, and only null MX is asked for."""
    own = {"listen": "127.0.0.1:0", "trusted_networks": [], "proxy_networks": ["127.0.0.1/32"]}
    config = {
        "dns": {"timeout": "2s"},
        "smtp": [own],
        "mailboxes": {"domains": ["example.test", "example.org"]},
    }
    bob = account("bob2") | {"address": "bob@example.org"}
    relay = serve_module(dns=dns.address, config=config, accounts=[bob])
    assert [one[:3] for one in say(relay, LISTED, "localhost", "a@nowhere.test")] == ["250", "250"]
    assert {kind for _, kind in dns.queries} == {"MX"}
    [kind, text] = BLOCK.findall(PAGE)[0]
    assert kind == "toml"
    relay.write_config(relay.config | {"smtp": [tomllib.loads(text)["smtp"][0] | own]})
    done = relay.cli("reload")
    assert done.returncode == 0, done.stderr
    return relay


def say(relay: RelayProcess, ip: str, helo: str, sender: str, *to: str) -> list[str]:
    """Return the reply to MAIL, then to RCPT for each address, of the client that a proxy names."""
    to = to or ("bob@example.test",)
    with smtplib.SMTP(timeout=WAIT_S) as client:
        family = "TCP6" if ":" in ip else "TCP4"
        there = "::1" if ":" in ip else "192.0.2.1"
        client.sock = client._get_socket(*relay.smtp_address(), WAIT_S)
        client.sock.sendall(f"PROXY {family} {ip} {there} 4444 25\r\n".encode())
        client.getreply()
        client.ehlo(helo)
        replies = [client.mail(sender), *(client.rcpt(address) for address in to)]
        return [f"{code} {text.decode()}" for code, text in replies]


GOOD, BOB, HELO = "ann@good.test", "bob@example.test", "mail.good.test"
BY_ZEN, BY_COP = "554 5.7.1 {} is listed by zen.spamhaus.org (", "554 5.7.1 Listed at SpamCop: "


@each_row(
    "ip, helo, sender, reply",
    [
        (FINE, HELO, GOOD, "250 "),
        (LISTED, HELO, GOOD, BY_ZEN.format(LISTED)),
        (LISTED_6, HELO, GOOD, BY_ZEN.format(LISTED_6)),
        (LISTED, "localhost", "ann@broken.test", BY_ZEN.format(LISTED)),  # what is permanent first
        (COUNTED_BY_ONE, HELO, GOOD, BY_COP),
        (PRIVATE, HELO, GOOD, "250 "),
        (NAMELESS, HELO, GOOD, f"450 4.7.25 {NAMELESS} has no name"),
        (FINE, "localhost", GOOD, "550 5.5.4 EHLO localhost: "),
        (FINE, "192.0.2.1", GOOD, "550 5.5.4 EHLO 192.0.2.1: "),
        (FINE, "nowhere.test", GOOD, "550 5.7.1 EHLO nowhere.test: this host has no A or AAAA"),
        (FINE, "Six.Test", GOOD, "250 "),
        (FINE, "[192.0.2.1]", GOOD, "250 "),
        (FINE, "[IPv6:2001:db8::1]", GOOD, "250 "),
        (FINE, "broken.test", GOOD, "250 "),
        (FINE, HELO, "ann@nowhere.test", "550 5.1.8 The sender domain nowhere.test has no MX"),
        (FINE, HELO, "ann@text.test", "550 5.1.8 The sender domain text.test has no MX"),
        (FINE, HELO, "ann@broken.test", "450 4.1.8 The DNS does not answer for"),
        (FINE, HELO, "ann@null.test", "503 "),  # MAIL got 550 5.7.27
        (FINE, HELO, "ann@plain.test", "250 "),
        (FINE, HELO, "ann@six.test", "250 "),
        (FINE, HELO, "ann@[192.0.2.1]", "250 "),
        (FINE, HELO, "alice@example.test", "250 "),
        (FINE, HELO, "", "250 "),
    ],
)
def test_a_stranger_is_refused_at_rcpt_as_the_page_says(relay, ip, helo, sender, reply) -> None:
    assert say(relay, ip, helo, sender)[1][: len(reply)] == reply


def test_own_domains_and_private_addresses_are_not_asked_for(relay, dns) -> None:
    assert say(relay, PRIVATE, HELO, "alice@example.test")[1][:3] == "250"
    assert not dns.asked("example.test", "MX")
    assert not dns.asked(f"9.0.0.10.{ZEN}", "A")
    assert dns.asked(f"2.0.0.127.{ZEN}", "A") == 1  # for the time of its TTL


def test_mail_to_a_postmaster_is_never_refused(relay) -> None:
    to = ("postmaster", "Postmaster@example.test", "postmaster@example.org", BOB, BOB)
    replies = say(relay, LISTED, "localhost", "ann@nowhere.test", *to)
    assert [reply[:3] for reply in replies] == ["250", "250", "250", "250", "554", "554"]


@each_row(
    "ip, sender, reason, text",
    [
        (LISTED, "listed@good.test", "client", "is listed by zen.spamhaus.org"),
        (FINE, "nobody@nowhere.test", "sender", "has no MX, A or AAAA record"),
    ],
)
def test_a_refusal_is_in_log_trace_records_and_metric(relay, ip, sender, reason, text) -> None:
    before = relay.metric("relay_smtp_refusals_total", reason=reason)
    say(relay, ip, HELO, sender)
    path = f"/relay/v1/refused?address={sender}"
    [record] = until("a record", lambda: relay.graph("GET", path, token=OPERATOR).json()["refused"])
    assert (record["reason"], record["client"], record["helo"]) == (reason, ip, HELO)
    assert (record["command"], record["recipients"]) == ("RCPT", [BOB])
    shown = f"{sender} -> {BOB} ("
    for key in (ip, sender):
        assert any(
            shown in line and text in line for line in relay.cli("trace", key).stdout.splitlines()
        )
    until(  # refusals of an earlier test may be counted late
        "the count", lambda: relay.metric("relay_smtp_refusals_total", reason=reason) > before
    )
    assert any(f'"reason":"{reason}"' in line for line in relay.log.splitlines() if sender in line)


def test_the_commands_of_the_page_print_what_it_says(relay) -> None:
    commands = [found for _, text in BLOCK.findall(PAGE) for found in COMMAND.findall(text)]
    assert len(commands) == 2
    say(relay, "203.0.113.7", HELO, "app@nosuchdomain.example", "bob@example.org")
    for words, expected in commands:
        assert matches(expected, relay.cli(*words.split()).stdout), words


def test_explain_says_it_without_a_relay_too(relay) -> None:
    """It does not know the name in EHLO."""
    for _ in range(2):
        for ip, sender, status in ((FINE, GOOD, 0), (LISTED, GOOD, 65), (NAMELESS, GOOD, 65)):
            done = relay.cli("explain", BOB, "--ip", ip, "--from", sender)
            assert done.returncode == status, done
        assert relay.cli("explain", "postmaster@example.test", "--ip", LISTED).returncode == 0
        assert relay.cli("explain", BOB, "--from", "ann@nowhere.test").returncode == 0  # trusted
        relay.stop()
