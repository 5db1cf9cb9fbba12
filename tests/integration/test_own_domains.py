"""[[domain]] of each kind in one relay: who may send there, by which way mail goes on, what changes later.

Real sockets: strangers come from 127.0.0.2, which nobody trusts.
"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.relay_config import DOMAIN, changed
from tests.support.relay_process import ROOT, RelayProcess, until
from tests.support.remote_mx import RemoteMx
from tests.support.remotes import Remotes, received
from tests.support.tables import each_row

GATE = True

STRANGER = "ann@stranger.test"
LATER = "451 4.7.1 come again"
INBOUND = """
[[rule]]
name = "inbound"
when = { direction = "inbound", recipient = "*@gate.test" }
then = [{ set_header = { name = "X-Direction", value = "inbound" } }]
"""
ALIASES = """
[[alias]]
address = "sales@gate.test"
to = ["x@away.test"]
[[alias]]
address = "copied@example.test"
to = ["who@gate.test"]
"""

Hosts = dict[str, RemoteMx]


@pytest.fixture(scope="module")
def hosts(remotes_module: Remotes) -> Hosts:
    """A host behind the route of gate.test, and the MX hosts that are better than this relay."""
    found = {name: remotes_module.start(name) for name in ("gate.host", "listed.test", "away.test")}
    found["asked.test"] = remotes_module.start(
        "asked.test", rcpt={"nobody@asked.test": "550 no", "slow@asked.test": LATER}
    )
    remotes_module.dns.zone["listed.test"] = {
        "MX": ["10 mx.listed.test.", "20 relay.example.test."]
    }
    remotes_module.dns.zone["silent.test"] = {"MX": ["10 relay.example.test."]}
    remotes_module.dns.zone["loop.test"] = {"MX": ["10 relay.example.test."]}
    return found


def domains(hosts: Hosts) -> dict[str, Any]:
    host = hosts["gate.host"]
    return {
        "domain": [
            {"name": "acme.test", "catch_all": f"bob@{DOMAIN}", "postmaster": f"carol@{DOMAIN}"},
            {"name": "gate.test", "recipients": "any"},
            {"name": "listed.test", "recipients": "file:listed"},
            {"name": "asked.test", "recipients": "verify"},
            {"name": "silent.test", "recipients": "verify"},
            {"name": "twin.test", "alias_of": DOMAIN},
            {"name": "gate-twin.test", "alias_of": "gate.test"},
        ],
        "route": [{"domain": "gate.test", "next_hop": f"smtp://{host.host}:{host.port}"}],
    }


def made(serve: Callable[..., RelayProcess], remotes: Remotes, hosts: Hosts) -> RelayProcess:
    """A relay that does not run yet."""
    shipped = (ROOT / "policies/15-own-domains.toml").read_text()
    rules = {"10-inbound.toml": INBOUND, "15-own-domains.toml": shipped}
    relay = serve(remotes, start=False, config=domains(hosts), policies=rules)
    (relay.folder / "listed").write_text("# who there is\nann@listed.test\n")
    with (relay.folder / "accounts.toml").open("a") as file:
        file.write(ALIASES)
    return relay


@pytest.fixture(scope="module")
def relay(serve_module, remotes_module: Remotes, hosts: Hosts) -> RelayProcess:
    return made(serve_module, remotes_module, hosts).start()


@pytest.fixture
def another(serve, remotes_module: Remotes, hosts: Hosts) -> RelayProcess:
    return made(serve, remotes_module, hosts)


def with_domain(relay: RelayProcess, own: dict[str, str]) -> dict[str, Any]:
    return relay.config | {"domain": [*relay.config["domain"], own]}


def reply_to(relay: RelayProcess, recipient: str) -> str:
    """What a stranger's RCPT gets."""
    with relay.smtp(source="127.0.0.2") as session:
        session.ehlo("stranger.test")
        session.mail(STRANGER)
        code, text = session.rcpt(recipient)
    return f"{code} {text.decode()}"


def send(relay: RelayProcess, recipient: str, *, subject: str, sender: str = STRANGER) -> None:
    with relay.smtp(source="127.0.0.2") as session:
        text = f"From: {STRANGER}\r\nSubject: {subject}\r\n\r\ntext\r\n"
        session.sendmail(sender, [recipient], text.encode())


