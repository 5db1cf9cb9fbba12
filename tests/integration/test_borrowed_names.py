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
    for name in ("contoso.test", "below.contoso.test", "signed.test", "evil.test", "example.test")
} | {
    **{f"_dmarc.{one}.test": {"TXT": ['"v=DMARC1; p=reject"']} for one in ("signed", "evil")},
    "news.below.signed.test": {"TXT": ['"v=spf1 ip4:127.0.0.2 -all"']},
    "broken.test": "SERVFAIL",
    "busy.test": "REFUSED",
    "s._domainkey.slow.test": "TIMEOUT",
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
OF_TENANT = """
[[rule]]
name = "passes on"
when = { recipient = "amy@acme.test" }
then = [ { redirect = "x@cloud.test" } ]

[[rule]]
name = "writes"
when = { recipient = "bea@acme.test" }
then = [ { set_header = { name = "From", value = "ceo@contoso.test" } }, { redirect = "x@cloud.test" } ]
"""
BORROWED = "550 5.7.1 From or Sender has a domain of this host, or a name of its login at another"
UNPROVEN = "451 4.7.1 From or Sender has a name of the login"
UNKNOWN = ("broken", "busy", "slow")
DESTINATIONS = ("cloud", "password", "signed", "own", "each", "chosen", "resent", "open", *UNKNOWN)
PRINTER, EVIL = "printer@contoso.test", "x@evil.test"
SIGNED = "DKIM-Signature: v=1; a=rsa-sha256; d=slow.test; s=s; b=YQ==; bh=YQ==; h=from"
# Programs may read the printer's address in these fields, or another one.
UNCLEAR = (
    f"{EVIL}\r\nFrom: {EVIL}",
    f"{EVIL}\r\nSender: {EVIL}\r\nSender: {EVIL}",
    f"{PRINTER}\r\n\t<{EVIL}>",
    f"printer@(c)contoso.test\r\n\t<{EVIL}>",
    f"printer@contoso\r\n . test\r\n\t<{EVIL}>",
    "<printer@con toso.test>",
    "G: printer@con\ttoso.test;",
    "P <printer@con\r\n toso.test",
    "<ceo@evil.test contoso.test>",
    f"{EVIL}\r\nSender: alice@exam ple.test (A)",
    f"{EVIL}\r\nSender\r\n : {EVIL}",
    '"printer@contoso.test x"@evil.test',
    "(printer@contoso.test)",
    f"{EVIL}, <printer@contoso(c).test",
    f"=?utf-8?q?printer=40?=(c)contoso.test, {EVIL}",
    "<=?us-ascii?q?printer?=@evil.test>",
    "P <=?us-ascii?q?printer?=@contoso(c).test>",
    "printer@contoso.test .evil.test",
    "=?utf-8?q?printer=40contoso.test?= x",
    "'printer@contoso.test'",
    "printer@",
    "a@evil.test, " * 400 + EVIL,
    f"{EVIL}\r\nSender: printer@(c)contoso.test\r\n\t<{EVIL}>",
    "alice@(c)example.test\r\n\t<x@evil.test>",
)
PLAIN = (
    EVIL,
    f"<{EVIL}>",
    f"Joe Doe <{EVIL}>",
    f'"Doe, Joe" <{EVIL}>',
    f"{EVIL} (Joe Doe)",
    f"Doe, Joe <{EVIL}>",
    f"=?utf-8?q?printer=40contoso.test?= <{EVIL}>",
    f'"printer@contoso.test by way of" <{EVIL}>',
    f"=?utf-8?b?SsO8cmdlbg==?= =?utf-8?q?_M=C3=BCller?= <{EVIL}>",
    "root@evil.test (Cron Daemon)",
    "Mail Delivery System <MAILER-DAEMON@evil.test>",
    "notifications+a=b.c@github.evil.test",
    "O'Neil <o'neil@evil.test>",
    "J\u00f6rg <j\u00f6rg@b\u00fccher.test>",
    '"joe..doe"@evil.test',
    f"{EVIL}, y@other.test",
    "root@[192.168.1.20]",
    "<x@evil.test.>",
    f"'{EVIL}' <{EVIL}>",
    f"Joe <{EVIL}> <{EVIL}>",
    f"Sales @ Evil <{EVIL}>",
    f"Shop <{EVIL}>\r\nSender: bounces@mailer.test",
    f"{EVIL}\r\nReply-To: {PRINTER}\r\nResent-From: {PRINTER}",
)


@pytest.fixture(scope="module")
def relay(serve_module, tmp_path_factory) -> RelayProcess:
    """The first listener records, the second checks nothing, the third enforces. No host answers."""
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
        *((f"{name}.test", hop, password(f"office@{name}.test"), "") for name in UNKNOWN),
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
        "smtp": [listener(mode)["smtp"][0] for mode in ("record", "off", "enforce")],
        "route": routes,
        "oauth": [client | {"client_secret": "a secret"}],
        "domain": [{"name": "own.test", "recipients": "any"}],
        "tenant": [{"name": "acme", "domains": ["acme.test"], "may": ["redirect"]}],
        "mailboxes": {"domains": ["example.test", "acme.test"]},
    }
    people = [account("erin"), account("frank", forward_to=["x@cloud.test"])]
    with DnsThread(ZONE) as dns:
        relay = serve_module(
            dns=dns.address,
            config=keys.config | config,
            aliases={f"{name}@example.test": [f"x@{name}.test"] for name in DESTINATIONS},
            accounts=[*people, {"address": "amy@acme.test"}, {"address": "bea@acme.test"}],
            policies={"rules.toml": RULES},
            start=False,
        )
        rules = relay.folder / "policies" / "acme"
        rules.mkdir(0o700)
        (rules / "rules.toml").write_text(OF_TENANT)
        relay.start()
        yield relay


