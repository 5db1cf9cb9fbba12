"""Mail for local domains, by next hop and client: who may send, where it goes, what explain says.

Real sockets: each next hop is a host of its own. Strangers come from 127.0.0.2, which nobody trusts.
"""

import smtplib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.relay_config import DOMAIN, OPERATOR, account
from tests.support.relay_process import RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes
from tests.support.tls import Certificate, certificate

GATE = True

__all__ = ["certificate"]

Hosts = tuple[Remotes, dict[str, RemoteMx]]
SENDER = "alice@example.test"
OUTSIDE = "127.0.0.2"
# next hop -> state of an account's mail; "none" is a domain without a route
STATES = {
    "lmtp": "delivered",
    "smtp": "relayed",
    "smtps": "relayed",
    "mx": "relayed",
    "local": "delivered",
    "none": "delivered",
    "hold": "held",
    "capture": "captured",
    "reject": "",
}
HOSTS = ("lmtp", "smtp", "smtps", "mx")
CLIENTS = ("stranger", "trusted", "logged in")
DENIED = "550 5.7.1 Relaying denied: authenticate, or use your own mail server"
# of mail for a domain that is not local but has such a route; others are relayed
FOREIGN = {"local": "550 5.1.1 ", "reject": "550 5.7.1 <"}
EXPLAINED = {"delivered": "local", "relayed": "remote", "held": "held", "captured": "captured"}
RULES = "".join(
    f'[[rule]]\nname = "{one}"\nwhen = {{ direction = "{one}" }}\n'
    f'then = [{{ set_header = {{ name = "X-Direction", value = "{one}" }} }}]\n'
    for one in ("inbound", "outbound", "internal")
)
ALIASES = {
    "office@smtp.test": ["x@away.test"],
    "both@none.test": ["nobody@none.test", "ann@lmtp.test"],
}


@pytest.fixture(scope="module")
def hosts(certificate: Certificate) -> Iterator[Hosts]:
    with Remotes() as remotes:
        yield (
            remotes,
            {
                "mx": remotes.start("mx.test"),
                "smtp": remotes.start("smtp.host"),
                "lmtp": remotes.start("lmtp.host", lmtp=True),
                "smtps": remotes.start(
                    "smtps.host", tls=certificate.server_context(), implicit_tls=True
                ),
            },
        )


@pytest.fixture(scope="module")
def relay(hosts: Hosts) -> Iterator[RelayProcess]:
    """A relay with two domains for each next hop, one of which is local; all other mail has a "*" route."""
    with made(hosts, {}) as running:
        yield running


def made(hosts: Hosts, mailboxes: dict[str, Any]) -> RelayProcess:
    remotes, servers = hosts
    remotes.dns.zone["mx.foreign"] = remotes.dns.zone["mx.test"]
    routes = []
    for hop in STATES:
        kind = {"reject": "reject:closed"}.get(hop, hop)
        if hop in ("lmtp", "smtp", "smtps"):
            kind = f"{hop}://{servers[hop].host}:{servers[hop].port}"
        routes += [
            {"domain": f"{hop}.{top}", "next_hop": kind}
            | ({"tls": "required"} if hop == "smtps" else {})
            for top in ("test", "foreign")
            if hop != "none"
        ]
    routes.append({"domain": "*", "next_hop": f"smtp://{servers['smtp'].host}:{remotes.port}"})
    people = [
        account(name) | {"address": f"{name}@{hop}.test", "token": f"plain:{name}{hop}"}
        for hop in STATES
        for name in ("ann", "kim")
    ]
    people[1] |= {"forward_to": ["x@away.test"]}
    boxes = {
        "domains": [DOMAIN, "xn--bcher-kva.test", *(f"{hop}.test" for hop in STATES)],
        **mailboxes,
    }
    config = {"route": routes, "mailboxes": boxes}
    policies = {"10.toml": RULES}
    return RelayProcess(remotes, config=config, policies=policies, accounts=people, aliases=ALIASES)