@each_row(
    "recipient, reply",
    [
        (f"alice@{DOMAIN}", "250 "),
        (f"nobody@{DOMAIN}", "550 5.1.1 "),
        ("nobody@acme.test", "250 "),
        ("nobody@gate.test", "250 "),
        ("nobody%away.test@gate.test", "550 5.7.1 "),
        ("ann@listed.test", "250 "),
        ("bob@listed.test", "550 5.1.1 <bob@listed.test>: no such user here"),
        ("alice@twin.test", "250 "),
        ("nobody@twin.test", "550 5.1.1 <nobody@twin.test>: no such user here"),
        ("who@gate-twin.test", "250 "),
        ("who@asked.test", "250 "),
        ("nobody@asked.test", "550 5.1.1 <nobody@asked.test>: "),
        ("slow@asked.test", "450 4.1.1 <slow@asked.test>: "),
        ("who%away.test@asked.test", "550 5.7.1 "),
        ("who@silent.test", "450 4.1.1 <who@silent.test>: "),
        ("sales@gate-twin.test", "250 "),
        ("who@away.test", "550 5.7.1 Relaying denied"),
    ],
)
def test_a_stranger_may_send_to_the_recipients_of_each(
    relay: RelayProcess, recipient: str, reply: str
) -> None:
    assert reply_to(relay, recipient).startswith(reply)


def test_mail_of_a_gateway_goes_on_with_its_sender_and_recipient(
    relay: RelayProcess, hosts: Hosts
) -> None:
    send(relay, "Who@gate.test", subject="to a gateway")
    mail = received(hosts["gate.host"], "Who@gate.test")
    assert mail.reverse_path == STRANGER
    assert b"X-Direction: inbound" in mail.content
    send(relay, "ann@listed.test", subject="to the better MX")
    assert received(hosts["listed.test"], "ann@listed.test").reverse_path == STRANGER


def test_an_alias_of_a_gateway_comes_first_and_a_copy_to_a_gateway_keeps_its_sender(
    relay: RelayProcess, hosts: Hosts
) -> None:
    send(relay, "sales@gate.test", subject="to an alias")
    away = received(hosts["away.test"], "x@away.test")
    assert away.reverse_path.startswith("SRS0=")
    assert away.reverse_path.endswith("@gate.test")
    assert not hosts["gate.host"].received("sales@gate.test")
    # a report comes back to the sender, although any address of gate.test goes on
    send(relay, away.reverse_path, sender="", subject="a report")
    journey = until("the report", lambda: of_subject(relay, "a report"))
    assert [one["address"] for one in journey["recipients"]] == [away.reverse_path, STRANGER]
    send(relay, f"copied@{DOMAIN}", subject="a copy")
    [copy] = until("the copy", lambda: hosts["gate.host"].received("who@gate.test"))
    assert copy.reverse_path == STRANGER


def of_subject(relay: RelayProcess, subject: str) -> dict[str, Any] | None:
    found = relay.request(
        "GET",
        f"/relay/v1/messages?subject={subject.replace(' ', '%20')}",
        headers={"Authorization": "Bearer operator"},
    ).json()["messages"]
    return relay.journey(found[0]["id"]) if found else None


@each_row(
    "sender, author, rules",
    [
        (STRANGER, STRANGER, []),
        ("", STRANGER, []),
        ("who@gate.test", STRANGER, ["own reverse-path from outside"]),
        (STRANGER, "The Boss <Who@Twin.test>", ["own author from outside"]),
        (STRANGER, f"{STRANGER}, who@listed.test", ["own author from outside"]),
        (STRANGER, "who@below.gate.test", []),
    ],
)
def test_mail_from_outside_in_the_name_of_an_own_domain_is_shown(
    relay: RelayProcess, sender: str, author: str, rules: list[str]
) -> None:
    subject = f"{sender}{author}".encode().hex()
    content = f"From: {author}\r\nSubject: {subject}\r\n\r\ntext\r\n".encode()
    with relay.smtp(source="127.0.0.2") as session:
        session.sendmail(sender, [f"dave@{DOMAIN}"], content)
    journey = until("its journey", lambda: of_subject(relay, subject))
    [step] = [one for one in journey["steps"] if one["step"] == 5]
    assert [one["rule"] for one in step["detail"].get("rules", [])] == rules