@each_row(
    "to, sender, author",
    [
        ("cloud@example.test", EVIL, PRINTER),
        ("cloud@example.test", EVIL, "P <PRINTER+any@Contoso.TEST.>"),
        ("cloud@example.test", EVIL, f"{EVIL}\r\nSender: {PRINTER}"),
        ("cloud@example.test", EVIL, '"prin\\ter"@contoso.test x'),
        ("cloud@example.test", EVIL, f"{EVIL}, {PRINTER}"),
        ("cloud@example.test", EVIL, "<printer@contoso.test"),
        ("cloud@example.test", EVIL, "ceo@contoso.test"),
        ("cloud@example.test", EVIL, "ceo@mail.contoso.test"),
        ("cloud@example.test", EVIL, f"{EVIL}\r\nSender: ceo@mail.contoso.test"),
        ("cloud@example.test", "x@below.contoso.test", "ceo@contoso.test"),
        ("password@example.test", EVIL, "you@gmail.test"),
        ("password@example.test", EVIL, "Doe, John <some@gmail.test>"),
        *(("cloud@example.test", EVIL, author) for author in UNCLEAR),
        *(("open@example.test", EVIL, author) for author in UNCLEAR),  # it may be of a domain here
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
        ("amy@acme.test", EVIL, PRINTER),
        ("bea@acme.test", PRINTER, PRINTER),
    ],
)
def test_a_stranger_gets_no_name_of_a_login(relay, to, sender, author) -> None:
    assert give(relay, sender, mail_from(author), SPF, to)[0].startswith(BORROWED)


@each_row(
    "to, ip, sender, author",
    [
        ("cloud@example.test", SPF, PRINTER, PRINTER),  # the tenant's own mail
        ("cloud@example.test", SPF, "x@contoso.test", f"x@contoso.test\r\nSender: {PRINTER}"),
        ("cloud@example.test", SPF, "x@contoso.test", f"{EVIL}\r\nSender: ceo@mail.contoso.test"),
        ("cloud@example.test", SPF, PRINTER, "ceo@mail.contoso.test"),
        ("amy@acme.test", SPF, PRINTER, PRINTER),
        ("signed@example.test", SPF, "x@news.below.signed.test", "ceo@below.signed.test"),
        *(("cloud@example.test", OTHER, EVIL, author) for author in PLAIN),
        ("signed@example.test", OTHER, EVIL, "office@gmail.test"),
        ("open@example.test", OTHER, EVIL, PRINTER),
        ("each@example.test", OTHER, EVIL, "ceo@fabrikam.test"),  # by the route without a login
        ("x@own.test", SPF, "alice@example.test", "alice@example.test"),
        ("cloud@example.test", "127.0.0.1", EVIL, PRINTER),
    ],
)
def test_other_mail_leaves(relay, to, ip, sender, author) -> None:
    assert give(relay, sender, mail_from(author), ip, to)[0].startswith("250 ")


def test_what_cannot_be_checked_now_waits_with_all_its_recipients(relay, tmp_path) -> None:
    before = relay.metric("relay_smtp_refusals_total", reason="checks")
    for name in UNKNOWN:
        author = (
            f"{EVIL}\r\nSender: x@slow.test\r\n{SIGNED}" if name == "slow" else f"x@{name}.test"
        )
        with relay.smtp(source=SPF) as session:
            session.ehlo()
            session.mail(EVIL if name == "slow" else f"x@{name}.test")
            for to in (f"{name}@example.test", "erin@example.test", "open@example.test"):
                assert session.rcpt(to)[0] == 250
            code, text = session.data(mail_from(author, name))
        assert f"{code} {text.decode()}".startswith(UNPROVEN), name
    assert relay.metric("relay_smtp_refusals_total", reason="checks") == before + len(UNKNOWN)
    assert not relay.subjects("erin")
    file = tmp_path / "m.eml"
    file.write_bytes(mail_from("x@broken.test"))
    words = ("--from", "x@broken.test", "--ip", SPF, "--message", str(file))
    assert UNPROVEN in relay.cli("explain", "broken@example.test", *words).stdout


def test_mail_without_an_author_leaves_with_the_null_sender_only(relay) -> None:
    for content in (b"Subject: s\r\n\r\nHello.\r\n", mail_from("Printer"), mail_from("<>")):
        assert give(relay, "", content, OTHER, "password@example.test")[0].startswith("250 ")
        assert give(relay, EVIL, content, OTHER, "password@example.test")[0].startswith(BORROWED)
        assert give(relay, EVIL, content, OTHER, "open@example.test")[0].startswith("250 ")


def test_without_checks_nobody_is_the_owner_of_a_name(relay) -> None:
    """A name in the login's domain that is not known is nobody's."""
    ceo = mail_from("ceo@contoso.test")
    for number, reply in enumerate((BORROWED, "250 ", BORROWED)):
        given = give(relay, EVIL, ceo, OTHER, "cloud@example.test", listener_number=number)
        assert given[0].startswith(reply), number
    for author in UNCLEAR:
        given = give(relay, EVIL, mail_from(author), OTHER, "cloud@example.test", listener_number=1)
        assert given[0].startswith(BORROWED), author
    of_office = [("x@own.test", "alice@example.test"), ("x@own.test", "x@news.example.test")]
    for to, author in (("cloud@example.test", PRINTER), *of_office):
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