def session_of(relay: RelayProcess, client: str) -> smtplib.SMTP:
    session = relay.smtp(source="127.0.0.1" if client == "trusted" else OUTSIDE)
    session.ehlo()
    if client == "logged in":
        session.login(SENDER, "alice")
    return session


def send(relay: RelayProcess, client: str, to: str, *, sender: str = SENDER) -> str:
    """Send by one client; return the last reply."""
    with session_of(relay, client) as session:
        session.mail(sender)
        code, text = session.docmd(f"RCPT TO:<{to}>")
        if code == 250:
            code, text = session.data(f"From: {sender}\r\nSubject: to {to}\r\n\r\nhello\r\n")
        return f"{code} {text.decode()}"


def explain(relay: RelayProcess, client: str, to: str, *, sender: str = SENDER) -> dict[str, Any]:
    ip = {"stranger": OUTSIDE, "trusted": "127.0.0.1"}.get(client)
    query = urlencode({"address": to, "from": sender} | ({"ip": ip} if ip else {}))
    answer = relay.graph("GET", f"/relay/v1/explain?{query}", token=OPERATOR)
    assert answer.status == 200, answer.body
    return dict(answer.json())


def directions(document: dict[str, Any]) -> list[str]:
    return [one["rule"] for one in document["rules"] if one["matched"]]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("hop", STATES)
def test_a_local_domain_takes_mail_for_its_accounts_from_anybody(
    relay: RelayProcess, hosts: Hosts, hop: str, client: str
) -> None:
    to = f"ann@{hop}.test"
    before = len(hosts[1][hop].received(to)) if hop in HOSTS else 0
    reply, explained = send(relay, client, to), explain(relay, client, to)
    if hop == "reject":
        assert reply == f"550 5.7.1 <{to}>: closed"
        assert (explained["state"], explained["reply"]) == ("rejected", reply)
        return
    assert reply.startswith("250 "), reply
    key = reply.rpartition(" ")[2]
    state = STATES[hop]
    found = relay.until_state(key, "final" if state in ("delivered", "relayed") else state)
    assert [(one["address"], one["state"]) for one in found["recipients"]] == [(to, state)]
    (step,) = (one for one in found["steps"] if one["step"] == 5)
    direction = "inbound" if client == "stranger" else "internal"
    assert [one["rule"] for one in step["detail"]["rules"]] == [direction]
    assert directions(explained) == [direction]
    assert explained["state"] == ("remote" if hop in HOSTS else EXPLAINED[state])
    if hop in HOSTS:
        assert explained["route"]["next_hop"] == str(step["detail"]["next_hops"]).split("'")[1]
        assert len(hosts[1][hop].received(to)) == before + 1


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("hop", STATES)
def test_an_unknown_user_of_a_local_domain_is_refused(
    relay: RelayProcess, hop: str, client: str
) -> None:
    to = f"nobody@{hop}.test"
    reply, explained = send(relay, client, to), explain(relay, client, to)
    expected = "550 5.7.1" if hop == "reject" else "550 5.1.1"
    assert reply.startswith(f"{expected} <{to}>: ")
    assert explained["state"] in ("invalid", "rejected")
    assert explained["reply"] == reply


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("hop", [one for one in STATES if one != "none"])
def test_a_route_makes_no_domain_local(relay: RelayProcess, hop: str, client: str) -> None:
    to = f"ann@{hop}.foreign"
    reply, explained = send(relay, client, to), explain(relay, client, to)
    if hop in FOREIGN or client == "stranger":
        assert reply.startswith(FOREIGN.get(hop, DENIED))
        assert explained["state"] in ("invalid", "rejected")
        assert explained["reply"] == reply
    else:
        assert reply.startswith("250 ")
        assert directions(explained) == ["outbound"]
        assert explained["state"] == ("remote" if hop in HOSTS else EXPLAINED[STATES[hop]])


