"""Whose name a relay vouches for: strangers' mail that leaves by a login, in a name of that login."""

import pytest

from tests.integration.test_reload import hang_up
from tests.integration.test_sender_checks import OTHER, SPF, give, listener, mail_from
from tests.support.dkim import DkimKeys
from tests.support.dns_server import DnsThread
from tests.support.relay_config import account
from tests.support.relay_process import RelayProcess
from tests.support.tables import each_row

ZONE = {
    name: {"TXT": ['"v=spf1 ip4:127.0.0.2 -all"']}
    for name in ("contoso.test", "signed.test", "evil.test", "example.test")
}
RULES = """
[[rule]]
name = "redirected"
when = { recipient = "erin@example.test" }
then = [ { redirect = "x@cloud.test" } ]

[[rule]]
name = "chosen"
when = { recipient = "x@chosen.test" }
then = [ { next_hop = "route:cloud" } ]

[[rule]]
name = "resent"
when = { recipient = "x@resent.test" }
then = [ { set_sender = "it@example.test" } ]
"""
BORROWED = "550 5.7.1 From or Sender has a domain of this host, or a name of its login at another"
DESTINATIONS = ("cloud", "password", "signed", "own", "each", "chosen", "resent", "open")
PRINTER, EVIL = "printer@contoso.test", "x@evil.test"


@pytest.fixture(scope="module")
def relay(serve_module, tmp_path_factory) -> RelayProcess:
    """The first listener records, the second checks nothing. No host answers."""
    folder = tmp_path_factory.mktemp("keys")
    keys = DkimKeys.made(folder, {("signed.test", "s"): "ed25519"})
    (folder / "password").write_text("a password")
    hop, cloud = "smtp://127.0.0.1:1", "graph://127.0.0.1:1"

    def password(user: str) -> dict[str, str]:
        return {"user": user, "password_file": str(folder / "password")}

    printer = {"user": "Printer@contoso.test", "oauth": "m"}
    each = {"user": "sender", "oauth": "m"}
    ways = [
        ("cloud.test", cloud, printer, ""),
        ("password.test", hop, password("me@gmail.test"), ""),
        ("signed.test", hop, password("office@below.signed.test"), ""),
        ("own.test", hop, password("office@example.test"), ""),
        ("each.test", cloud, each, "*@fabrikam.test"),
        ("resent.test", cloud, printer, "*@example.test"),
        *((f"{name}.test", hop, None, "") for name in ("each", "chosen", "resent", "open")),
        ("elsewhere.test", cloud, printer, "*@partner.test"),
    ]
    routes = [
        {"name": f"{number}-{domain}" if number else "cloud", "domain": domain, "next_hop": to}
        | ({"auth": login} if login else {})
        | ({"sender": sender} if sender else {})
        for number, (domain, to, login, sender) in enumerate(ways)
    ]
    client = {"name": "m", "token_url": "http://127.0.0.1:1/token", "client_id": "r", "scope": "x"}
    config = {
        "smtp": [*listener("record")["smtp"], *listener("off")["smtp"]],
        "route": routes,
        "oauth": [client | {"client_secret": "a secret"}],
        "domain": [{"name": "own.test", "recipients": "any"}],
    }
    with DnsThread(ZONE) as dns:
        yield serve_module(
            dns=dns.address,
            config=keys.config | config,
            aliases={f"{name}@example.test": [f"x@{name}.test"] for name in DESTINATIONS},
            accounts=[account("erin"), account("frank", forward_to=["x@cloud.test"])],
            policies={"rules.toml": RULES},
        )


