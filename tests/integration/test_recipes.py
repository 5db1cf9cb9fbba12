"""Recipes of the documentation, run with the settings that they show."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay_process import DOMAIN, ROOT, until
from tests.support.remotes import Remotes, received
from tests.support.tls import Authority, authority

__all__ = ["authority"]
DOCS = ROOT / "docs"


def settings_in(file: Path, heading: str) -> str:
    """Return the settings of relay.toml under a heading."""
    section = file.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return "\n".join(re.findall(r"^```toml\n(.*?)^```$", section, re.MULTILINE | re.DOTALL))


@pytest.fixture
def remotes() -> Iterator[Remotes]:
    with Remotes() as remotes:
        yield remotes


def test_send_through_a_provider_with_a_password(remotes: Remotes, authority: Authority) -> None:
    text = settings_in(DOCS / "operation-routes.md", "## Send through a provider with a password")
    users = {"shop": "a shop's password", "relay": "another password"}
    tls = authority.issue("DNS:smtp.provider.example").server_context()
    provider = remotes.start("provider.example", tls=tls, users=users)
    remotes.dns.zone["smtp.provider.example"] = {"A": [provider.host]}
    assert text.count(":587") == 2
    text = text.replace(":587", f":{provider.port}")
    text = text.replace("auth =", f'ca = "{authority.certificate}"\nauth =')
    relay = remotes.relay()
    with relay.config_file.open("a") as file:
        file.write(text)
    for user, password in users.items():
        (relay.folder / f"{user}.password").write_text(f"{password}\n")
    with relay:
        for sender, route, user in (
            ("orders@shop.example.org", "shop", "shop"),
            ("ann@example.test", "everybody else", "relay"),
            ("", "everybody else", "relay"),
        ):
            recipient = f"to-{user}{len(sender)}@customer.example"
            journey = relay.until_final(relay.submit(sender, [recipient]))
            (to,) = journey["recipients"]
            assert (to["state"], to["route"]) == ("relayed", route)
            envelope = received(provider, recipient)
            assert envelope.tls
            assert (envelope.reverse_path, provider.logins[envelope.session]) == (sender, user)
        (relay.folder / "shop.password").write_text("the wrong one\n")
        relay.stop()
        relay.start()
        waiting = relay.submit("orders@shop.example.org", ["later@customer.example"])
        sent = relay.submit("ann@example.test", ["now@customer.example"])
        assert relay.until_final(sent)["state"] == "relayed"
        journey = relay.until_state(waiting, "deferred")
        assert "535" in journey["recipients"][0]["attempts"][0]["reply"]
    assert provider.received("later@customer.example") == []


def test_forward_to_an_outside_mailbox(remotes: Remotes) -> None:
    text = settings_in(DOCS / "operation-accounts.md", "### Forward to an outside mailbox").replace(
        "example.org", DOMAIN
    )
    bob, _, alias = text.partition("\n\n")
    *_, address, forward_to = bob.splitlines()
    mailbox, office = remotes.start("mailbox.example"), remotes.start("partner.example")
    relay = remotes.relay()
    accounts = relay.folder / "accounts.toml"
    before = accounts.read_text()
    assert before.count(address) == 1
    forwarding = before.replace(address, f"{address}\n{forward_to}")
    accounts.write_text(f"{forwarding}\n{alias}\n")
    with relay:
        sent = relay.send_mail(to=[f"bob@{DOMAIN}", f"shop+spring@{DOMAIN}"], subject="Both")
        journey = relay.until_final(sent)
        assert {
            (one["address"], one["state"], *one.get("successors", ()))
            for one in journey["recipients"]
        } == {
            (f"bob@{DOMAIN}", "expanded", f"bob@{DOMAIN}", "bob@mailbox.example"),
            (f"bob@{DOMAIN}", "delivered"),
            ("bob@mailbox.example", "relayed"),
            (f"shop+spring@{DOMAIN}", "redirected", "office@partner.example"),
            ("office@partner.example", "relayed"),
        }
        assert relay.subjects("bob") == ["Both"]
        copies = [
            received(mailbox, "bob@mailbox.example"), received(office, "office@partner.example"),
        ]  # fmt: skip
        named = [re.match(rb"Delivered-To: (.*)\r\n", bytes(one.content)) for one in copies]
        assert [one and one[1].decode() for one in named] == [f"bob@{DOMAIN}", f"shop@{DOMAIN}"]
        told = relay.cli("trace", f"shop+spring@{DOMAIN}").stdout
        assert f"shop+spring@{DOMAIN}  redirected  to office@partner.example\n" in told
        assert f"aliases: bob@{DOMAIN}, shop+spring@{DOMAIN}" in told
        # a faulty file changes nothing; a stranger may write to the alias
        ring = f'[[alias]]\naddress = "two@{DOMAIN}"\nto = ["two@{DOMAIN}"]\n'
        accounts.write_text(f"{accounts.read_text()}\n{ring}")
        assert relay.process is not None
        os.kill(relay.process.pid, signal.SIGHUP)
        until("the fault in the log", lambda: f"found the ring two@{DOMAIN}" in relay.log)
        relay.submit("ann@away.example", [f"SHOP@{DOMAIN}"], source="127.0.0.2")
        until("the copy", lambda: len(office.received("office@partner.example")) == 2)