@pytest.mark.parametrize(
    ("to", "reply"),
    [
        ("x@away.test", DENIED),  # by the route for "*"
        ("@smtp.test:x@away.test", DENIED),
        ("@smtp.test,@mx.test:x@mx.foreign", DENIED),
        ("x@[127.0.0.1]", DENIED),
        ("x%away.test@smtp.test", "550 5.1.1 "),
        ("ann%away.test@smtp.test", "550 5.1.1 "),
        ("away.test!ann@smtp.test", "550 5.1.1 "),
        ('"x@away.test"@smtp.test', "550 5.1.1 "),
        ('"ann+@away.test"@smtp.test', "550 5.1.1 "),
        ("x@away.test@smtp.test", "5"),
        ("ann+x%away.test@smtp.test", "550 5.7.1 "),
        ("ann+x%away.test@mx.test", "550 5.7.1 "),
        ("ann+away.test!x@lmtp.test", "550 5.7.1 "),
        ("nobody+office@smtp.test", "550 5.1.1 "),
    ],
)
def test_no_stranger_relays_through_a_local_domain(
    relay: RelayProcess, to: str, reply: str
) -> None:
    found = send(relay, "stranger", to)
    assert found.startswith(reply), found
    if to.rpartition("@")[0].strip('"') == to.rpartition("@")[0].replace("@", ""):
        assert explain(relay, "stranger", to)["reply"] == found


def test_a_copy_that_an_account_keeps_is_not_routed_by_its_sender(
    relay: RelayProcess, hosts: Hosts
) -> None:
    """kim@lmtp.test forwards outside as well: the address that a stranger named does not go on."""
    named = "kim+x%away.test@lmtp.test"
    key = send(relay, "stranger", named, sender="eve@away.test").rpartition(" ")[2]
    found = relay.until_final(key)
    states = {one["address"]: one["state"] for one in found["recipients"]}
    assert states["x@away.test"] == "relayed"
    assert not hosts[1]["lmtp"].received(named)


@pytest.mark.parametrize(
    ("to", "sent_to", "state"),
    [
        ("nobody@lmtp.test", "ann@lmtp.test", "delivered"),
        ("nobody@none.test", "ann@lmtp.test", "delivered"),
        ("postmaster@none.test", "kim@smtp.test", "relayed"),
        ("Postmaster@lmtp.test", "kim@smtp.test", "relayed"),
        ("postmaster@reject.test", "kim@smtp.test", "relayed"),
        ("postmaster", "kim@smtp.test", "relayed"),
        ("MAILER-DAEMON@relay.example.test", "kim@smtp.test", "relayed"),
        ("both@none.test", "ann@lmtp.test", "delivered"),
    ],
)
@pytest.mark.parametrize("client", CLIENTS)
def test_catch_all_and_postmaster_are_mail_to_their_accounts(
    taken: RelayProcess, hosts: Hosts, to: str, sent_to: str, state: str, client: str
) -> None:
    server = hosts[1][sent_to.partition("@")[2].partition(".")[0]]
    before = len(server.received(sent_to))
    explained = explain(taken, client, to) if "@" in to else None
    reply = send(taken, client, to)
    assert reply.startswith("250 "), reply
    found = taken.until_final(reply.rpartition(" ")[2])
    states = {one["address"]: one["state"] for one in found["recipients"]}
    assert states == {to: "redirected", sent_to: state}
    mail = server.received(sent_to)
    assert len(mail) == before + 1
    field = mail[-1].content.partition(b"\r\n")[0].decode()
    named = "nobody@none.test" if to.startswith("both") else to
    assert field.lower() == f"delivered-to: {named}".lower()
    if explained is not None:
        assert explained["state"] == "remote"
        assert explained["aliases"][-1] == sent_to
        assert directions(explained) == ["inbound" if client == "stranger" else "internal"]


@pytest.fixture(scope="module")
def taken(hosts: Hosts) -> Iterator[RelayProcess]:
    """The same relay with a catch_all and a postmaster whose domains have a route."""
    with made(hosts, {"catch_all": "ann@lmtp.test", "postmaster": "kim@smtp.test"}) as running:
        yield running


def test_answers_to_reports_cause_none_where_the_postmaster_has_a_route(
    taken: RelayProcess,
) -> None:
    to = "MAILER-DAEMON@relay.example.test"
    found = taken.until_final(send(taken, "stranger", to, sender="").rpartition(" ")[2])
    (recipient,) = [one for one in found["recipients"] if one["state"] != "redirected"]
    assert (recipient["address"], recipient["state"]) == ("kim@smtp.test", "discarded")


