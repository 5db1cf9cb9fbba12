"""`from` of an [[alias]]: who may write to it, by each way that mail comes in.

Strangers come from 127.0.0.2, which nobody trusts.
"""

import json
import re

import pytest

from tests.integration.test_reload import hang_up
from tests.support.relay_config import DOMAIN, account
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

GATE = True
LIST = ["*@partner.test", "group:staff", "*@bücher.test"]
ALIASES = [
    ("own@example.test", ["bob@example.test"], "own"),
    ("Team@example.test", ["al@example.test", "Joe@partner.test"], "members"),
    ("list@example.test", ["bob@example.test", "carol@example.test"], LIST),
    ("office@example.test", ["dave@example.test"], "own"),
    ("acme@acme.test", ["bob@example.test"], "own"),
]
DENIED = "550 5.7.1 <{}>: .* to this alias"


@pytest.fixture(scope="module")
def relay(serve_module) -> RelayProcess:
    erin = account("erin", aliases=["al@example.test"], send_as=["office@example.test"])
    usual = {"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"]}
    relay: RelayProcess = serve_module(
        start=False,
        accounts=[erin, account("u") | {"address": "u@acme.test"}],
        config={
            "smtp": [usual, {"listen": "127.0.0.1:0", "role": "submission"}],
            "domain": [{"name": "twin.test", "alias_of": DOMAIN}, {"name": "acme.test"}],
            "tenant": [{"name": "acme", "domains": ["acme.test"]}],
        },
    )
    with (relay.folder / "accounts.toml").open("a") as file:
        for row in ALIASES:
            values = map(json.dumps, row)
            file.write("[[alias]]\naddress = {}\nto = {}\nfrom = {}\n".format(*values))
    for name in ("acme", "groups"):
        (relay.folder / "policies" / name).mkdir()
    (relay.folder / "policies/groups/staff.txt").write_text("Bob@example.test\nguest.test\n")
    return relay.start()


def answer(relay: RelayProcess, recipient: str, sender: str, client: str) -> str:
    """What RCPT gets, "" for 250; `client` is a stranger, one of a trusted network, or who logs in."""
    source, is_login = "127.0.0.2" if client == "stranger" else "127.0.0.1", "@" in client
    with relay.smtp(source=source, listener=int(is_login)) as session:
        session.ehlo("client.test")
        if is_login:
            session.login(client, client.partition("@")[0])
        session.mail(sender.strip("<>"), [] if sender.isascii() else ["SMTPUTF8"])
        code, text = session.rcpt(recipient)
    return "" if code == 250 else f"{code} {text.decode()}"


@each_row(
    "alias, client, may, may_not",
    [
        (
            "own",
            "stranger",
            "",
            "<> bob@example.test x@TWIN.test ann@away.test root@relay.example.test",
        ),
        (
            "own",
            "trusted",
            "printer@example.test x@twin.test root@relay.example.test",
            "<> ann@away.test",
        ),
        ("acme", "alice@example.test", "", "alice@example.test"),  # of another tenant
        ("acme", "u@acme.test", "u@acme.test", ""),
        ("office", "stranger", "<>", "ann@away.test"),  # reports for erin
        ("team", "stranger", "joe@PARTNER.test", "joel@partner.test al@example.test"),
        ("team", "erin@example.test", "al@example.test", ""),
        ("team", "trusted", "erin+x@twin.test", "dave@example.test"),
        (
            "list",
            "stranger",
            "x@partner.test x@guest.test x@xn--bcher-kva.test x@bücher.test",
            "bob@example.test",
        ),
        ("list", "bob@example.test", "bob@example.test", "<>"),
    ],
)
def test_who_may_write(relay, alias, client, may, may_not) -> None:
    domains = ["acme.test"] if alias == "acme" else [DOMAIN, "twin.test"]
    for to in (f"{one}@{domain}" for domain in domains for one in (alias, f"{alias.upper()}+x")):
        assert [x for x in may.split() if answer(relay, to, x, client)] == []
        for sender in may_not.split():
            assert re.match(DENIED.format(re.escape(to)), answer(relay, to, sender, client)), sender


def test_graph_reports_explain_tells_and_a_reload_reads_groups(relay: RelayProcess) -> None:
    sent = relay.send_mail(to=["team@example.test", "bob@example.test"], subject="to both")
    relay.until_final(sent)
    assert relay.states(sent) == {"team@example.test": "failed", "bob@example.test": "delivered"}
    [report] = until("a report", lambda: relay.maildir("alice"))
    assert re.search(DENIED.format("team@example.test"), str(report).replace("\n ", " "))
    query = "/relay/v1/explain?address=list@example.test&ip=192.0.2.1&from="
    for sender, state in (("ann@away.test", "rejected"), ("x@partner.test", "local")):
        told = relay.graph("GET", query + sender, token="operator").json()
        assert told["state"] == state
        assert told["writers"] == {"alias": "list@example.test", "from": LIST}
    told = relay.cli("explain", "team@example.test", "--from", "ann@away.test").stdout
    assert told.startswith("team@example.test is rejected: 550 5.7.1 <team@example.test>: <ann@")
    assert "writers team@example.test: members" in told
    assert relay.cli("account", "list", "own@example.test").stdout.endswith("; from own\n")

    assert answer(relay, "list@example.test", "x@new.test", "stranger")
    (relay.folder / "policies/groups/staff.txt").write_text("new.test\n")
    hang_up(relay, "reloaded")
    assert not answer(relay, "list@example.test", "x@new.test", "stranger")
    file = relay.folder / "accounts.toml"
    text = file.read_text()
    place = text[: text.index("group:staff")].count("\n") + 1
    for found, told in {
        '["group:stuff"]': 'a list, expected groups that there are (own, staff), not "stuff"',
        '"staff"': '"staff", expected "own", "members", or a list of',
        '["x"]': 'a list, expected "own", "members", or a list of',
    }.items():
        file.write_text(text.replace(json.dumps(LIST), found))
        assert f":{place}: alias[2].from: found {told}" in relay.cli("check").stderr
    hang_up(relay, "not reloaded")