def test_a_gateway_whose_mx_is_this_relay_is_no_valid_configuration(
    another: RelayProcess, remotes_module: Remotes
) -> None:
    relay = another
    relay.write_config(with_domain(relay, {"name": "loop.test", "recipients": "any"}))
    done = relay.cli("check")
    assert done.returncode == 78
    assert 'domain[7].name: found "loop.test", expected a [[route]] for it' in done.stderr
    asked = {"name": "loop.test", "recipients": "verify"}
    held = {"domain": "loop.test", "next_hop": "hold"}
    routes = [*relay.config["route"], held]
    relay.write_config(with_domain(relay, asked) | {"route": routes})
    done = relay.cli("check")  # nobody says which addresses there are
    assert 'domain[7].name: found "loop.test", expected a [[route]] for it' in done.stderr
    relay.write_config(with_domain(relay, {"name": "loop.test", "recipients": "any"}))
    # a service that runs nevertheless bounces nothing
    relay.start()
    journey = relay.until_state(
        relay.submit(f"alice@{DOMAIN}", ["x@loop.test"], b"Subject: x\r\n\r\nx\r\n"), "deferred"
    )
    assert "loop.test has no MX host that is preferred" in journey["recipients"][0]["reply"]
    assert journey["recipients"][0]["status"] == "4.4.4"
    relay.stop()
    remotes_module.dns.zone["silent.test"]["MX"].append("5 mx.away.test.")
    relay.write_config(relay.config)
    done = relay.cli("check")
    assert done.returncode == 0, done.stdout


def test_mail_that_waits_goes_where_its_domain_is_now(
    another: RelayProcess, remotes_module: Remotes
) -> None:
    relay, slow = another, remotes_module.start("slow.test", replies={"MAIL": LATER})
    remotes_module.dns.zone["slow.test"] = {"MX": ["10 mx.slow.test.", "20 relay.example.test."]}
    own = {"name": "slow.test", "recipients": "file:slow"}
    (relay.folder / "slow").write_text("moved@slow.test\ngone@slow.test\n")
    retry = {"delivery": {"retry": ["1h"]}}
    relay.write_config(changed(with_domain(relay, own), retry))
    relay.start()
    keys = [
        relay.submit(f"alice@{DOMAIN}", [f"{name}@slow.test"], b"Subject: x\r\n\r\nx\r\n")
        for name in ("moved", "gone")
    ]
    for key in keys:
        relay.until_state(key, "deferred")
    relay.stop()
    assert "MAIL FROM" in "".join(map(str, slow.commands))
    # now the domain has mailboxes here, of one of the two
    with (relay.folder / "accounts.toml").open("a") as file:
        file.write('[[account]]\naddress = "moved@slow.test"\n')
    relay.write_config(with_domain(relay, {"name": "slow.test"}))
    relay.start()
    done = relay.cli("queue", "retry", "--all")
    assert done.returncode == 0, done.stderr
    moved, gone = map(relay.until_final, keys)
    assert moved["recipients"][0]["state"] == "delivered"
    assert gone["recipients"][0]["state"] == "failed"
    assert gone["recipients"][0]["status"] == "5.1.1"


def test_a_reload_takes_own_domains_and_their_files(another: RelayProcess) -> None:
    relay = another.start()

    def reload(*own: dict[str, str], listed: str) -> str:
        (relay.folder / "later").write_text(listed)
        domains = [*relay.config["domain"], *own]
        relay.write_config(relay.config | {"domain": domains})
        done = relay.cli("reload")
        return done.stderr if done.returncode else ""

    def replies(*addresses: str) -> list[str]:
        return [reply_to(relay, one)[:9] for one in addresses]

    later = {"name": "later.test", "recipients": "file:later"}
    asked = ("ann@later.test", "bob@later.test", "ann@too.test", f"alice@{DOMAIN}")
    assert replies(*asked) == ["550 5.7.1", "550 5.7.1", "550 5.7.1", "250 2.1.5"]
    assert not reload(later, listed="ann@later.test\n")
    assert replies(*asked) == ["250 2.1.5", "550 5.1.1", "550 5.7.1", "250 2.1.5"]
    too = {"name": "too.test", "alias_of": "later.test"}
    assert not reload(later, too, listed="bob@later.test\n")
    assert replies(*asked) == ["550 5.1.1", "250 2.1.5", "550 5.1.1", "250 2.1.5"]
    told = reload(later, too, listed="ann@later.test\nbob\n")
    assert 'later:2: found "bob", expected an address @later.test' in told
    assert replies(*asked) == ["550 5.1.1", "250 2.1.5", "550 5.1.1", "250 2.1.5"]
    assert not reload(listed="")
    assert replies(*asked) == ["550 5.7.1", "550 5.7.1", "550 5.7.1", "250 2.1.5"]
    # the rules' group follows
    assert not reload(later, listed="ann@later.test\n")
    send(relay, f"dave@{DOMAIN}", subject="in their name", sender="x@later.test")
    journey = until("its journey", lambda: of_subject(relay, "in their name"))
    [step] = [one for one in journey["steps"] if one["step"] == 5]
    assert [one["rule"] for one in step["detail"]["rules"]] == ["own reverse-path from outside"]