def test_reports_to_the_name_of_this_host_end_with_the_postmaster(
    taken: RelayProcess, hosts: Hosts
) -> None:
    """Although a route for "*" takes mail of the host's name; strangers may not send there."""
    server, to = hosts[1]["smtp"], "games@relay.example.test"
    server.rcpt = {"away@away.test": "550 5.1.1 no"}
    before = len(server.received("kim@smtp.test"))
    try:
        taken.submit(to, ["away@away.test"], b"Subject: x\r\n\r\nhello\r\n")
        until("the report", lambda: len(server.received("kim@smtp.test")) > before)
    finally:
        server.rcpt = {}
    assert not server.received(to)
    explained = explain(taken, "trusted", to, sender="")
    assert (explained["state"], explained["aliases"]) == ("remote", ["kim@smtp.test"])
    for sender in ("", "x@away.test"):
        assert send(taken, "stranger", to, sender=sender).startswith("550 5.7.1 Relaying denied")


def test_a_dead_letter_goes_to_the_postmasters_address_and_here_if_that_fails(hosts: Hosts) -> None:
    """The copy that a rule adds fails; the second letter about it fails at the postmaster's host."""
    server = hosts[1]["smtp"]
    replies = ["250 2.1.5 Ok", "550 5.1.1 gone"]
    server.rcpt = {"copy@away.test": "550 5.1.1 no", "kim@smtp.test": replies}
    before = len(server.received("kim@smtp.test"))
    relay = made(hosts, {"postmaster": "kim@smtp.test"})
    copy = '[[rule]]\nname = "c"\nwhen = { subject = "copied*" }\nthen = [{ bcc = ["copy@away.test"] }]\n'
    (relay.folder / "policies" / "20.toml").write_text(copy)
    maildir = relay.folder / "mail" / "smtp.test" / "kim" / "new"
    with relay:
        relay.submit(SENDER, ["ann@none.test"], b"Subject: copied 1\r\n\r\nhello\r\n")
        until("it is there", lambda: len(server.received("kim@smtp.test")) > before)
        assert not list(maildir.glob("*"))
        relay.submit(SENDER, ["ann@none.test"], b"Subject: copied 2\r\n\r\nhello\r\n")
        (kept,) = until("it is here", lambda: list(maildir.glob("*")))
        assert b"Subject: copied 2" in kept.read_bytes()
        until("nothing is left", lambda: not relay.queue())


SINK = """
[[rule]]
name = "sink"
when = { recipient = "noreply@example.test" }
then = [ { discard = true } ]

[[rule]]
name = "moved"
when = { recipient = "old@away.test" }
then = [ { redirect = "new@away.test" } ]
"""


def test_a_route_or_an_alias_makes_an_address_exist(serve) -> None:
    """As docs/coming-from-postfix.md says of transport_maps, `discard:` and recipient_canonical_maps."""
    routes = [
        {"recipient": "vip@example.test", "next_hop": "capture"},
        {"domain": "*", "next_hop": "capture"},
    ]
    aliases = {"noreply@example.test": ["bob@example.test"], "ann@example.test": ["ann@away.test"]}
    relay = serve(config={"route": routes}, aliases=aliases, policies={"10.toml": SINK})

    def ends(to: str, client: str = "stranger") -> dict[str, str]:
        reply = send(relay, client, to, sender="eve@away.test")
        found = relay.until_state(reply.rpartition(" ")[2], "there")
        return {one["address"]: one["state"] for one in found["recipients"]}

    assert ends("vip+x@example.test") == {"vip+x@example.test": "captured"}
    assert ends("noreply@example.test")["bob@example.test"] == "discarded"
    assert ends("ann@example.test")["ann@away.test"] == "captured"
    assert ends("old@away.test", "trusted")["old@away.test"] == "redirected"
    assert send(relay, "stranger", "vi@example.test").startswith("550 5.1.1")
