"""Which TLS the hosts of a next hop get."""

from relay.base.message.tls_policy import TlsDecision, TlsPolicy
from relay.transport.routing.mx_hosts import Host, Hosts, NullMx
from relay.transport.routing.routes import Credentials, HopOptions
from relay.transport.routing.usable_hosts import with_tls
from tests.support.tables import each_row


@each_row(
    "name, login, level",
    [
        ("mail.test", True, "required"),
        ("mail.test", False, "opportunistic"),
        ("192.0.2.1", True, "required"),
        ("localhost", True, "opportunistic"),
        ("127.0.0.11", True, "opportunistic"),
        ("::1", True, "opportunistic"),
    ],
)
def test_a_login_for_another_machine_requires_tls_whatever_the_dns_says(name, login, level) -> None:
    """A forged answer could give any name a loopback address."""
    via = HopOptions(TlsPolicy("opportunistic"), Credentials("u", "secret") if login else None)
    found = with_tls(Hosts((Host(name, 0, ("127.0.0.1",), 25),)), via, "route a")
    assert isinstance(found, Hosts)
    assert found.hosts[0].tls == TlsDecision(TlsPolicy(level), "route a")


def test_what_has_no_hosts_has_no_tls() -> None:
    assert with_tls(NullMx("a.test"), HopOptions(TlsPolicy("verify")), "route a") == NullMx(
        "a.test"
    )
