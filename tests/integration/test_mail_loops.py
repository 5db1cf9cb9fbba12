"""MX records that name this relay, by whatever address or behind whichever: it accepts the mail once."""

import socket
from collections.abc import Iterator

import pytest

from relay.base.sockets import has_ipv6
from tests.support.dns_server import DnsThread
from tests.support.ports import free_port
from tests.support.relay_process import RelayProcess
from tests.support.remotes import Remotes, received
from tests.support.tables import each_row

SPELLINGS = {
    "loopback.test": "127.0.0.1",
    "seven.test": "127.0.0.7",
    "six.test": "::1",
    "mapped.test": "::ffff:127.0.0.1",
    "nowhere.test": "0.0.0.0",
    "zero.test": "0.0.0.1",
    "nowhere-six.test": "::",
    "nowhere-mapped.test": "::ffff:0.0.0.0",
}


def own_address(remote: str) -> str:
    """The address of this machine towards another one, "" if it has none. Nothing is sent."""
    family = socket.AF_INET6 if ":" in remote else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((remote, 9))
        except OSError:
            return ""
        return probe.getsockname()[0]


@pytest.fixture(scope="module", params=["0.0.0.0", "[::]"])
def relay(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """A relay that listens at every address, at the port of the MX hosts, and trusts this machine."""
    if request.param == "[::]" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    addresses = SPELLINGS | {
        "own.test": own_address("192.0.2.1"),
        "own-six.test": own_address("2001:db8::1"),
    }
    port = free_port()
    networks = ["127.0.0.0/8", "::1/128"]
    networks += [each for name, each in addresses.items() if name.startswith("own") and each]
    with DnsThread() as dns:
        for domain, address in addresses.items():
            if address:
                dns.zone[domain] = {"AAAA" if ":" in address else "A": [address]}
        listeners = [
            {"listen": listen, "trusted_networks": networks}
            for listen in ("127.0.0.1:0", f"{request.param}:{port}")
        ]
        with RelayProcess(dns=dns.address, mx_port=port, config={"smtp": listeners}) as relay:
            yield relay


@each_row("domain", [*SPELLINGS, "own.test", "own-six.test"])
def test_a_relay_at_every_address_does_not_send_to_itself(relay: RelayProcess, domain: str) -> None:
    if domain.startswith("own") and not own_address(
        "2001:db8::1" if "six" in domain else "192.0.2.1"
    ):
        return  # the machine has loopback only
    before = relay.metric("relay_messages_accepted_total", via="smtp")
    journey = relay.until_final(relay.submit("alice@example.test", [f"v@{domain}"]))
    [recipient] = journey["recipients"]
    expected = "5.4.4" if "nowhere" in domain or domain == "zero.test" else "5.4.6"
    assert (recipient["state"], recipient["status"]) == ("failed", expected)
    assert relay.metric("relay_messages_accepted_total", via="smtp") == before + 1
    assert relay.cli("explain", f"v@{domain}").stdout.startswith(f"v@{domain} is invalid: ")


def test_a_host_that_bears_the_name_of_this_relay_is_a_loop_unless_a_route_names_it() -> None:
    """The other way round, no domain of others has an effect on mail for the route."""
    with Remotes() as remotes:
        other = remotes.start("other.test", name="Relay.Example.Test")
        routes = [{"domain": "routed.test", "next_hop": f"smtp://127.0.0.11:{other.port}"}]
        with remotes.relay(config={"route": routes}) as relay:
            for greeting in ("", "220 mx.other.test ESMTP"):  # then it is in the reply to EHLO
                other.replies = {"CONNECT": greeting}
                journey = relay.until_final(relay.submit("alice@example.test", ["v@other.test"]))
                [recipient] = journey["recipients"]
                assert (recipient["state"], recipient["status"]) == ("failed", "5.4.6")
            assert not [one for one in other.commands if one.startswith("MAIL")]
            relay.until_final(relay.submit("alice@example.test", ["v@routed.test"]))
            received(other, "v@routed.test")
            assert relay.metric("relay_messages_accepted_total", via="smtp") == 3
