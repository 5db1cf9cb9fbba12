"""`from` of an [[alias]]: who may write to it, by each way that mail comes in.

Strangers come from 127.0.0.2, which nobody trusts.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.test_reload import hang_up
from tests.support.relay_config import DOMAIN, account
from tests.support.relay_process import RelayProcess, until
from tests.support.tables import each_row

GATE = True
ALIASES = """
[[alias]]
address = "own@example.test"
to = ["bob@example.test"]
from = "own"
[[alias]]
address = "Team@example.test"
to = ["nested@example.test", "Joe@partner.test"]
from = "members"
[[alias]]
address = "nested@example.test"
to = ["al@example.test"]
from = ["dave@example.test"]
[[alias]]
address = "list@example.test"
to = ["bob@example.test", "carol@example.test"]
from = ["*@partner.test", "group:staff", "*@bücher.test"]
[[alias]]
address = "office@example.test"
to = ["dave@example.test"]
from = "own"
[[alias]]
address = "acme@acme.test"
to = ["bob@example.test"]
from = "own"
"""
DENIED = "may not write to this alias"


@pytest.fixture(scope="module")
def relay(serve_module: Callable[..., RelayProcess]) -> RelayProcess:
    submission = {"listen": "127.0.0.1:0", "role": "submission"}
    relay = serve_module(
        start=False,
        accounts=[
            account("erin", aliases=["al@example.test"], send_as=["office@example.test"]),
            account("u", address="u@acme.test"),
        ],
        config={
            "smtp": [
                {"listen": "127.0.0.1:0", "trusted_networks": ["127.0.0.1/32"]},
                submission,
            ],
            "domain": [{"name": "twin.test", "alias_of": DOMAIN}, {"name": "acme.test"}],
            "tenant": [{"name": "acme", "domains": ["acme.test"]}],
        },
    )  # fmt: skip
    with (relay.folder / "accounts.toml").open("a") as file:
        file.write(ALIASES)
    write_group(relay.folder, "Bob@example.test\nguest.test\n")
    (relay.folder / "policies/acme").mkdir()
    return relay.start()


def write_group(folder: Path, text: str) -> None:
    folder.joinpath("policies/groups").mkdir(exist_ok=True)
    folder.joinpath("policies/groups/staff.txt").write_text(text)


def answer(relay: RelayProcess, recipient: str, sender: str, *, client: str) -> str:
    """What RCPT gets; `client` is "stranger", "trusted" or who logs in."""
    source = "127.0.0.2" if client == "stranger" else "127.0.0.1"
    with relay.smtp(source=source, listener=int(client not in ("stranger", "trusted"))) as session:
        session.ehlo("client.test")
        if client not in ("stranger", "trusted"):
            user, _, domain = client.partition("@")
            session.login(f"{user}@{domain or DOMAIN}", user)
        options = ["SMTPUTF8"] if not (sender + recipient).isascii() else []
        assert session.mail(sender, options)[0] == 250
        code, text = session.rcpt(recipient)
    return "" if code == 250 else f"{code} {text.decode()}"


@each_row("recipient, sender, client, may", [
        ("own@example.test", "bob@example.test", "stranger", False),  # anybody may say so
        ("own@example.test", "ann@away.test", "stranger", False),
        ("OWN+x@Example.test", "ann@away.test", "stranger", False),
        ("own@twin.test", "ann@away.test", "stranger", False),
        ("own@twin.test", "x@TWIN.test", "stranger", False),
        ("own@example.test", "", "stranger", False),
        ("own@example.test", "", "trusted", False),
        ("own@example.test", "ann@away.test", "trusted", False),  # a gateway that passes mail on
        ("own@example.test", "printer@example.test", "trusted", True),
        ("own+x@twin.test", "x@twin.test", "trusted", True),
        ("own@example.test", "root@relay.example.test", "trusted", True),
        ("own@example.test", "root@relay.example.test", "stranger", False),
        ("own@example.test", "carol+tag@example.test", "carol", True),
        ("acme@acme.test", "alice@example.test", "alice", False),  # of another tenant
        ("acme@acme.test", "u@acme.test", "u@acme.test", True),
        ("office@example.test", "", "stranger", True),  # reports for erin
        ("office+verp@twin.test", "", "stranger", True),
        ("office@example.test", "ann@away.test", "stranger", False),
        ("team@example.test", "joe@PARTNER.test", "stranger", True),
        ("team@example.test", "joel@partner.test", "stranger", False),
        ("team@example.test", "al@example.test", "stranger", False),
        ("team@example.test", "erin@example.test", "erin", True),  # al@ is hers
        ("team@example.test", "erin+x@example.test", "trusted", True),
        ("team@example.test", "bob@example.test", "bob", False),
        ("list@example.test", "someone@partner.test", "stranger", True),
        ("list@example.test", "x@guest.test", "stranger", True),
        ("list@example.test", "ann@xn--bcher-kva.test", "stranger", True),
        ("list@example.test", "ann@bücher.test", "stranger", True),
        ("list@example.test", "bob@example.test", "stranger", False),
        ("list@example.test", "bob@example.test", "bob", True),
        ("list@example.test", "bob+x@twin.test", "trusted", True),
        ("list@example.test", "carol@example.test", "carol", False),
        ("list@example.test", "", "bob", False),
    ])  # fmt: skip
def test_who_may_write(relay: RelayProcess, recipient: str, sender: str, client: str, may: bool):
    reply = answer(relay, recipient, sender, client=client)
    assert (reply == "") is may, reply
    assert may or (
        reply.lower().startswith(f"550 5.7.1 <{recipient.lower()}>: ") and DENIED in reply
    )


def test_graph_reports_and_the_others_get_the_message(relay: RelayProcess) -> None:
    sent = relay.send_mail(to=["team@example.test", "bob@example.test"], subject="to both")
    journey = relay.until_final(sent)
    states = {one["address"]: one["state"] for one in journey["recipients"]}
    assert states == {"team@example.test": "failed", "bob@example.test": "delivered"}
    [report] = until("a report", lambda: [
        one for one in relay.maildir("alice") if "delivery-status" in str(one["Content-Type"])
    ])  # fmt: skip
    text = report.as_string()
    assert f"550 5.7.1 <team@example.test>: <alice@example.test> {DENIED}" in text.replace(
        "\n ", " "
    )


def test_explain_says_who_may(relay: RelayProcess) -> None:
    query = "/relay/v1/explain?address=list@example.test&from="
    one = relay.graph("GET", f"{query}ann@away.test&ip=192.0.2.1", token="operator").json()
    writers = {
        "alias": "list@example.test",
        "from": ["*@partner.test", "group:staff", "*@bücher.test"],
    }
    assert (one["state"], one["writers"]) == ("rejected", writers)
    assert DENIED in one["reply"]
    may = relay.graph("GET", f"{query}x@partner.test&ip=192.0.2.1", token="operator").json()
    assert (may["state"], may["writers"], len(may["targets"])) == ("local", writers, 2)
    done = relay.cli("explain", "team@example.test", "--from", "ann@away.test")
    assert done.returncode == 65
    assert "team@example.test is rejected: 550 5.7.1 <team@example.test>" in done.stdout
    assert "writers team@example.test: members" in done.stdout
    assert "from members" in relay.cli("account", "list", "team@example.test").stdout


def test_a_reload_reads_groups_again_and_refuses_unknown_ones(relay: RelayProcess) -> None:
    assert answer(relay, "list@example.test", "x@new.test", client="stranger")
    write_group(relay.folder, "new.test\n")
    hang_up(relay, "reloaded")
    assert not answer(relay, "list@example.test", "x@new.test", client="stranger")
    assert answer(relay, "list@example.test", "bob@example.test", client="bob")

    file = relay.folder / "accounts.toml"
    text = file.read_text()
    line = text[: text.index("group:staff")].count("\n") + 1
    file.write_text(text.replace("group:staff", "group:stuff"))
    hang_up(relay, "not reloaded")
    assert not answer(relay, "list@example.test", "x@new.test", client="stranger")
    done = relay.cli("check")
    assert f"accounts.toml:{line}: alias[3].from: found a list, expected groups" in done.stderr
    assert ' that there are (own, staff), not "stuff"' in done.stderr