@each_row(
    "to, sender, author",
    [
        ("cloud@example.test", EVIL, PRINTER),
        ("cloud@example.test", EVIL, "P <PRINTER+any@Contoso.TEST>"),
        ("cloud@example.test", EVIL, f"{EVIL}\r\nSender: {PRINTER}"),
        ("cloud@example.test", EVIL, f"{EVIL}, {PRINTER}"),
        ("cloud@example.test", EVIL, "=?utf-8?q?printer=40contoso.test?= x"),
        ("cloud@example.test", EVIL, "'printer@contoso.test'"),
        ("cloud@example.test", EVIL, '"prin\\ter"@contoso.test x'),
        ("cloud@example.test", EVIL, ""),  # Graph would write its own
        ("cloud@example.test", EVIL, "ceo@partner.test"),  # of another route with this login
        ("cloud@example.test", EVIL, "ceo@fabrikam.test\r\nSender: x@partner.test"),
        ("password@example.test", "", "Me@Gmail.test"),
        ("signed@example.test", EVIL, "ceo@below.signed.test"),
        ("x@own.test", EVIL, "alice@example.test"),
        ("each@example.test", "ceo@fabrikam.test", "ceo@fabrikam.test"),
        ("each@example.test", "ceo@fabrikam.test", "cfo@fabrikam.test"),
        ("erin@example.test", EVIL, PRINTER),
        ("chosen@example.test", EVIL, PRINTER),
        ("resent@example.test", EVIL, PRINTER),
    ],
)
def test_a_stranger_gets_no_name_of_a_login(relay, to, sender, author) -> None:
    assert give(relay, sender, mail_from(author), SPF, to)[0].startswith(BORROWED)


@each_row(
    "to, ip, sender, author",
    [
        ("cloud@example.test", SPF, PRINTER, PRINTER),  # the tenant's own mail
        ("cloud@example.test", SPF, "x@contoso.test", f"x@contoso.test\r\nSender: {PRINTER}"),
        ("cloud@example.test", OTHER, EVIL, "ceo@contoso.test"),  # no name that the relay knows
        ("password@example.test", OTHER, EVIL, "you@gmail.test"),
        ("password@example.test", OTHER, EVIL, "Doe, John <some@gmail.test>"),
        ("signed@example.test", OTHER, EVIL, "office@gmail.test"),
        ("open@example.test", OTHER, EVIL, PRINTER),
        ("each@example.test", OTHER, EVIL, "ceo@fabrikam.test"),  # by the route without a login
        ("x@own.test", SPF, "alice@example.test", "alice@example.test"),
        ("cloud@example.test", "127.0.0.1", EVIL, PRINTER),
    ],
)
def test_other_mail_leaves(relay, to, ip, sender, author) -> None:
    assert give(relay, sender, mail_from(author), ip, to)[0].startswith("250 ")


def test_without_checks_nobody_is_the_owner_of_a_name(relay) -> None:
    for to in ("cloud@example.test", "x@own.test"):
        author = PRINTER if to.startswith("cloud") else "alice@example.test"
        given = give(relay, author, mail_from(author), SPF, to, listener_number=1)
        assert given[0].startswith(BORROWED)


def test_other_copies_stay_and_a_local_domain_is_refused_as_before(relay) -> None:
    reply, queue_id = give(relay, EVIL, mail_from(PRINTER), SPF, "frank@example.test")
    assert reply.startswith("250 ")
    assert "failed" in relay.states(queue_id).values()
    for to in ("open@example.test", "cloud@example.test"):
        passed = give(relay, "alice@example.test", mail_from("alice@example.test"), SPF, to)
        assert passed[0].startswith(BORROWED)


def test_the_operator_may_lend_names(relay) -> None:
    file = relay.folder / "relay.toml"
    before = file.read_text()
    file.write_text(before.replace("[mailboxes]\n", "[mailboxes]\nforward_own_from = true\n"))
    hang_up(relay, "reloaded")
    for author in (PRINTER, "alice@example.test"):
        given = give(relay, EVIL, mail_from(author), OTHER, "cloud@example.test")
        assert given[0].startswith("250 ")
    file.write_text(before)
    hang_up(relay, "reloaded")
